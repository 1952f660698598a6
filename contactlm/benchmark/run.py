"""Test sets and models in, a folder of tables out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from contactlm.atomic import atomic_path, file_name, write_csv
from contactlm.benchmark.check import check_chains
from contactlm.benchmark.lists import BenchmarkSet, PublishedFigure, load_set, published_figures
from contactlm.benchmark.results import SetResult, chain_rows, score_rows, write_page
from contactlm.benchmark.score import score_copy, score_model, score_trivial
from contactlm.benchmark.structures import SMOKE, StructureSource, obtain_structures, smoke_set
from contactlm.data.cache import progress_bar
from contactlm.data.leakage import training_identity
from contactlm.data.training_set import kept_training
from contactlm.homology.relations import ClusterOptions
from contactlm.metrics.contracts import CONTRACTS, OURS
from contactlm.modules.predict import load_model
from contactlm.types import ContactLMError, DataError

if TYPE_CHECKING:
    from contactlm.retrieval.database import StructureDatabase

REPORT = "report.md"


@dataclass(frozen=True)
class BenchmarkOptions:
    """How to run a benchmark."""

    structures: StructureSource
    cache_dir: Path
    out: Path
    database: Path | None = None  # a structure database whose best hit is copied, for comparison
    head: str | None = None  # a contact head's file for a published model, in the place of its own


def run_benchmark(names: Sequence[str], models: Mapping[str, str], options: BenchmarkOptions) -> list[SetResult]:
    """Score models on test sets, and write ``report.md``, ``table.csv``, ``differences.csv`` and tables by chain.

    ``names`` are those of :func:`contactlm.benchmark.lists.load_set`, or ``smoke``, which needs no network. ``models``
    are checkpoints, exported folders, or published models' names or folders, by the name that tables have.
    """
    database = None if options.database is None else _open_database(options.database)  # before hours are spent
    results = [_obtain(name, options) for name in dict.fromkeys(names)]
    sets = [result.set.name for result in results]
    if len(set(sets)) < len(sets):
        raise DataError(f"two lists of {', '.join(names)} have one name; rename a file")
    if not any(result.found for result in results):
        first = results[0].checked[0]
        raise DataError(f"no chain of {', '.join(sets)} was found; the first: {first.asked.id}: {first.reason}")
    for name, location in models.items():
        _score(name, location, results, options)
    for result in results:
        unknown = [each.name for each in result.predictors if each.identity is None]
        if unknown:
            missing = "there is no train.fasta.gz next to the checkpoint"
            result.remarks.append(f"identity to training chains is unknown for {', '.join(unknown)}: {missing}")
        result.predictors.append(score_trivial(result.found, result.contracts))
        if database is not None and result.found:
            result.predictors.append(score_copy(result.found, result.contracts, database, options.cache_dir))
    _write(results, options.out)
    return results


def _open_database(folder: Path) -> StructureDatabase:
    from contactlm.retrieval.database import StructureDatabase
    from contactlm.retrieval.search import check_phmmer

    check_phmmer()
    return StructureDatabase.open(folder)


def _obtain(name: str, options: BenchmarkOptions) -> SetResult:
    """A set, and what became of its chains."""
    source = options.structures
    if name == SMOKE:
        asked, folder = smoke_set(options.out / SMOKE)
        source = replace(source, folder=folder)
    else:
        asked = load_set(name)
    files = obtain_structures(asked.chains, source, options.out)
    with progress_bar(f"Reading {asked.name}", "chain", len(asked.chains)) as bar:
        result = SetResult(asked, check_chains(asked.chains, files, bar.update), _figures(asked))
    if asked.note:
        result.remarks.append(asked.note)
    if asked.age == "older":
        result.remarks.append(
            "older than the data that ESM-2 was pretrained on: the language model may have seen these proteins"
        )
    return result


def _figures(asked: BenchmarkSet) -> list[PublishedFigure]:
    """Published figures whose chains are all in the list: of a part of a set, those of that part."""
    if not asked.licence:  # a list of the user, whatever it is called
        return []
    name, _, part = asked.name.partition(":")
    return [figure for figure in published_figures() if figure.set == name and part in ("", figure.subset)]


def _score(name: str, location: str, results: Sequence[SetResult], options: BenchmarkOptions) -> None:
    """Score a model on all sets, on a GPU where there is one."""
    module = load_model(location, options.head)
    contracts = [OURS.name, *(contract for result in results for contract in result.contracts)]
    if not any(CONTRACTS[contract].scores(module.contact) for contract in contracts):
        raise ContactLMError(
            f"{name}: {location} predicts contacts {module.contact}, and none of the sets has a contract of that "
            "definition; two definitions are never compared"
        )
    if torch.accelerator.is_available():
        module = module.to(torch.accelerator.current_accelerator())
    remembered = kept_training(location) if location.endswith(".ckpt") else None
    for result in results:
        with progress_bar(f"{name} on {result.set.name}", "chain", len(result.found)) as bar:
            scored = score_model(name, module, result.found, result.contracts, bar.update)
        if remembered is not None and result.found:
            sequences = [chain.sequence for chain in result.found]
            found = training_identity(sequences, remembered.sequences, ClusterOptions(), options.cache_dir)
            identity = {chain.asked.id: float(value) for chain, value in zip(result.found, found, strict=True)}
            scored = replace(scored, identity=identity)
        result.predictors.append(scored)


def _write(results: Sequence[SetResult], out: Path) -> None:
    """Write the page and its tables."""
    tables: dict[str, list[dict[str, Any]]] = {
        "table.csv": [row for result in results for row in (*result.rows, *result.strata)],
        "differences.csv": [row for result in results for row in result.differences],
        **{f"chains_{file_name(result.set.name)}.csv": chain_rows(result) for result in results},
        **{f"scores_{file_name(result.set.name)}.csv": score_rows(result) for result in results},
    }
    for name, rows in tables.items():
        if rows:
            write_csv(out / name, [{key: _known(value) for key, value in row.items()} for row in rows])
    with atomic_path(out / REPORT) as temporary:
        temporary.write_text(write_page(results), encoding="utf-8")


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
