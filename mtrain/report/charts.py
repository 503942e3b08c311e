"""Charts as SVG, drawn by matplotlib: curves of training, lengths, quality against speed.

An SVG uses the style sheet of the page: the colours here are placeholders that become CSS variables
(`--run-1`, `--soft`, `--rule`), so that one chart serves light, dark and paper.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mtrain.report.facts import RunFacts

N_RUN_COLOURS = 6
N_BARS = 25  # of a histogram; the last one includes all longer sentences
MOST_POINTS = 400  # of a line; more are indistinguishable at this size
_LABELLED_BEAMS = (1, 2, 4, 8)
_METRICS = {"bleu": "BLEU", "chrf": "chrF2"}

_INK, _RULE = "#fe0001", "#fe0002"
_RUNS = [f"#fd000{number}" for number in range(1, N_RUN_COLOURS + 1)]
_VARIABLES = {_INK: "var(--soft)", _RULE: "var(--rule)"} | {
    colour: f"var(--run-{number})" for number, colour in enumerate(_RUNS, 1)
}
_STYLE: dict[Any, Any] = {
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 8.5,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
}


# -- training --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A curve of one run."""

    run: int  # its number among the runs of the report, which gives the colour
    x: Sequence[float]
    y: Sequence[float]
    has_markers: bool = False  # few points, each of them marked


_CURVES = (
    # title, caption, (kind of log line, key, whether its points are marked)
    (
        "Loss",
        "In nats per target token, without label smoothing: in training (solid, with dropout) and "
        "on the validation set (dots).",
        (("train", "nll", False), ("valid", "loss", True)),
    ),
    (
        "Validation BLEU",
        "Of translations of the validation set, decoded as in mtrain eval.",
        (("valid", "bleu", True),),
    ),
    ("Validation chrF2", "Of the same translations.", (("valid", "chrf", True),)),
    ("Learning rate", "At each step.", (("train", "learning_rate", False),)),
    ("Gradient norm", "Before clipping.", (("train", "grad_norm", False),)),
    ("Speed", "Source and target tokens per second.", (("train", "tokens_per_s", False),)),
)


def training_curves(runs: Sequence[RunFacts]) -> list[dict[str, str]]:
    """`title`, `svg` and `caption` of a chart per quantity in metrics.jsonl, for all runs."""
    curves = []
    for title, caption, series in _CURVES:
        lines = []
        for number, run in enumerate(runs):
            for kind, key, has_markers in series:
                # A value is null where it was not finite, and missing in older runs.
                known = [record for record in run.logged(kind) if record.get(key) is not None]
                x, y = [record["step"] for record in known], [record[key] for record in known]
                lines += [Line(number, x, y, has_markers)] if known else []
        if lines:
            svg = line_chart(title, lines, may_be_log=title == "Gradient norm")
            curves.append({"title": title, "svg": svg, "caption": caption})
    return curves


def line_chart(title: str, lines: Sequence[Line], may_be_log: bool = False) -> Markup:
    """Lines over the training steps, as an `<svg>` for a page; `title` is its accessible name.

    With `may_be_log` the scale is logarithmic where values span more than two powers of ten.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.0, 2.3))
        axes = figure.subplots()
        for line in lines:
            x, y = thinned(line.x, line.y)
            axes.plot(x, y, "o--" if line.has_markers else "-", color=run_colour(line.run))
        values = [value for line in lines for value in line.y]
        if may_be_log and min(values) > 0 and max(values) > 100 * min(values):
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        axes.set_xlabel("step")
        return _for_page(figure, title)


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means of neighbouring points if there are more than can be seen."""
    size = -(-len(x) // MOST_POINTS)
    if size <= 1:
        return list(x), list(y)
    groups = [slice(start, start + size) for start in range(0, len(x), size)]
    return [float(np.mean(x[g])) for g in groups], [float(np.mean(y[g])) for g in groups]


# -- data ------------------------------------------------------------------------------------


def length_chart(title: str, sides: Sequence[Sequence[int]]) -> Markup:
    """A histogram of sentence lengths: `sides[0][n]` sources have n pieces."""
    cumulative = [np.cumsum(counts) for counts in sides]
    longest = max(int(np.searchsorted(total, 0.995 * total[-1])) for total in cumulative)
    width = max(1, -(-longest // N_BARS))  # pieces per bar
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.0, 2.3))
        axes = figure.subplots()
        for side, counts in enumerate(sides):
            shown = [sum(counts[i : i + width]) for i in range(0, longest + 1, width)]
            shown[-1] += sum(counts[len(shown) * width :])
            left = [(i + 0.05 + 0.45 * side) * width for i in range(len(shown))]
            axes.bar(left, shown, 0.45 * width, align="edge", color=run_colour(side))
        axes.set_xlabel("pieces")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        return _for_page(figure, title)


# -- quality against speed -------------------------------------------------------------------


@dataclass(frozen=True)
class System:
    """One engine and precision, with its quality and speed by beam (the points of sweep.json)."""

    name: str
    own: list[Mapping[str, Any]]  # with the run's length penalty, by beam
    others: list[Mapping[str, Any]]  # with other length penalties


def systems(points: Sequence[Mapping[str, Any]], prefix: str = "") -> list[System]:
    """The points of one sweep by system; its first point has the run's length penalty."""
    found: dict[str, System] = {}
    for point in points:
        name = f"{prefix}{point['engine']} {point['precision']}"
        system = found.setdefault(name, System(name, [], []))
        is_own = point["length_penalty"] == points[0]["length_penalty"]
        (system.own if is_own else system.others).append(point)
    return list(found.values())


def speed_charts(shown: Sequence[System]) -> list[Markup]:
    """BLEU and chrF2 against speed, as an `<svg>` each."""
    charts = []
    with mpl.rc_context(_STYLE):
        for metric, name in _METRICS.items():
            figure = Figure(figsize=(4.4, 3.0))
            _draw_speeds(figure.subplots(), shown, metric)
            charts.append(_for_page(figure, f"{name} against speed"))
    return charts


def _draw_speeds(axes: Axes, shown: Sequence[System], metric: str) -> None:
    """A line per system through its beams; other length penalties as crosses."""
    for number, system in enumerate(shown):
        colour = run_colour(number)
        for points, style in ((system.own, "o-"), (system.others, "x")):
            axes.plot(
                [point["sentences_per_s"] for point in points],
                [point[metric] for point in points],
                style,
                color=colour,
                alpha=1 if points is system.own else 0.45,
            )
        for point in system.own + system.others:
            place = (point["sentences_per_s"], point[metric])
            if point["beam"] in _LABELLED_BEAMS and point in system.own:
                offset: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points"}
                axes.annotate(str(point["beam"]), place, **offset, ha="center", color=colour)
            if point["recommended"]:
                axes.plot(*place, "o", ms=10, mfc="none", mec=_INK)
    axes.margins(0.08)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    axes.set_xlabel("sentences per second")
    axes.set_ylabel(_METRICS[metric])


# -- SVG -------------------------------------------------------------------------------------


def run_colour(run: int) -> str:
    """The placeholder for the colour of a run, by its number."""
    return _RUNS[run % N_RUN_COLOURS]


def short_number(value: float) -> str:
    """1500 -> '1.5k', 20000 -> '20k', 0.0025 -> '0.0025'"""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{unit}"
    return f"{value:.4g}"


def picture_bytes(figure: Figure, format: str, salt: str, **options: Any) -> bytes:
    """A figure as PNG or SVG, the same bytes for the same figure."""
    names = ("Date", "Creator", "Format", "Type") if format == "svg" else ("Software",)
    buffer = io.BytesIO()
    # The salt keeps the ids of several SVGs in one page apart.
    with mpl.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format=format, metadata=dict.fromkeys(names), **options)
    return buffer.getvalue()


def _for_page(figure: Figure, title: str) -> Markup:
    """A figure as an element of a page: scalable, named, in the page's colours and font."""
    with mpl.rc_context({"svg.fonttype": "none"}):  # text stays text
        svg = picture_bytes(figure, "svg", title, transparent=True).decode()
    for placeholder, colour in _VARIABLES.items():
        svg = svg.replace(placeholder, colour)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would style the whole page
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # matplotlib's ids are not unique
    size = r' width="[^"]*pt" height="[^"]*pt"'
    svg = re.sub(size, f' role="img" aria-label="{escape(title)}"', svg, count=1)
    svg = re.sub(r"font(-family)?: ([\d.]+px) [^;\"]*", r"font-size: \2", svg)
    svg = re.sub(r"font-family: [^;]*;? ?", "", svg)
    return Markup(re.sub(r"\s*\n\s*", " ", svg))
