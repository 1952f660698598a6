"""Pages of contact maps: their size, how long they take to write and to load in headless Chromium.

    python tests/benchmarks/bench_pages.py --lengths 100 1000 4000
    python tests/benchmarks/bench_pages.py --lengths 1000 4000 --libraries

Maps are made of distances in a random chain, with noise, and with labels: 6 to 10 contacts a residue.
`--libraries` compares instead what a plain heat map costs in Bokeh and, where it is installed, in Plotly, each inlined.
Times of loading run from the start of navigation to the second frame after everything is drawn: the first of a browser
session, the best of three more, and the processor seconds of the first. Needs selenium, and Debian's chromium and
chromium-driver.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contactlm import ContactMap, contact_map
from tests.browser import open_browser

RESIDUE_VOLUME = 520.0  # Å³: of residues that may overlap; it makes 6 to 10 contacts a residue, more than proteins have
READY = """
<script>(function wait() {
  if (%s) requestAnimationFrame(() => requestAnimationFrame(() => {
    document.documentElement.dataset.ready = String(Math.round(performance.now()));
  })); else setTimeout(wait, 5);
})();</script>"""


def made_map(length: int, seed: int = 0) -> ContactMap:
    """A map with labels, of a compact random chain."""
    rng = np.random.default_rng(seed)
    radius = (length * RESIDUE_VOLUME * 3 / (4 * np.pi)) ** (1 / 3)
    steps, cb = rng.normal(size=(length, 3)), np.zeros((length, 3))
    for i in range(1, length):  # a walk that turns back at the surface of a ball
        outside = np.linalg.norm(cb[i - 1]) > radius
        step = steps[i] - (2.0 * cb[i - 1] / radius if outside else 0.0)
        cb[i] = cb[i - 1] + 3.8 * step / np.linalg.norm(step)
    squared = sum((cb[:, None, axis] - cb[None, :, axis]) ** 2 for axis in range(3))
    logits = np.triu((8.0 - np.sqrt(squared)) * 0.7 + rng.normal(0, 1.5, (length, length)), 1).astype(np.float32)
    probability = 1 / (1 + np.exp(-np.clip(logits + logits.T, -30, 30)))
    return ContactMap(f"made_{length}", "A" * length, probability, contact_map(cb), how={"model": "distances, noise"})


def write_bokeh(values: NDArray[np.uint8], path: Path) -> None:
    """A plain heat map in Bokeh."""
    from bokeh.embed import file_html
    from bokeh.plotting import figure
    from bokeh.resources import INLINE

    plot = figure(width=700, height=700, tools="pan,wheel_zoom,hover,reset")
    plot.image([values], x=0, y=0, dw=len(values), dh=len(values), palette="Viridis256")
    ready = READY % "window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle"
    path.write_text(file_html(plot, INLINE, "bokeh").replace("</body>", f"{ready}</body>"), encoding="utf-8")


def write_plotly(values: NDArray[np.uint8], path: Path) -> None:
    """A plain heat map in Plotly."""
    import plotly.graph_objects as go

    plot = go.Figure(go.Heatmap(z=values), {"width": 700, "height": 700})
    text = plot.to_html(include_plotlyjs=True)
    ready = READY % "document.querySelector('.js-plotly-plot .hm')"
    path.write_text(text.replace("</body>", f"{ready}</body>"), encoding="utf-8")


def pages(length: int, libraries: bool) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """What is measured at a length: a name, and what writes the page."""
    made = made_map(length)
    if not libraries:
        yield "contactlm", made.save
        return
    values = np.round(255 * made.probability).astype(np.uint8)
    yield "Bokeh", lambda path: write_bokeh(values, path)
    if importlib.util.find_spec("plotly"):
        yield "Plotly", lambda path: write_plotly(values, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[100, 1000, 4000])
    parser.add_argument("--libraries", action="store_true", help="plain heat maps in the libraries, instead of pages")
    args = parser.parse_args()
    print(f"{'page':<10} {'residues':>8} {'MB':>7} {'write s':>8} {'first s':>8} {'again s':>8} {'CPU s':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for length in args.lengths:
            for name, write in pages(length, args.libraries):
                path = Path(folder) / "page.html"
                began = time.perf_counter()
                write(path)
                written = time.perf_counter() - began
                with open_browser(Path(folder)) as browser:
                    first, busy = browser.open(path) / 1000, browser.busy()
                    again = min(browser.open(path) / 1000 for _ in range(3))
                size = path.stat().st_size / 1e6
                times = f"{written:>8.2f} {first:>8.2f} {again:>8.2f} {busy:>6.2f}"
                print(f"{name:<10} {length:>8} {size:>7.2f} {times}", flush=True)


if __name__ == "__main__":
    main()
