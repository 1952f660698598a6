"""A contact head as the field makes one: sparse logistic regression over attention maps (Rao et al. 2021), or a mean.

Features are the C average-product corrected, symmetrised attention maps of pairs at least six residues apart. All
contacts of some chains are kept, and a share f of their other pairs, the same for all; the sampled odds are 1 / f of
the true ones, so that the fitted bias is log f too high and is lowered by it. The L1 penalty leaves most heads out; its
strength is the one with the best long-range P@L on held-out chains.

Without fitting weights: the mean of the K maps that rank these pairs best (by average precision), K the one with the
best long-range P@L on the fitting chains. Slope and bias of the mean alone are fitted, so that it gives probabilities.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contactlm.data.store import ChainStore
from contactlm.metrics.ranked import Ranked, average_precision
from contactlm.metrics.scores import nan_mean, precision_at_l, select_pairs
from contactlm.model.backbone import ContactBackbone
from contactlm.model.contact_head import logits_of_heads, pair_features
from contactlm.model.lora import contact_regression
from contactlm.structure.contacts import CONTACT_THRESHOLD, contact_labels
from contactlm.types import DataError, MissingExtraError, ModelError

log = logging.getLogger(__name__)
LONG_RANGE = 24
_Fit = tuple[NDArray[np.floating], float]
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
NUMBERS = (1, 2, 3, 5, 8, 13, 21, 34, 55)  # of maps


@dataclass(frozen=True)
class HeadFitOptions:
    """How a contact head is fitted."""

    chains: int = 20  # to fit to, drawn from the training chains
    seed: int = 0  # of the chains that are drawn, and of the pairs that are sampled
    min_separation: int = 6  # pairs closer in sequence are left out
    negatives: int = 5  # pairs without contact kept for each contact
    max_pairs: int = 60_000  # in all: what the memory of a fit grows with
    held_out: int = 20  # chains to choose the strength on, at most
    strengths: Sequence[float] = STRENGTHS  # inverse ones of the penalty, of features scaled to a mean square of 1
    max_length: int = 1022  # longer chains are left out
    method: Literal["logistic", "top"] = "logistic"  # weights for all maps, or the mean of the best ones
    below: float = CONTACT_THRESHOLD  # Å: a contact

    def __post_init__(self) -> None:
        counts = ("chains", "min_separation", "negatives", "max_pairs", "held_out", "max_length")
        if low := [name for name in counts if getattr(self, name) < 1]:
            raise ModelError(f"{low[0]}: {getattr(self, low[0])} given; it must be at least 1")
        if not self.strengths or min(self.strengths) <= 0:
            raise ModelError(f"strengths: {list(self.strengths)} given; some are needed, all positive")


class Head(NamedTuple):
    """Weights (C,) and bias of a contact head."""

    weight: Tensor
    bias: float


@dataclass(frozen=True)
class HeadFit:
    """A fitted head, and what is known of it."""

    head: Head  # the one of the chosen strength
    ids: list[str]  # the chains it was fitted to
    strength: float  # the chosen one; of a mean, the number of maps
    pairs: tuple[int, int]  # how many it was fitted to, and how many of them are contacts
    scores: dict[float, float]  # mean long-range P@L by strength, on the chains it was chosen on
    score: float  # that of the head on the held-out chains
    own_score: float  # the same of the head that the backbone came with; NaN where that reads no map
    held_out: int  # number of held-out chains


def fit_head(
    backbone: ContactBackbone, train: ChainStore, held_out: ChainStore, options: HeadFitOptions, ids: Sequence[str] = ()
) -> HeadFit:
    """Fit a contact head to a backbone's attention maps; the backbone is in evaluation mode, and left as it is.

    It is fitted to the chains ``ids`` of ``train``, or to drawn ones, and its strength is chosen on ``held_out``.
    """
    make_solver(1.0)
    reach = backbone.family.reach(backbone.esm.config)
    most = options.max_length if reach is None else min(options.max_length, reach - 2)
    usable, judges = (_short(store, most, role) for store, role in ((train, "train"), (held_out, "dev")))
    judges = judges[: options.held_out]
    drawn = np.random.default_rng((options.seed, 0)).permutation(len(usable))[: options.chains]
    chains = _named(train, ids) if ids else sorted(usable[index] for index in drawn.tolist())
    pairs, fits = _fit(backbone, train, chains, options)
    settings = options.strengths if options.method == "logistic" else NUMBERS[: len(fits)]
    regression = contact_regression(backbone.esm)
    own = Head(regression.weight.detach().flatten().cpu(), float(regression.bias.detach()))
    at_last = scores = _score(backbone, held_out, judges, [*fits, own], options.below)
    if options.method == "top":
        scores = _score(backbone, train, chains, [*fits, own], options.below)
    best = max(range(len(fits)), key=lambda k: (np.nan_to_num(scores[k], nan=-1.0), -settings[k]))
    return HeadFit(
        head=fits[best],
        ids=[train.ids[index] for index in chains],
        strength=settings[best],
        pairs=pairs,
        scores=dict(zip(settings, scores[:-1], strict=True)),
        score=at_last[best],
        own_score=at_last[-1] if own.weight.any() else math.nan,
        held_out=len(judges),
    )


def _short(store: ChainStore, max_length: int, role: str) -> list[int]:
    """Numbers of the chains that one pass takes."""
    short = [index for index, length in enumerate(store.lengths.tolist()) if length <= max_length]
    if not short:
        more = "; raise data.dev_fraction, or give more files" if role == "dev" else ""
        raise DataError(f"no {role} chain of at most {max_length} residues to fit a contact head with{more}")
    if len(short) < len(store):
        long = len(store) - len(short)
        log.info("%d %s chains are longer than %d residues and left out", long, role, max_length)
    return short


def _named(store: ChainStore, ids: Sequence[str]) -> list[int]:
    number = {id: index for index, id in enumerate(store.ids)}
    if unknown := [id for id in ids if id not in number]:
        near = ", ".join(list(number)[:3])
        raise DataError(f"chain_ids: {', '.join(unknown)}: no such training chain (there are {near}, …)")
    return [number[id] for id in ids]


def _fit(
    backbone: ContactBackbone, store: ChainStore, chains: Sequence[int], options: HeadFitOptions
) -> tuple[tuple[int, int], list[Head]]:
    """Read the features of chains and fit a head of each strength; pairs, contacts among them."""
    features, contact, share = _sample(backbone, store, chains, options)
    scale = max(float(np.sqrt(np.mean(np.square(features)))), 1e-30)
    features /= scale
    fits = _means(features, contact) if options.method == "top" else _weighted(features, contact, options.strengths)
    heads = [Head(torch.from_numpy(weight / scale).float(), bias + math.log(share)) for weight, bias in fits]
    return (len(contact), int(contact.sum())), heads


def _weighted(features: NDArray[np.float32], contact: NDArray[np.bool_], strengths: Sequence[float]) -> list[_Fit]:
    """Weights (C,) and bias of a logistic regression of each strength."""
    fits = []
    for strength in strengths:
        solver = make_solver(strength)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*failed to converge.*")  # it is judged by what it predicts
            solver.fit(features, contact)
        fits.append((solver.coef_[0], float(solver.intercept_[0])))
    return fits


def _means(features: NDArray[np.float32], contact: NDArray[np.bool_]) -> list[_Fit]:
    """Weights (C,) of the mean of the best maps, so many as each of :data:`NUMBERS`, and bias."""
    touch, columns = torch.from_numpy(contact), torch.from_numpy(features - features.min()).T
    order = np.argsort([-float(average_precision([Ranked.of(column, touch)])) for column in columns], kind="stable")
    fits = []
    for number in NUMBERS:
        best = order[:number]
        if len(best) == number:
            (slope, bias), weight = _weighted(features[:, best].mean(1, keepdims=True), contact, [1.0])[0], order * 0.0
            weight[best] = slope[0] / number
            fits.append((weight, bias))
    return fits


def make_solver(strength: float) -> Any:
    """Coordinate descent on the L1-penalised likelihood; the intercept is hardly penalised."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "head", str(error)) from error
    solver = LogisticRegression(solver="liblinear", C=strength, intercept_scaling=100.0, tol=1e-4, max_iter=200)
    # Since 1.8 the one parameter replaces the other, which warns.
    new = solver.get_params().get("penalty") == "deprecated"
    return solver.set_params(**({"l1_ratio": 1.0} if new else {"penalty": "l1"}))


def _sample(
    backbone: ContactBackbone, store: ChainStore, chains: Sequence[int], options: HeadFitOptions
) -> tuple[NDArray[np.float32], NDArray[np.bool_], float]:
    """Features (N, C) of sampled pairs, whether they touch (N,), and the share of the others that was kept."""
    pairs = [_known_pairs(store, index, options) for index in chains]
    contacts = sum(int(contact.sum()) for _, _, contact in pairs)
    others = sum(len(contact) for _, _, contact in pairs) - contacts
    room = min(options.negatives * contacts, options.max_pairs - contacts)
    if contacts == 0 or others == 0 or room <= 0:
        found = f"{contacts} contacts and {others} other pairs in {len(chains)} chains, max_pairs {options.max_pairs}"
        raise DataError(f"{found}: no contact head can be fitted to that; take other chains, or more pairs")
    share = min(1.0, room / others)
    device = next(backbone.parameters()).device
    features, touch = list[NDArray[np.float32]](), list[NDArray[np.bool_]]()
    for n, (index, (rows, columns, contact)) in enumerate(zip(chains, pairs, strict=True)):
        drawn = np.random.default_rng((options.seed, 0, n)).random(len(contact)) < share
        keep = contact | torch.from_numpy(drawn)
        touch.append(contact[keep].numpy())
        tokens = residue_tokens(backbone, store, index).to(device)
        features.append(pair_features(backbone, tokens, rows[keep].to(device), columns[keep].to(device)).numpy())
    return np.concatenate(features), np.concatenate(touch), share


def _known_pairs(store: ChainStore, index: int, options: HeadFitOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs i < j of a chain whose label is known: rows, columns int64 (N,), and whether they touch."""
    labels = contact_labels(torch.from_numpy(np.array(store.cb_of(index))), options.below)
    rows, columns = torch.nonzero(torch.triu(labels >= 0, options.min_separation), as_tuple=True)
    return rows, columns, labels[rows, columns] == 1


def residue_tokens(backbone: ContactBackbone, store: ChainStore, index: int) -> Tensor:
    """A chain as the family takes it, int64 (1, T)."""
    own = backbone.family.tokens
    residues = own.own(torch.from_numpy(store.tokens_of(index).astype(np.int64)))
    return torch.cat([torch.tensor([own.cls]), residues, torch.tensor([own.eos])]).unsqueeze(0)


def _score(
    backbone: ContactBackbone, store: ChainStore, chains: Sequence[int], heads: Sequence[Head], below: float
) -> list[float]:
    """Mean long-range P@L of heads, in one pass of each chain."""
    device = next(backbone.parameters()).device
    weights, biases = torch.stack([head.weight for head in heads]), torch.tensor([head.bias for head in heads])
    found: list[list[float]] = [[] for _ in heads]
    for index in chains:
        labels = contact_labels(torch.from_numpy(np.array(store.cb_of(index))), below)
        tokens = residue_tokens(backbone, store, index).to(device)
        logits = logits_of_heads(backbone, tokens, weights.to(device), biases.to(device))
        for scores, own in zip(found, logits.cpu(), strict=True):
            scores.append(precision_at_l(select_pairs(own.sigmoid(), labels).within(LONG_RANGE)))
    return [nan_mean(scores) for scores in found]
