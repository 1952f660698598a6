"""Names of this package in docstrings, comments, configs and benchmarks are names of something."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name

import pytest

import contactlm

PACKAGE = Path(contactlm.__file__).parent
BENCHMARKS = sorted((Path(__file__).parent / "benchmarks").glob("bench_*.py"))
FILES = [*sorted(PACKAGE.rglob("*.py")), *BENCHMARKS, *sorted((PACKAGE.parent / "lightning_configs").glob("*.yaml"))]
OTHERS = {"contactlm.json", "contactlm.module.ContactModule"}  # a file of an export; what older checkpoints say
NAME = re.compile(r"(?<![\w./-])contactlm(?:\.\w+)+")
IMPORT = re.compile(r"from (contactlm[\w.]*|tests[\w.]*) import (\([^)]*\)|[^\n]+)")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_names_mean_something(file: Path) -> None:
    for name in set(NAME.findall(file.read_text())) - OTHERS:
        resolve_name(name)


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_what_benchmarks_import_is_there(file: Path) -> None:
    """Also what they import late, and in code for processes of their own."""
    found = IMPORT.findall(file.read_text())
    for module, names in found:
        for name in re.findall(r"\w+", re.sub(r" as \w+|#.*", "", names)):
            assert hasattr(import_module(module), name) or import_module(f"{module}.{name}")
    assert found
