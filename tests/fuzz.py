"""Damaged input of every kind: it is read, or refused by an error that says so, soon and in little memory.

    python -m tests.fuzz [--count 3000] [--first 0] [--only structures]

Each file is damaged by its seed alone, so that one can be made again (--first SEED --count 1). The table says how many
were taken and refused, and what the slowest and the largest took; unexpected errors are printed, and make the exit
code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gzip
import io
import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from contactlm import ContactModule, predict_contacts
from contactlm.alphabet import encode
from contactlm.cli.main import main as run_command
from contactlm.data.cache import StructureCache
from contactlm.data.fasta import FastaRecord, iter_fasta
from contactlm.data.packed.pack import pack_structures
from contactlm.data.packed.store import open_packed
from contactlm.modules.export import export_adapter
from contactlm.retrieval.build import BackboneCache, build_database
from contactlm.retrieval.database import StructureDatabase
from contactlm.shipped import config_folder
from contactlm.structure.parse import read_chains
from contactlm.types import ContactLMError
from tests.conftest import make_tiny_esm, random_sequence, write_pdb
from tests.structure.made import cif, modres, pdb_atoms, peptide, seqres, three

MAX_SECONDS = 5.0  # of processor time for one file; ordinary ones take milliseconds
MAX_WAIT = 60.0  # seconds altogether
MAX_MEGABYTES = 500.0
LETTERS = "MKTAYIAKQRQISFVKSHFS"
NASTY = [
    *(b"nan", b"inf", b"-inf", b"1e308", b"9999999.999", b"********", b"-", b"0x10", b"1_0", b"\xb2", b"\xd9\xa1"),
    *(b"\0", b"\n", b"\r", b"\r\n", b"\x85", b"\x0c", b"\t", b"'", b'"', b"#", b";", b"\n;", b"_", b"?", b".", b">"),
    *(b"loop_", b"\nloop_\n", b"data_", b"\ndata_x\n", b"\n_atom_site.id\n", b"_entity_poly_seq.num", b"save_"),
    *(b"ATOM  ", b"\nHETATM", b"\nTER\n", b"\nMODEL 2\n", b"\nENDMDL\n", b"\nEND\n", b"\nSEQRES", b"\nMODRES"),
    *(b"ACE", b"A000", b"{", b"}", b"[", b"null", b"true", b"\xff\xfe", b"\x1f\x8b", b"PK\x03\x04"),
    *(b" " * 5000, b"A" * 100_000, b"9" * 5000, b"\n" * 5000, b"'" * 999, b"[" * 5000),
]
ODD_VALUES: list[Any] = [
    *(None, True, 0, -1, 7, 10**6, 10**12, 10**30, -0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "../../x", "\0", "é" * 300, "A" * 100_000, [], [[]], {}, {"a": []}, ["x"], [None] * 3),
]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file in one to five ways."""
    for _ in range(int(rng.integers(1, 6))):
        size = max(len(data), 1)
        at, other = (int(i) for i in rng.integers(0, size, 2))
        length = int(rng.integers(1, 400))
        way = int(rng.integers(0, 11))
        if way == 0:  # cut
            data = data[:at]
        elif way == 1:  # lose a piece
            data = data[:at] + data[at + length :]
        elif way == 2:  # copy a piece elsewhere
            data = data[:at] + data[other : other + length] + data[at:]
        elif way == 3:  # overwrite with random bytes
            data = data[:at] + rng.bytes(length % 30) + data[at + length % 30 :]
        elif way in (4, 5):  # insert, or overwrite by, something nasty
            piece = NASTY[int(rng.integers(len(NASTY)))]
            data = data[:at] + piece + data[at + (len(piece) if way == 5 else 0) :]
        elif way == 6:  # put one number everywhere
            digit, by = (str(int(i)).encode() for i in rng.integers(0, 10, 2))
            data = data.replace(digit, by)
        elif way == 7:  # shuffle lines
            lines = data.split(b"\n")
            data = b"\n".join(lines[int(i)] for i in rng.permutation(len(lines)))
        elif way == 8:  # repeat lines
            lines = data.split(b"\n")
            data = b"\n".join(lines[: len(lines) // 2] * int(rng.integers(2, 6)) + lines[len(lines) // 2 :])
        elif way == 9:  # turn a bit
            data = data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :] if data else data
        else:  # change the case, or shift a line
            data = data[:at] + (data[at : at + length].swapcase() if length % 2 else b" ") + data[at:]
    return data


def with_odd_value(tree: Any, rng: np.random.Generator) -> Any:
    """Replace or remove one value somewhere in nested lists and dictionaries."""
    tree = copy.deepcopy(tree)
    place = tree
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]
        key = keys[int(rng.integers(len(keys)))]
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
            place = place[key]
            continue
        if rng.random() < 0.2:
            del place[key]
        else:
            place[key] = ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]
        return tree


def damaged(name: str, data: bytes, rng: np.random.Generator) -> bytes:
    """Damage bytes, or where the file holds a tree of values one of these."""
    if rng.random() < 0.5:
        if name.endswith(".json"):
            return json.dumps(with_odd_value(json.loads(data), rng)).encode()
        if name.endswith(".yaml"):
            return yaml.safe_dump(with_odd_value(yaml.safe_load(data), rng)).encode()
        if name.endswith(".ckpt"):
            buffer = io.BytesIO()
            checkpoint = torch.load(io.BytesIO(data), weights_only=True)
            torch.save(with_odd_value(checkpoint, rng), buffer)
            return buffer.getvalue()
        if name.endswith(".safetensors"):
            length = int.from_bytes(data[:8], "little")
            header = json.dumps(with_odd_value(json.loads(data[8 : 8 + length]), rng)).encode()
            return len(header).to_bytes(8, "little") + header + data[8 + length :]
    return mutated(data, rng)


@dataclass
class Target:
    """A kind of input.

    Attributes:
        share: Of all files.
        sources: The sound files, by their path below the folder.
        attempt: Reads what lies in a folder, in which the named file is damaged; whether something was read. What
            is wrong raises ContactLMError.
        zipped: Whether the damaged file may come gzipped.
    """

    share: float
    sources: dict[str, bytes]
    attempt: Callable[[Path, str], bool]
    zipped: bool = False


# --- what is read ---------------------------------------------------------------------------------------------------


def structures() -> dict[str, bytes]:
    """One file of each format with a bit of everything, larger than one chain so that splices mix things up."""
    residues = peptide(LETTERS, start=-3) + peptide("GASGWU", chain="B", origin=60.0)
    residues[4].number, residues[4].icode = 0, "A"
    residues[6].name, residues[6].hetero = "MSE", True
    residues[8].altloc, residues[8].occupancy = "A", 0.4
    full = {"A": ["ACE", *three(LETTERS), "GLY"], "B": three("GASGWUKK")}
    header = [modres("MSE", "A", 3, " ", "MET"), *seqres(full["A"], "A"), *seqres(full["B"], "B")]
    kept = residues[:10] + residues[13:]
    pdb = ["HEADER    TEST", *header, "MODEL        1", *pdb_atoms(kept), "TER", "ENDMDL", "END", ""]
    bare = [*pdb_atoms(kept), "END", ""]
    more = ["_struct.title 'a title'", "_struct.text", ";text", ";"]
    texts = {"a.pdb": "\n".join(pdb), "b.pdb": "\n".join(bare), "a.cif": cif(kept, full, more), "b.cif": cif(kept)}
    return {name: text.encode() for name, text in texts.items()}


def read_structure(folder: Path, name: str) -> bool:
    """Read chains, all of them sound."""
    path = folder / name
    sequence = "observed" if name.startswith("a") and path.stat().st_size % 5 == 0 else "seqres"
    try:
        chains = read_chains(path, sequence, "copies" if path.stat().st_size % 3 == 0 else "first")
    except ContactLMError as error:
        assert str(error).startswith(f"{path}: ")
        assert len(str(error)) < 1000
        raise
    for chain in chains:
        assert len(encode(chain.sequence)) == len(chain) > 0
        assert chain.resolved.any()
        assert np.array_equal(chain.resolved, np.isfinite(chain.cb).all(axis=1))
        assert (np.abs(chain.cb[chain.resolved]) < 2e5).all()
    return True


def fasta() -> dict[str, bytes]:
    """Records with what such files have."""
    records = [f">p{i} a protein\n{random_sequence(i, 90)}\n{random_sequence(i + 9, 31).lower()}*" for i in range(4)]
    return {"a.fasta": "\n".join([*records, ";comment", ">p1", "MK-TA.YI", ">", "ACGU" * 9, ""]).encode()}


def read_sequences(folder: Path, name: str) -> bool:
    """Read records, all of them sound."""
    found = list(iter_fasta(folder / name))
    for record in found:
        if isinstance(record, FastaRecord):
            assert len(encode(record.sequence)) == len(record) > 0
        else:
            assert record.reason
    assert len({record.id for record in found}) == len(found)
    return any(isinstance(record, FastaRecord) for record in found)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def proteins(folder: Path) -> Path:
    for i in range(4):
        write_pdb(folder / f"p{i}.pdb", {"A": random_sequence(i, 40 + i), "B": random_sequence(i + 9, 35)}, seed=i)
    return folder


def packed_set(scratch: Path) -> dict[str, bytes]:
    pack_structures([str(proteins(scratch / "in"))], scratch / "packed", 100, workers=0, progress=False)
    return files_below(scratch / "packed")


def read_packed_set(folder: Path, name: str) -> bool:
    store, report = open_packed(str(folder), folder / "cache", "seqres", "train_dir")
    assert len(report.problems) <= report.files
    for i in range(len(store)):
        assert len(store.sequence_of(i)) == len(store.cb_of(i)) == store.lengths[i]
    return True


def database(scratch: Path) -> dict[str, bytes]:
    cache = BackboneCache(scratch / "cache", workers=0, progress=False)
    build_database([proteins(scratch / "in")], scratch / "database", cache)
    return files_below(scratch / "database")


def read_database(folder: Path, name: str) -> bool:
    opened = StructureDatabase.open(folder)
    for i in range(len(opened)):
        assert len(opened.sequence_of(i)) == len(opened.cb_of(i)) == len(opened.states_of(i))
        opened.segments_of(i)
    return True


class ReadCache:
    """A damaged cache costs time, and changes nothing."""

    def __init__(self, scratch: Path) -> None:
        self.paths = sorted(proteins(scratch / "in").iterdir())
        self.expected, _ = StructureCache(scratch / "cache", workers=0, progress=False).load(self.paths)
        self.sources = files_below(scratch / "cache")

    def __call__(self, folder: Path, name: str) -> bool:
        store, report = StructureCache(folder, workers=0, progress=False).load(self.paths)
        assert not report.problems
        assert list(store.ids) == list(self.expected.ids)
        assert np.array_equal(store.cb, self.expected.cb)
        return True


def tiny_module(scratch: Path) -> ContactModule:
    return ContactModule(str(make_tiny_esm(scratch / "tiny", seed=0)))


def checkpoint(scratch: Path) -> dict[str, bytes]:
    from lightning.pytorch import Trainer

    module = tiny_module(scratch)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.strategy.connect(module)
    trainer.save_checkpoint(scratch / "a.ckpt", weights_only=True)
    return {"a.ckpt": (scratch / "a.ckpt").read_bytes()}


def adapter(scratch: Path) -> dict[str, bytes]:
    export_adapter(tiny_module(scratch), scratch / "adapter")
    return files_below(scratch / "adapter")


def backbone(scratch: Path) -> dict[str, bytes]:
    return files_below(make_tiny_esm(scratch / "tiny", seed=0))


def use_model(folder: Path, name: str) -> bool:
    """Load a model, and predict with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as of a head that starts at random
        found = predict_contacts("MKTAYIAKQR", folder / name if name.endswith(".ckpt") else folder)
    assert found.probability.shape == (10, 10)
    return True


def configs() -> dict[str, bytes]:
    return {
        "a.yaml": (config_folder() / "quickstart.yaml").read_bytes(),
        "b.yaml": (config_folder() / "base.yaml").read_bytes(),
    }


def read_config(folder: Path, name: str) -> bool:
    """Let the command line read a config; it ends with the config printed, or with a message."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run_command(["fit", f"--config={folder / name}", "--print_config"])
    except SystemExit as end:
        status = int(end.code or 0) if isinstance(end.code, int | None) else 1
    if status:
        assert status in (1, 2) and "Traceback" not in err.getvalue()
        raise ContactLMError(err.getvalue())
    return True


def targets(scratch: Path) -> dict[str, Target]:
    """All kinds, each with its sound files."""
    cache = ReadCache(scratch / "cached")
    return {
        "structures": Target(0.4, structures(), read_structure, zipped=True),
        "fasta": Target(0.15, fasta(), read_sequences, zipped=True),
        "packed sets": Target(0.1, packed_set(scratch / "packing"), read_packed_set),
        "databases": Target(0.07, database(scratch / "building"), read_database),
        "caches": Target(0.05, cache.sources, cache),
        "checkpoints": Target(0.08, checkpoint(scratch / "checkpoint"), use_model),
        "adapters": Target(0.06, adapter(scratch / "exporting"), use_model),
        "backbones": Target(0.05, backbone(scratch / "backbone"), use_model),
        "configs": Target(0.04, configs(), read_config),
    }


# --- how it is watched ----------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What became of the files of one kind; unexpected errors by seed."""

    taken: int = 0
    refused: int = 0
    seconds: float = 0.0
    megabytes: float = 0.0
    unexpected: dict[int, str] = field(default_factory=dict)


class _HangError(BaseException):
    """Nothing that reads files may catch it."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Break off what takes too long; only in the main thread, and where there are such clocks."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise _HangError(f"not done after {MAX_SECONDS:g} s of processor time, or {MAX_WAIT:g} s")

    begin = time.monotonic()
    clocks = {signal.ITIMER_PROF: (signal.SIGPROF, MAX_SECONDS), signal.ITIMER_REAL: (signal.SIGALRM, MAX_WAIT)}
    handlers = {number: signal.signal(number, stop) for number, _ in clocks.values()}
    before = {clock: signal.setitimer(clock, seconds)[0] for clock, (_, seconds) in clocks.items()}
    try:
        yield
    finally:
        for clock in clocks:
            signal.setitimer(clock, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for clock, left in before.items():  # a test runner has an alarm of its own
            signal.setitimer(clock, max(0.001, left - (time.monotonic() - begin)) if left else 0)


class Peak:
    """Peak memory of this process beyond what it has at the start, in MB; 0 where the system does not tell."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._before = self._read("VmRSS")

    @property
    def megabytes(self) -> float:
        return max(0.0, self._read("VmHWM") - self._before)

    @staticmethod
    def _read(key: str) -> float:
        try:
            found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        except OSError:
            return 0.0
        return int(found[1]) / 1024 if found else 0.0


def write(folder: Path, target: Target, seed: int) -> str:
    """Lay the files of one kind, one of them damaged; the name of that one."""
    rng = np.random.default_rng(seed)
    name = list(target.sources)[seed % len(target.sources)]
    data = damaged(name, target.sources[name], rng)
    result = name
    if target.zipped and rng.random() < 0.2:
        result += ".gz"
        data = gzip.compress(data, mtime=0)
        data = mutated(data, rng) if rng.random() < 0.7 else data
    for other, content in {**target.sources, result: data}.items():
        if other == result or not target.zipped:
            (folder / other).parent.mkdir(parents=True, exist_ok=True)
            (folder / other).write_bytes(content)
    return result


def fuzz(target: Target, seeds: range) -> Outcome:
    """Try files of one kind, one a seed."""
    outcome = Outcome()
    for seed in seeds:
        with tempfile.TemporaryDirectory() as place:
            name = write(Path(place), target, seed)
            peak, start = Peak(), time.process_time()
            try:
                with limited():
                    outcome.taken += target.attempt(Path(place), name)
            except ContactLMError:
                outcome.refused += 1
            except (Exception, _HangError):  # noqa: BLE001 - this is what is looked for
                outcome.unexpected[seed] = traceback.format_exc(limit=-4)
            seconds, megabytes = time.process_time() - start, peak.megabytes
        outcome.seconds, outcome.megabytes = max(outcome.seconds, seconds), max(outcome.megabytes, megabytes)
        if seconds > MAX_SECONDS or megabytes > MAX_MEGABYTES:
            outcome.unexpected.setdefault(seed, f"{seconds:.1f} s, {megabytes:.0f} MB")
    return outcome


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=3000, help="Files of all kinds together; of one with --only.")
    parser.add_argument("--first", type=int, default=0, help="The first seed.")
    parser.add_argument("--only", help="One kind.")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    failed = 0
    print(
        "| what | files | taken | refused | unexpected | slowest, s | most memory, MB |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name, target in targets(Path(scratch)).items():
            if arguments.only not in (None, name):
                continue
            count = arguments.count if arguments.only else round(arguments.count * target.share)
            found = fuzz(target, range(arguments.first, arguments.first + count))
            failed += len(found.unexpected)
            print(
                f"| {name} | {count} | {found.taken} | {found.refused} | {len(found.unexpected)} | "
                f"{found.seconds:.2f} | {found.megabytes:.0f} |",
                flush=True,
            )
            for seed, reason in found.unexpected.items():
                print(f"--first {seed} --count 1 --only '{name}':\n{reason}", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
