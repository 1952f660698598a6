"""The frame of a page: what comes from data is escaped here, and nothing is fetched from anywhere."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from contactlm.atomic import atomic_path
from contactlm.pages.library import library_script
from contactlm.shipped import __version__

# The browser itself refuses what would go to a network. Bokeh makes functions of strings (unsafe-eval).
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; style-src 'unsafe-inline' blob:; "
    "img-src data: blob: 'self' file:; font-src data:"
)


def write_frame(
    path: str | Path, title: str, body: str, data: Mapping[str, Any], scripts: Sequence[str], library: bool
) -> None:
    """Write a page of a plain title and an HTML body, in which what comes from data went through :func:`escape`.

    ``data`` is what the scripts, of this folder and without ``.js``, read; ``library`` whether they need Bokeh.
    """
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f'<meta name="generator" content="contactlm {__version__}">',
        f"<title>{escape(title)}</title>\n<style>\n{_own('style.css')}</style>\n</head>\n<body>",
        "<noscript>This page draws itself with JavaScript, which is turned off in this browser.</noscript>",
        f'{body}\n<p id="trouble" role="alert" hidden></p>',
        f'<script type="application/json" id="data">{as_script(data)}</script>',
    ]
    if library:
        parts.append(f'<script type="text/plain" id="library">{library_script()}</script>')
    parts += [f"<script>\n{_own(f'{name}.js')}</script>" for name in ("base", *scripts)]
    with atomic_path(Path(path).expanduser()) as temporary:
        temporary.write_text("\n".join([*parts, "</body>\n</html>\n"]), encoding="utf-8", errors="replace")


def escape(text: object) -> str:
    """Text as it may stand in HTML, also between quotes."""
    return html.escape(str(text), quote=True)


def as_script(data: Mapping[str, Any]) -> str:
    """JSON that no text in it can end early: ``<`` is written as an escape."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


@cache
def _own(name: str) -> str:
    return files("contactlm.pages").joinpath(name).read_text(encoding="utf-8")
