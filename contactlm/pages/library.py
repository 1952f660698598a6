"""Bokeh, which draws and zooms, brought along inside a page."""

from __future__ import annotations

import base64
import gzip
from functools import cache
from typing import TYPE_CHECKING, Any

from contactlm.types import MissingExtraError

if TYPE_CHECKING:
    from types import ModuleType

EXTRA = "pages"


def load_bokeh() -> ModuleType:
    """Import Bokeh."""
    try:
        import bokeh.plotting
    except ImportError as error:
        raise MissingExtraError("bokeh", EXTRA, str(error)) from error
    return bokeh


@cache
def library_script() -> str:
    """Its part for the browser, compressed (gzip, base64): 0.47 MB instead of 1.27."""
    load_bokeh()
    from bokeh.resources import Resources

    text = "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def plot_item(layout: Any) -> dict[str, Any]:
    """A layout of Bokeh's as JSON values, from which the library draws it in a page."""
    load_bokeh()
    from bokeh.embed import json_item

    return json_item(layout)
