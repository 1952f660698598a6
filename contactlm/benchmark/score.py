"""Scores of predictors on the chains of a test set: ours, and those of other contracts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from contactlm.benchmark.check import CheckedChain
from contactlm.benchmark.kept import KeptScores, Scores, chain_checksum
from contactlm.callbacks.origin import weights_checksum
from contactlm.callbacks.run_facts import module_facts
from contactlm.metrics.contracts import CONTRACTS, OURS, contract_scores
from contactlm.metrics.scores import score_protein, trivial_probability
from contactlm.modules.base import MapModule
from contactlm.modules.predict import predict_contacts
from contactlm.structure.contacts import contact_map

if TYPE_CHECKING:
    from contactlm.retrieval.database import StructureDatabase

SCORES = ("mcc_sep6", "mcc", "mcc_long", "p_at_L_long", "p_at_L2_long", "p_at_L5_long", "auprc_sep6")
TRIVIAL = "trivial (|i − j| ≤ 2)"
COPY = "copy of the best hit"
TUNED = "mcc_sep6_tuned"


def under(contract: str, score: str) -> str:
    """The name of a score under a contract: ``p_at_L_long`` for ours, ``esm:p_at_L_long`` for others."""
    return score if contract == OURS.name else f"{contract}:{score}"


@dataclass(frozen=True, eq=False)
class Predictor:
    """Something that predicts maps, with its scores on a test set.

    Attributes:
        name: Its name in tables.
        rows: Scores by the ids of the chains.
        is_model: Whether it is a model, or something that every model has to beat.
        identity: Of each chain to the nearest training chain of the model, by id; None where these are not known.
    """

    name: str
    rows: dict[str, Scores]
    is_model: bool = False
    identity: Mapping[str, float] | None = field(default=None)


def map_scores(
    probability: NDArray[np.float32], chain: CheckedChain, contracts: Sequence[str], tuned: float | None = None
) -> Scores:
    """Score one predicted map.

    Args:
        probability: (L, L), in [0, 1].
        chain: The chain, which is not missing.
        contracts: Names of the contracts to score under, beside ours.
        tuned: A threshold that was tuned on dev.
    """
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
    cache_dir: Path,
    tell: Callable[[], object],
) -> Predictor:
    """Predict the chains whose scores are not kept yet, and score them.

    Maps are scored as ``contactlm test`` does: before any calibration.

    Args:
        name: Of the model, in tables.
        module: The model.
        chains: Chains that are not missing.
        contracts: Names of the contracts to score under, beside ours.
        cache_dir: Where scores are kept.
        tell: Called after each chain.
    """
    module.hold_out([chain.asked.protein for chain in chains], [chain.sequence for chain in chains])
    facts = [module_facts(module, kind) for kind in ("equal", "reads")]
    held_out = sorted(chain.asked.protein for chain in chains) if any(facts) else []
    options = [module.windows.window, module.windows.least_overlap, module.tuned_threshold, *facts, held_out]
    kept = KeptScores(cache_dir, f"{weights_checksum(module)} {json.dumps(options, sort_keys=True)}")
    keys = {chain.asked.id: chain_checksum(chain) for chain in chains}
    wanted = {*SCORES, *(under(contract, "p_at_L_long") for contract in contracts)}
    missing = [chain for chain in chains if not wanted <= (kept.of(keys[chain.asked.id]) or {}).keys()]
    for _ in range(len(chains) - len(missing)):
        tell()
    missing.sort(key=lambda chain: len(chain.sequence))  # those of like length share a pass
    module.applies_calibration = False  # maps are scored as `contactlm test` scores them
    for chain, probability in zip(missing, _predicted(module, missing), strict=True):
        key = keys[chain.asked.id]
        kept.add(key, (kept.of(key) or {}) | map_scores(probability, chain, contracts, module.tuned_threshold))
        tell()
    return Predictor(name, {chain_id: kept.of(key) or {} for chain_id, key in keys.items()}, is_model=True)


def _predicted(module: MapModule, chains: Sequence[CheckedChain]) -> Iterator[NDArray[np.float32]]:
    for predicted in predict_contacts((chain.sequence for chain in chains), module):
        yield predicted.probability


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
    """Score copying the contacts of the best hit in a structure database; a chain's own entry is no hit.

    A chain without a hit is scored as the trivial predictor is.
    """
    from contactlm.retrieval.copy_homolog import copy_homolog
    from contactlm.retrieval.exclude import Exclusion
    from contactlm.retrieval.search import SearchOptions, StructureSearch

    search = StructureSearch(database, SearchOptions(hits=1), cache_dir, progress=True)
    sequences, ids = [chain.sequence for chain in chains], [chain.asked.protein for chain in chains]
    found = search.search(sequences, ids, Exclusion(max_identity=1.0))
    rows = {}
    for chain, hits in zip(chains, found, strict=True):
        copied = copy_homolog(hits, database, len(chain.sequence))
        nearest = hits[0].pair_identity if hits else float("nan")
        rows[chain.asked.id] = {**map_scores(copied, chain, contracts), "hit_identity": nearest}
    return Predictor(COPY, rows)
