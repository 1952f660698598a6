"""No name that comes from data leads a writer out of its folder, or onto another protein's file."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from contactlm import ContactModule
from contactlm.atomic import LONGEST_NAME, FileNames, file_name
from contactlm.cli.main import main
from contactlm.data.packed.location import Part, SetFolder
from contactlm.data.rcsb.download import _path as download_path
from contactlm.maps.contact_map import ContactMap
from contactlm.retrieval.database import StructureDatabase
from contactlm.retrieval.embeddings import FrozenEncoder, SegmentStates
from tests.conftest import random_sequence
from tests.retrieval.made import made_database
from tests.structure.made import cif, peptide

TINY = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
HOSTILE = [
    *("/../../x", "../../x", "..", "/", "/tmp/x", "\\..\\x", "C:\\x", "a:b", "~", "$HOME", "-rf", "*", "nul", "Con.x"),
    *("%2e%2e%2f", "A", "a", "\N{FULLWIDTH SOLIDUS}x", "y" * 300, "Y" * 300),
]
PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def file_names(ids: Sequence[str], known: dict[str, str] | None = None) -> dict[str, str]:
    names = FileNames(known)
    return {name: names.of(name) for name in ids}


def check_names(names: list[str]) -> None:
    """They can lie side by side in one folder, whatever file system it is of."""
    for name in names:
        assert PLAIN.fullmatch(name) and len(name) <= LONGEST_NAME and not name.endswith("."), name
        assert name.split(".")[0].lower() not in RESERVED, name
    assert len({name.lower() for name in names}) == len(names)


def test_a_file_name_is_one_for_every_file_system() -> None:
    assert [file_name(name) for name in ("1abc_A", "two/2", "../x", "nul")] == ["1abc_A", "two_2", "_x", "_nul"]
    rng = np.random.default_rng(0)
    letters = np.array(list("aA._-/\\:\0\n é%*1"))
    ids = {"".join(rng.choice(letters, rng.integers(0, 6))) for _ in range(4000)} | {*HOSTILE, "lpt1.x", "x" * 9999}
    names = file_names(sorted(ids))
    assert set(names) == ids
    check_names(list(names.values()))
    assert file_names(sorted(ids)) == names  # the same again


def test_names_that_are_taken_stay_taken() -> None:
    ids = ["a/b", "a_b", "A_B", "a|b"]
    first = file_names(ids)
    assert first["a/b"] == "a_b"
    for order in (ids, ids[::-1]):
        assert file_names(order, first) == {name: first[name] for name in order}
    later = file_names(["a b", "c"], first)  # of another run into the same folder
    check_names([*first.values(), *later.values()])
    # a name that looks like one that was made is no exception
    check_names(list(file_names(["a/b", "a_b", first["a_b"], first["a_b"].upper()]).values()))


def write_cif(path: Path) -> list[str]:
    """Write one structure whose chains have hostile ids, the first of middle length; their ids, read again."""
    n, residues = len(HOSTILE), []
    for seed, name in enumerate(HOSTILE):
        sequence = random_sequence(seed, 30 + (seed + n // 2) % n)
        residues += peptide(sequence, name, seed=seed, origin=20.0 * seed)
    path.parent.mkdir(parents=True)
    path.write_text(cif(residues), encoding="utf-8")
    return [f"{path.stem}_{name.encode().decode('latin-1')}" for name in HOSTILE]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, deep enough to climb out of without doing harm."""
    folder = tmp_path / "1" / "2" / "3" / "4"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    monkeypatch.setenv("CONTACTLM_CACHE", str(folder / "cache"))
    return folder


def all_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def new_files(work: Path, before: set[str]) -> set[str]:
    """What was written since, below the folder of all; nothing of it may lie outside the working folder."""
    top = work.parents[3]
    written = all_below(top) - before
    inside = f"{work.relative_to(top).as_posix()}/"
    assert all(path.startswith(inside) for path in written), [path for path in written if not path.startswith(inside)]
    return {path.removeprefix(inside) for path in written}


OPTIONS = [
    *("--model.pretrained=null", f"--model.architecture={TINY}", "--model.lora=null", "--trainer.accelerator=cpu"),
    *("--data.read_workers=0", "--data.min_length=10"),
]


def test_predict_writes_where_it_was_told(work: Path) -> None:
    ids = write_cif(work / "in" / "s.cif")
    (work / "in" / "a.fasta").write_text("".join(f">{name}\n{random_sequence(9, 30)}\n" for name in HOSTILE))
    before = all_below(work.parents[3])
    assert main(["predict", *OPTIONS, "--data.predict_paths=in", "--out=results", "--formats=[npz, rr]"]) == 0
    written = {path for path in new_files(work, before) if not path.startswith("cache/")}
    assert all(path.count("/") == 1 and path.startswith("results/") for path in written)
    names = {path.removeprefix("results/") for path in written} - {"summary.csv", "index.html"}
    assert len(names) == 2 * 2 * len(HOSTILE)
    check_names(sorted(name.rpartition(".")[0] for name in names if name.endswith(".rr")))
    maps = {ContactMap.load(work / "results" / name).id for name in names if name.endswith(".npz")}
    assert maps == {*ids, *HOSTILE}


@pytest.mark.slow
def test_fit_test_and_report_write_where_they_were_told(work: Path) -> None:
    write_cif(work / "in" / "s.cif")
    before = all_below(work.parents[3])
    data = ["--data.train_dir=in", "--data.test_dir=in", "--data.crop_length=20", "--data.dev_fraction=0.2"]
    assert main(["fit", *OPTIONS, *data, "--budget.max_tokens=200", "--trainer.val_check_interval=1"]) == 0
    (run,) = (work / "runs").glob("*/version_0")
    assert main(["test", *OPTIONS, "--data.test_dir=in", f"--ckpt_path={run}/checkpoints/last.ckpt"]) == 0
    assert main(["report", "runs", "--out=report"]) == 0
    written = {path for path in new_files(work, before) if not path.startswith(("cache/", "report/"))}
    runs = [f"{folder.relative_to(work).as_posix()}/" for folder in sorted(run.parent.iterdir())]
    assert len(runs) == 2 and all(path.startswith(tuple(runs)) for path in written)
    (picture,) = (path for path in written if path.endswith(".png") and not path.endswith("/reliability.png"))
    assert picture.rpartition("/")[0] == run.relative_to(work).as_posix()
    check_names([picture.rpartition("/")[2]])
    rows = list(csv.DictReader((run / "test_scores.csv").open(encoding="utf-8")))
    assert len(rows) == len(HOSTILE)  # the ids themselves are kept


def test_sets_and_databases_write_where_they_were_told(work: Path) -> None:
    write_cif(work / "in" / "s.cif")
    before = all_below(work.parents[3])
    assert main(["pack", "--structures", "in", "--out", "set", "--clusters"]) == 0
    assert main(["index", "build", "--structures", "in", "--out", "db", "--workers", "0"]) == 0
    written = new_files(work, before)
    assert {path.partition("/")[0] for path in written} == {"set", "db", "cache"}
    for folder in ("set", "db"):
        check_names([path.removeprefix(f"{folder}/") for path in written if path.startswith(f"{folder}/")])


@pytest.mark.parametrize("name", ["../../x", "/../../x", ".."])
def test_what_comes_from_elsewhere_stays_in_its_folder(work: Path, name: str) -> None:
    """Names that are checked when they are read are made safe all the same where they become files."""
    kept = work / "cache" / "shards"
    path = SetFolder("https://nowhere/set", work / "cache").kept(Part(name, 1, "0" * 64, 1, 1))
    assert path.resolve().is_relative_to(kept.resolve()) and path.parent.parent == kept
    assert download_path(work, name).parent == work and download_path(work, "1abc") == work / "1abc.cif.gz"
    database = made_database(work, {"1abc_A": random_sequence(0, 40)})
    lying = StructureDatabase(database.path, database.store, database.states, name, database.sources)
    encoder = FrozenEncoder(lambda: ContactModule(None, architecture=TINY, lora=None).backbone.esm, "0" * 64)
    where = SegmentStates(lying, encoder, work / "cache")._kept.folder
    assert where is not None and where.parent == work / "cache" / "segments"
    assert where.resolve().parent == where.parent.resolve()
