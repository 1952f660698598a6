"""Libraries that come with extras, as if they were not installed."""

from __future__ import annotations

import sys

import pytest


def hide_libraries(monkeypatch: pytest.MonkeyPatch, *libraries: str) -> None:
    """Make importing the libraries fail, and their parts that were imported before."""
    imported = [name for name in sys.modules if name.split(".")[0] in libraries]
    for name in (*libraries, *imported):
        monkeypatch.setitem(sys.modules, name, None)
