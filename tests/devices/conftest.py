"""Runs that several tests compare with: made once."""

from pathlib import Path

import pytest

from contactlm.cli.pack import pack_command
from contactlm.structure.parse import read_chains
from tests.devices.commands import KINDS, SEQUENCE, Folders, fits, run_commands
from tests.modules.test_retrieval import write_database
from tests.processes import finish, start
from tests.retrieval.made import mutated


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory, pdb_folders: Folders) -> Path:
    """The folder of all runs, with a packed set, a database of relatives and sequences to predict."""
    folder = tmp_path_factory.mktemp("work")
    own = {path.stem: read_chains(path)[0].sequence for path in pdb_folders[0].glob("t*.pdb")}
    write_database(folder / "db", {f"near-{name}_A": mutated(text, 0.15, 1) for name, text in own.items()})
    pack_command(["--structures", str(pdb_folders[0]), "--out", str(folder / "packed"), "--workers=0"])
    (folder / "a.fasta").write_text(f">long\n{SEQUENCE * 4}\n>short\n{SEQUENCE}\n")
    for name in ("one", "plain", "resumed", "replicated"):
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="session")
def one(work: Path, tiny_esm: Path, pdb_folders: Folders) -> Path:
    """What one process came to, with batches of twice the size."""
    process = start(run_commands, fits(tiny_esm, pdb_folders, KINDS, "--data.batch_size=6"), folder=work / "one")
    finish(process, work / "one")
    return work / "one"
