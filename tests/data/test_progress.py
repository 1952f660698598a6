"""Progress where there is no terminal: lines, and nothing that a terminal would need."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import random_sequence

Folders = tuple[Path, Path]
# Libraries are imported once; a broken file among the structures is told by the status 3.
ONE_AFTER_THE_OTHER = """
import json, sys
from contactlm.__main__ import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["contactlm", *command]
    assert main() in (0, 3), command
"""


@pytest.mark.slow
def test_a_log_file_gets_whole_lines(tmp_path: Path, tiny_esm: Path, pdb_folders: Folders) -> None:
    (tmp_path / "a.fasta").write_text(f">a\n{random_sequence(0, 60)}\n")
    common = [f"--model.pretrained={tiny_esm}", "--trainer.accelerator=cpu", f"--data.cache_dir={tmp_path}/cache"]
    fit = [
        f"--data.train_dir={pdb_folders[0]}",
        "--data.min_length=10",
        "--data.crop_length=30",
        "--trainer.fast_dev_run=true",
    ]
    predict = ["--data.predict_paths=a.fasta", "--formats=[npz]", "--model.window=20"]
    pack = ["pack", "--structures", str(pdb_folders[0]), "--out", "set", "--clusters"]
    commands = [["fit", *common, *fit], ["predict", *common, *predict], pack]
    with (tmp_path / "log").open("ab") as log:
        line = [sys.executable, "-c", ONE_AFTER_THE_OTHER, json.dumps(commands)]
        done = subprocess.run(line, cwd=tmp_path, stderr=log, stdout=log)
    assert done.returncode == 0, (tmp_path / "log").read_text()
    text = (tmp_path / "log").read_bytes().decode()
    lines = text.splitlines()
    assert "\r" not in text and "\x1b" not in text and "%|" not in text
    assert [line for line in lines if not line.strip() or line != line.strip()] == []
    for what in ("Reading structures: 13 files", "Packing: 13 files"):
        assert any(re.fullmatch(what, line) for line in lines), (what, lines)
