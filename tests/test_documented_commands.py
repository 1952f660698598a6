"""The commands in pages run as they are written, one after the other, on proteins that are small."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from contactlm.cli.main import main
from tests.conftest import Finished, random_sequence
from tests.test_words import ROOT, code_of

pytestmark = pytest.mark.slow

PAGES = {  # what stands there before a page's commands begin: checkpoints and runs of earlier commands
    "README.md": (),
    ".github/your-own-proteins.md": (),
    ".github/running-on-clusters.md": (),
    "contactlm/data/README.md": (),
    "contactlm/maps/README.md": ("best.ckpt",),
    "contactlm/model/README.md": (),
    "contactlm/report/README.md": ("runs/crop200", "runs/full1020"),
    "contactlm/retrieval/README.md": (),
    "lightning_configs/README.md": (),
    "tests/projects/README.md": ("own_loss.py",),
}
SMALL = {  # what makes a command one of a second
    "fit": ["--budget.max_tokens=600", "--data.min_length=10", "--data.read_workers=0", "--trainer.accelerator=cpu"],
    "test": ["--data.min_length=10", "--data.read_workers=0", "--trainer.accelerator=cpu"],
    "predict": ["--trainer.accelerator=cpu", "--data.read_workers=0"],
    "head": ["--data.min_length=10", "--data.read_workers=0", "--chains=5"],
    "pack": ["--min_length=10"],
}
SMALL["plan"] = SMALL["fit"]
# of many processes or seeds, from the web, or of published weights (tests/test_antibodies.py)
ELSEWHERE = re.compile(r"num_nodes|\$|benchmark|--config antibodies|lightning_configs/quickstart")


def commands(page: str) -> Iterator[list[str]]:
    """The words of each command of this package in a page's shell code."""
    for code in code_of((ROOT / page).read_text(encoding="utf-8"), "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            if line.startswith("contactlm ") and not ELSEWHERE.search(line):
                yield shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("page", PAGES)
def test_commands_run_as_they_are_written(
    page: str,
    tmp_path: Path,
    tiny_esm: Path,
    pdb_folders: tuple[Path, Path],
    finished: Finished,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(pdb_folders[0], "my/train")
    shutil.copytree(pdb_folders[1], "my/test")
    shutil.copytree(pdb_folders[1], "my/structures")
    shutil.copytree(tiny_esm, "my/ESMC-300M")
    for name in ("a.fasta", "my.fasta"):
        Path(name).write_text(f">one\n{random_sequence(1, 30)}\n>two\n{random_sequence(2, 25)}\n")
    for name in PAGES[page]:
        source = {".ckpt": finished.best, ".py": ROOT / "tests" / "projects" / name}.get(Path(name).suffix)
        if source is None:
            shutil.copytree(finished.folder / "runs" / "crop200", name)
        else:
            shutil.copy(source, name)
    seen = 0
    for words in commands(page):
        small = list(SMALL.get(words[0], ()))
        if words[0] in ("fit", "plan") or (words[0] == "test" and "--ckpt_path" not in words):
            small.append(f"--model.pretrained={tiny_esm}")
        if page == "contactlm/retrieval/README.md" and words[0] in ("fit", "test", "predict"):
            best = sorted(Path("runs").rglob("best-*.ckpt"))
            shutil.copy(best[-1], "best.ckpt") if best else None
        assert main([*words, *small]) == 0, words
        seen += 1
    assert seen
