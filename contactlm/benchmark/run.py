"""Test sets and models in, a folder of tables out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from contactlm.atomic import atomic_path, file_name, write_csv
from contactlm.benchmark.check import MISSING, CheckedChain, check_chains
from contactlm.benchmark.lists import BenchmarkSet, PublishedFigure, load_set, published_figures
from contactlm.benchmark.page import write_page
from contactlm.benchmark.reader import ChainReader
from contactlm.benchmark.score import Predictor, score_copy, score_model, score_trivial
from contactlm.benchmark.smoke import SMOKE, smoke_set
from contactlm.benchmark.structures import StructureSource, obtain_structures
from contactlm.benchmark.table import (
    SetResult,
    chain_rows,
    difference_rows,
    score_rows,
    stratum_rows,
)
from contactlm.data.cache import progress_bar
from contactlm.data.leakage import training_identity
from contactlm.data.training_set import kept_training
from contactlm.homology.relations import ClusterOptions
from contactlm.modules.base import MapModule
from contactlm.modules.predict import load_model
from contactlm.types import ContactLMError, DataError

if TYPE_CHECKING:
    from contactlm.retrieval.database import StructureDatabase

REPORT, TABLE, DIFFERENCES = "report.md", "table.csv", "differences.csv"


@dataclass(frozen=True)
class Candidate:
    """A model to be scored.

    Attributes:
        name: In tables.
        location: A checkpoint, an exported folder, or a published model's name or folder.
        head: A contact head's file for a published model, in the place of its own.
    """

    name: str
    location: str
    head: str | None = None

    def load(self) -> MapModule:
        """Make the model, on a GPU where there is one.

        Raises:
            ContactLMError: It cannot be loaded.
        """
        module = load_model(self.location, self.head)
        return module.to(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else module


@dataclass(frozen=True)
class BenchmarkOptions:
    """How to run a benchmark.

    Attributes:
        structures: Where structures come from.
        cache_dir: The cache folder.
        out: Folder of the results.
        database: A structure database whose best hit is copied, for comparison; None: there is none.
    """

    structures: StructureSource
    cache_dir: Path
    out: Path
    database: Path | None = None


def run_benchmark(names: Sequence[str], candidates: Sequence[Candidate], options: BenchmarkOptions) -> list[SetResult]:
    """Score models on test sets, and write ``report.md``, ``table.csv``, ``differences.csv`` and tables by chain.

    Args:
        names: Of test sets; see :func:`contactlm.benchmark.lists.load_set`; ``smoke`` needs no network.
        candidates: The models.
        options: Where things are.

    Raises:
        ContactLMError: A set, a model or the structures cannot be had, or no chain of any set was found.
    """
    database = None if options.database is None else _open_database(options.database)  # before hours are spent
    obtained = [_obtain(name, options) for name in dict.fromkeys(names)]
    sets = {asked.name: (asked, checked) for asked, checked in obtained}
    if len(sets) < len(obtained):
        raise DataError(f"two lists of {', '.join(names)} have one name; rename a file")
    chains = {name: [each for each in checked if each.state != MISSING] for name, (_, checked) in sets.items()}
    if not any(chains.values()):
        first = next(each for _, checked in sets.values() for each in checked)
        raise DataError(f"no chain of {', '.join(sets)} was found; the first: {first.asked.id}: {first.reason}")
    contracts = {name: _contracts(each) for name, (each, _) in sets.items()}
    predictors: dict[str, list[Predictor]] = {name: [] for name in sets}
    for candidate in candidates:
        module = candidate.load()
        remembered = kept_training(candidate.location) if candidate.location.endswith(".ckpt") else None
        for name, own in chains.items():
            with progress_bar(f"{candidate.name} on {name}", "chain", len(own)) as bar:
                scored = score_model(candidate.name, module, own, contracts[name], options.cache_dir, bar.update)
            training = None if remembered is None else remembered.sequences
            predictors[name].append(_with_identity(scored, own, training, options.cache_dir))
    for name, own in chains.items():
        predictors[name] += _controls(own, contracts[name], database, options.cache_dir)
    results = [
        SetResult(each, checked, predictors[name], _figures(each), _remarks(each, candidates, predictors[name]))
        for name, (each, checked) in sets.items()
    ]
    write_results(results, options.out)
    return results


def _obtain(name: str, options: BenchmarkOptions) -> tuple[BenchmarkSet, list[CheckedChain]]:
    """A set, and what became of its chains."""
    source = options.structures
    if name == SMOKE:
        asked, folder = smoke_set(options.out / SMOKE)
        source = replace(source, folder=folder)
    else:
        asked = load_set(name)
    files = obtain_structures(asked.chains, source, options.out)
    with progress_bar(f"Reading {asked.name}", "chain", len(asked.chains)) as bar:
        return asked, check_chains(asked.chains, files, ChainReader(options.cache_dir), bar.update)


def _open_database(folder: Path) -> StructureDatabase:
    from contactlm.retrieval.database import StructureDatabase
    from contactlm.retrieval.search import check_phmmer

    check_phmmer()
    return StructureDatabase.open(folder)


def _controls(
    chains: Sequence[CheckedChain], contracts: Sequence[str], database: StructureDatabase | None, cache_dir: Path
) -> list[Predictor]:
    """What every model has to beat."""
    controls = [score_trivial(chains, contracts)]
    if database is not None and chains:
        controls.append(score_copy(chains, contracts, database, cache_dir))
    return controls


def _with_identity(
    predictor: Predictor, chains: Sequence[CheckedChain], training: Sequence[str] | None, cache_dir: Path
) -> Predictor:
    if training is None or not chains:
        return predictor
    found = training_identity([chain.sequence for chain in chains], training, ClusterOptions(), cache_dir)
    identity = {chain.asked.id: float(value) for chain, value in zip(chains, found, strict=True)}
    return replace(predictor, identity=identity)


def _figures(asked: BenchmarkSet) -> list[PublishedFigure]:
    """Published figures whose chains are all in the list: of a part of a set, those of that part."""
    if not asked.licence:  # a list of the user, whatever it is called
        return []
    name, _, part = asked.name.partition(":")
    own = [figure for figure in published_figures() if figure.set == name]
    return [figure for figure in own if not part or figure.subset == part]


def _contracts(asked: BenchmarkSet) -> list[str]:
    return sorted({figure.contract for figure in _figures(asked)})


def _remarks(asked: BenchmarkSet, candidates: Sequence[Candidate], predictors: Sequence[Predictor]) -> list[str]:
    remarks = [asked.note] if asked.note else []
    if asked.age == "older":
        remarks.append(
            "older than the data that ESM-2 was pretrained on: the language model may have seen these proteins"
        )
    unknown = [each.name for each in predictors if each.is_model and each.identity is None]
    if unknown:
        remarks.append(
            f"identity to training chains is not known of {', '.join(unknown)}: no train.fasta.gz lies beside"
        )
    return remarks


def _or_empty(value: Any) -> Any:
    """Leave empty what is not defined."""
    return None if isinstance(value, float) and math.isnan(value) else value


def write_results(results: Sequence[SetResult], out: Path) -> None:
    """Write the page and its tables.

    Raises:
        ContactLMError: The folder cannot be written.
    """
    tables: Mapping[str, list[dict[str, Any]]] = {
        TABLE: [row for result in results for row in (*result.table, *stratum_rows(result))],
        DIFFERENCES: [row for result in results for row in difference_rows(result)],
        **{f"chains_{file_name(result.set.name)}.csv": chain_rows(result) for result in results},
        **{f"scores_{file_name(result.set.name)}.csv": score_rows(result) for result in results},
    }
    try:
        for name, rows in tables.items():
            if rows:
                write_csv(out / name, [{key: _or_empty(value) for key, value in row.items()} for row in rows])
        with atomic_path(out / REPORT) as temporary:
            temporary.write_text(write_page(results), encoding="utf-8")
    except OSError as error:
        raise ContactLMError(f"out: {out} cannot be written ({error.strerror}); give another folder") from error
