"""A few damaged files of every kind; `python -m tests.fuzz --count 3000` tries as many as one likes."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import fuzz

COUNT = int(os.environ.get("CONTACTLM_FUZZ", "100"))  # of all kinds together
KINDS = ["structures", "fasta", "packed sets", "databases", "caches", "checkpoints", "adapters", "backbones", "configs"]


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, fuzz.Target]]:
    yield fuzz.targets(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused(targets: dict[str, fuzz.Target], kind: str) -> None:
    count = max(4, round(COUNT * targets[kind].share))
    found = fuzz.fuzz(targets[kind], range(count))
    assert found.unexpected == {}
    assert found.taken + found.refused >= 0.8 * count


@pytest.mark.parametrize("kind", KINDS)
def test_sound_files_are_taken(targets: dict[str, fuzz.Target], tmp_path: Path, kind: str) -> None:
    for name, data in targets[kind].sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert all(targets[kind].attempt(tmp_path, name) for name in targets[kind].sources)


def test_every_kind_is_tried(targets: dict[str, fuzz.Target]) -> None:
    assert list(targets) == KINDS and sum(target.share for target in targets.values()) == pytest.approx(1)


def test_what_takes_too_long_or_too_much_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch itself: an endless loop, much memory, and an error that is none of this package's."""

    def misbehave(_: Path, name: str) -> bool:
        if name == "loop":
            while True:
                pass
        if name == "memory":
            np.ones(12_000_000)
        return {"loop": True, "memory": True}[name]

    monkeypatch.setattr(fuzz, "MAX_SECONDS", 0.3)
    monkeypatch.setattr(fuzz, "MAX_MEGABYTES", 50.0)
    found = fuzz.fuzz(fuzz.Target(1.0, dict.fromkeys(["loop", "memory", "error"], b"x"), misbehave), range(3))
    assert "HangError" in found.unexpected[0] and "MB" in found.unexpected[1] and "KeyError" in found.unexpected[2]
