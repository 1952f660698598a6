"""Scores of predictors on the chains of a test set: ours, and those of other contracts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from contactlm.benchmark.check import CheckedChain
from contactlm.metrics.contracts import CONTRACTS, OURS, Contract, contract_scores
from contactlm.metrics.scores import score_protein, trivial_probability
from contactlm.modules.base import MapModule
from contactlm.modules.predict import predict_contacts
from contactlm.structure.contacts import contact_map

if TYPE_CHECKING:
    from contactlm.retrieval.database import StructureDatabase

SCORES = (
    *("mcc_sep6", "mcc", "mcc_long", "p_at_L_long", "p_at_L2_long", "p_at_L5_long", "auprc_sep6", "r_precision_long"),
)
TRIVIAL = "trivial (|i − j| ≤ 2)"
COPY = "copy of the best hit"
TUNED = "mcc_sep6_tuned"
Scores = dict[str, float]


def under(contract: str, score: str) -> str:
    """The name of a score under a contract: ``p_at_L_long`` for ours, ``esm:p_at_L_long`` for others."""
    return score if contract == OURS.name else f"{contract}:{score}"


def _contract_of(score: str) -> Contract:
    contract, has_contract, _ = score.partition(":")
    return CONTRACTS[contract] if has_contract else OURS


@dataclass(frozen=True, eq=False)
class Predictor:
    """Something that predicts maps: a model, or what every model has to beat; with its scores by the chains' ids.

    ``identity`` is that of each chain to the nearest training chain of a model, by id; None where these are not known.
    """

    name: str
    rows: dict[str, Scores]
    is_model: bool = False
    identity: Mapping[str, float] | None = None


def map_scores(
    probability: NDArray[np.float32], chain: CheckedChain, contracts: Sequence[str], tuned: float | None = None
) -> Scores:
    """Score a map, float32 (L, L) in [0, 1], of a chain under our contract and others; ``tuned`` is a threshold."""
    maps = torch.from_numpy(probability), torch.from_numpy(contact_map(chain.coordinates(OURS.atom)))
    own = score_protein(*maps)
    scores = {name: own[name] for name in SCORES}
    if tuned is not None:
        scores[TUNED] = score_protein(*maps, tuned)["mcc_sep6"]
    for name in contracts:
        found = contract_scores(CONTRACTS[name], probability, chain.coordinates(CONTRACTS[name].atom))
        scores |= {under(name, score): value for score, value in found.items()}
    return scores


def score_model(
    name: str,
    module: MapModule,
    chains: Sequence[CheckedChain],
    contracts: Sequence[str],
    advance: Callable[[], object],
) -> Predictor:
    """Predict chains and score their maps as ``contactlm test`` does, uncalibrated; ``advance`` runs after each.

    A model of another definition of contacts has scores only under contracts of that definition.
    """
    module.hold_out([chain.asked.protein for chain in chains], [chain.sequence for chain in chains])
    module.applies_calibration = False
    chains = sorted(chains, key=lambda chain: len(chain.sequence))  # those of like length share a pass
    rows = {}
    predicted = predict_contacts((chain.sequence for chain in chains), module)
    for chain, each in zip(chains, predicted, strict=True):
        scores = map_scores(each.probability, chain, contracts, module.tuned_threshold)
        rows[chain.asked.id] = {name: scores[name] for name in scores if _contract_of(name).scores(module.contact)}
        advance()
    return Predictor(name, rows, is_model=True)


def score_trivial(chains: Sequence[CheckedChain], contracts: Sequence[str]) -> Predictor:
    """Score the predictor that knows nothing."""
    rows = {
        chain.asked.id: map_scores(trivial_probability(len(chain.sequence)).numpy(), chain, contracts)
        for chain in chains
    }
    return Predictor(TRIVIAL, rows)


def score_copy(
    chains: Sequence[CheckedChain], contracts: Sequence[str], database: StructureDatabase, cache_dir: Path
) -> Predictor:
    """Score copying the best hit in a structure database, never the own entry; without a hit, what is trivial."""
    from contactlm.retrieval.copy_homolog import copy_homolog
    from contactlm.retrieval.exclude import Exclusion
    from contactlm.retrieval.search import StructureSearch

    search = StructureSearch(database, hits=1, cache_dir=cache_dir, progress=True)
    sequences, ids = [chain.sequence for chain in chains], [chain.asked.protein for chain in chains]
    found = search.search(sequences, ids, Exclusion(max_identity=1.0))
    rows = {}
    for chain, hits in zip(chains, found, strict=True):
        copied = copy_homolog(hits, database, len(chain.sequence))
        nearest = hits[0].pair_identity if hits else float("nan")
        rows[chain.asked.id] = {**map_scores(copied, chain, contracts), "hit_identity": nearest}
    return Predictor(COPY, rows)
