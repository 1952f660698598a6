"""What a run prepares, evidence and the shards of a packed set, is prepared once a node, whatever the strategy."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from contactlm.retrieval.embeddings import SegmentStates
from contactlm.retrieval.kept import KeptFiles
from tests.conftest import random_sequence, write_pdb
from tests.data.packed.made import pack, serving
from tests.devices.commands import SHARDED, fits, run_commands
from tests.modules.test_retrieval import write_database
from tests.processes import run_ranks
from tests.retrieval.made import mutated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

RETRIEVAL = {"retrieval": ["--model_class=contactlm.RetrievalModule", "--model.index=../db", "--test_after_fit=false"]}


def run_noting(commands: list[list[str]]) -> None:
    """Commands; each search whose result is kept, and each chain that is embedded, leaves a line in ``made``."""
    put, make = KeptFiles.put, SegmentStates._means

    def note(text: str) -> None:
        with Path("made").open("a") as handle:
            handle.write(f"{text}\n")

    def noting_put(self: KeptFiles, name: str, body: bytes) -> None:
        if name.endswith(".json"):
            note(f"search {name}")
        put(self, name, body)

    def noting_make(self: SegmentStates, index: int) -> Any:
        note(f"chain {index}")
        time.sleep(0.2)  # as a large backbone takes: who looks meanwhile finds nothing kept
        return make(self, index)

    KeptFiles.put, SegmentStates._means = noting_put, noting_make  # type: ignore[method-assign]
    run_commands(commands)


def test_evidence_and_shards_are_prepared_once(tmp_path: Path, tiny_esm: Path) -> None:
    parent = random_sequence(0, 60)
    for i in range(10):  # relatives: processes hit the same chains
        write_pdb(tmp_path / "in" / f"t{i}.pdb", {"A": mutated(parent, 0.1, i)}, seed=i)
    write_pdb(tmp_path / "test" / "s0.pdb", {"A": random_sequence(100, 40)})
    manifest = pack(tmp_path / "in", tmp_path / "packed", residues=200)
    write_database(tmp_path / "db", {f"near{i}_A": mutated(parent, 0.2, 20 + i) for i in range(4)})
    (tmp_path / "run").mkdir()
    with serving(tmp_path / "packed") as server:
        options = ["--data.cache_dir=cache", "--model.cache_dir=cache", "--data.split=random", *SHARDED]
        folders: Any = (server.url, tmp_path / "test")
        run_ranks(run_noting, 2, fits(tiny_esm, folders, RETRIEVAL, *options), folder=tmp_path / "run")
        assert len(manifest.shards) > 1 and server.shards_asked == [1] * len(manifest.shards)
    made = Counter((tmp_path / "run" / "made").read_text().splitlines())
    assert {name for name in made if name.startswith("chain")} == {f"chain {index}" for index in range(4)}
    assert sum(name.startswith("search") for name in made) == 10
    assert set(made.values()) == {1}, made
