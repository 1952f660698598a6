"""The figures of ``report.html``, in Bokeh: a line for each run, told apart by arm, whose hover shows its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from contactlm.report.compare import by_arm
from contactlm.report.figure import FIGURES, arm_styles
from contactlm.report.read import Run
from contactlm.report.table import trivial_scores

WIDTH, HEIGHT = 640, 380  # pixels
DASHES = {"-": "solid", "--": "dashed", "-.": "dashdot", ":": "dotted"}
MOST_SHOWN = 8  # options in a hover
SCATTER = "proteins"
TOOLTIP = """<div style="font: 13px/1.45 system-ui, sans-serif; max-width: 420px">
<b>@name</b> &middot; {x} @x{{{format}}}, {y} @y{{0.000 a}}<br>@options</div>"""


def run_figures(runs: Sequence[Run], names: Sequence[str], differing: Mapping[str, Sequence[str]]) -> list[Any]:
    """Cost by step and each score by tokens, where runs tell it.

    Args:
        runs: Runs that may be compared.
        names: What they are called.
        differing: The options in which they differ; see :func:`contactlm.report.options.differing_options`.

    Returns:
        Bokeh's figures ``figure0`` …. What belongs to run k is called ``run<k>``.
    """
    shown = [_options(differing, k) for k in range(len(runs))]
    plots = [_cost(runs, names, shown), *(_score(runs, names, shown, score) for score in FIGURES)]
    plots = [plot for plot in plots if plot.renderers]
    for number, plot in enumerate(plots):
        plot.name = f"figure{number}"
    return plots


def two_a_row(plots: Sequence[Any]) -> Any:
    """A layout of Bokeh's."""
    from bokeh.layouts import column, row

    return column([row(*plots[first : first + 2]) for first in range(0, len(plots), 2)])


def _options(differing: Mapping[str, Sequence[str]], run: int) -> str:
    told = [f"{name} {values[run] or '–'}" for name, values in differing.items() if len(values[run]) <= 60]
    return ", ".join(told[:MOST_SHOWN]) + (", …" if len(told) > MOST_SHOWN else "")


def _plot(title: str, x: str, y: str, log: bool = False) -> Any:
    from bokeh.models import HoverTool, WheelZoomTool
    from bokeh.plotting import figure

    plot = figure(
        title=title,
        width=WIDTH,
        height=HEIGHT,
        x_axis_label=x,
        y_axis_label=y,
        y_axis_type="log" if log else "linear",
        tools="pan,box_zoom,reset,save",
        toolbar_location="above",
        background_fill_color=None,
        border_fill_color=None,
    )
    tip = TOOLTIP.format(x=x.split()[-1], y=y.split(",")[0], format="0.[0]a")
    plot.add_tools(WheelZoomTool(), HoverTool(tooltips=tip, mode="mouse", line_policy="nearest"))
    plot.toolbar.logo = None
    return plot


def _cost(runs: Sequence[Run], names: Sequence[str], shown: Sequence[str]) -> Any:
    plot = _plot("cost of training", "optimizer step", "cumulative GFLOPs", log=True)
    for k, (run, style) in enumerate(_styled(runs)):
        points = [(row["steps"], row["flops"] / 1e9) for row in run.progress if row["flops"]]
        _line(plot, points, k, names[k], shown[k], style)
    return plot


def _score(runs: Sequence[Run], names: Sequence[str], shown: Sequence[str], score: str) -> Any:
    from bokeh.models import NumeralTickFormatter, Span

    plot = _plot(f"{FIGURES[score]}: dev by tokens, cross: test", "training tokens", FIGURES[score])
    plot.xaxis.formatter = NumeralTickFormatter(format="0.[0]a")
    for k, (run, style) in enumerate(_styled(runs)):
        points = [(row["tokens"], row[score]) for row in run.history if row.get(score) is not None]
        _line(plot, points, k, names[k], shown[k], style)
        if score in run.test:
            source = _source([(run.record["tokens"], run.test[score])], names[k], shown[k])
            plot.scatter(
                "x", "y", source=source, marker="x", size=11, line_width=3, color=style["color"], name=f"run{k}"
            )
    trivial = trivial_scores(runs, "dev").get(score, trivial_scores(runs, "test").get(score))
    if trivial is not None:
        plot.add_layout(
            Span(location=trivial, dimension="width", line_color="#888888", line_dash="dotted", line_width=1.5)
        )
    return plot


def _styled(runs: Sequence[Run]) -> list[tuple[Run, dict[str, Any]]]:
    styles = arm_styles(list(by_arm(runs)))
    return [(run, {"color": styles[run.arm]["color"], "dash": DASHES[styles[run.arm]["linestyle"]]}) for run in runs]


def _source(points: Sequence[tuple[float, float]], name: str, options: str) -> Any:
    from bokeh.models import ColumnDataSource

    x, y = ([point[axis] for point in points] for axis in (0, 1))
    return ColumnDataSource({"x": x, "y": y, "name": [name] * len(x), "options": [options] * len(x)})


def _line(
    plot: Any, points: Sequence[tuple[float, float]], run: int, name: str, options: str, style: Mapping[str, Any]
) -> None:
    if points:
        source, whose = _source(points, name, options), f"run{run}"
        plot.line("x", "y", source=source, line_width=2, color=style["color"], line_dash=style["dash"], name=whose)
        plot.scatter("x", "y", source=source, size=4, color=style["color"], name=whose)


def protein_figure() -> Any:
    """A scatter of proteins by two arms' scores, to be filled by the page; its source is called ``proteins``."""
    from bokeh.models import ColumnDataSource, HoverTool, Range1d, Slope, TapTool, WheelZoomTool
    from bokeh.plotting import figure

    plot = figure(
        name="scatter",
        frame_width=430,
        frame_height=430,
        x_range=Range1d(0, 1),
        y_range=Range1d(0, 1),
        tools="pan,box_zoom,reset,save",
        toolbar_location="above",
        x_axis_label="x",
        y_axis_label="y",
        background_fill_color=None,
        border_fill_color=None,
    )
    source = ColumnDataSource({"x": [], "y": [], "id": [], "color": []}, name=SCATTER)
    style = {"size": 9, "color": "color", "line_color": "white", "line_width": 0.5, "alpha": 0.85}
    dots = plot.scatter("x", "y", source=source, nonselection_alpha=0.25, **style)
    plot.add_layout(Slope(gradient=1, y_intercept=0, line_color="#888888", line_dash="dashed"))
    tips = [("protein", "@id"), ("x", "@x{0.000}"), ("y", "@y{0.000}")]
    plot.add_tools(HoverTool(renderers=[dots], tooltips=tips), TapTool(renderers=[dots]), WheelZoomTool())
    plot.toolbar.logo = None
    return plot
