"""Curves of training as SVG, drawn by matplotlib, in the colours of the page they stand in.

An SVG inside a page can use its style sheet. So the colours here are stand-ins which become CSS
variables (`--run-1`, `--soft`, `--rule`), and one picture serves light, dark and paper.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

N_RUN_COLOURS = 6
N_BARS = 25  # of a histogram; the last one holds all that is longer
MOST_POINTS = 400  # of a line; more cannot be told apart at this size

_INK, _RULE, _PAPER = "#fe0001", "#fe0002", "#fe0003"
_RUNS = [f"#fd000{number}" for number in range(1, N_RUN_COLOURS + 1)]
_VARIABLES = {_INK: "var(--soft)", _RULE: "var(--rule)", _PAPER: "var(--paper)"} | {
    colour: f"var(--run-{number})" for number, colour in enumerate(_RUNS, 1)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
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
}


@dataclass(frozen=True)
class Line:
    """A curve of one run."""

    run: int  # its number among the runs of the report, which gives the colour
    x: Sequence[float]
    y: Sequence[float]
    is_dotted: bool = False  # few points, each of them marked


def line_chart(title: str, lines: Sequence[Line], may_be_log: bool = False) -> str:
    """Lines over the training steps, as an `<svg>` to stand in a page; `title` says what it is.

    With `may_be_log` the scale is logarithmic where values span more than two powers of ten.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.0, 2.3), layout="constrained")
        axes = figure.subplots()
        for line in lines:
            x, y = thinned(line.x, line.y)
            axes.plot(x, y, "o--" if line.is_dotted else "-", color=run_colour(line.run), ms=3.5)
        if may_be_log and _spans_powers_of_ten(lines):
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        axes.set_xlabel("step")
        return to_svg(figure, title)


# Of one system: sentences a second, BLEU, beam, whether it is recommended.
Series = list[tuple[float, float, int, bool]]


def speed_chart(title: str, systems: Sequence[Series]) -> str:
    """A line a system, from beam to beam, as an `<svg>`; the recommended way is filled."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.0, 3.2), layout="constrained")
        axes = figure.subplots()
        for number, points in enumerate(systems):
            colour = run_colour(number)
            axes.plot([point[0] for point in points], [point[1] for point in points], c=colour)
            for speed, bleu, beam, is_recommended in points:
                face = colour if is_recommended else _PAPER
                axes.plot(speed, bleu, "o", ms=9 if is_recommended else 5, mec=colour, mfc=face)
                if is_recommended or beam == 1:
                    axes.annotate(
                        f"beam {beam}",
                        (speed, bleu),
                        xytext=(0, 8),
                        textcoords="offset points",
                        ha="center",
                    )
        axes.margins(0.12)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        axes.set_xlabel("sentences a second")
        axes.set_ylabel("BLEU")
        return to_svg(figure, title)


def length_chart(title: str, sides: Sequence[Sequence[int]]) -> str:
    """How many sentences are how long, as an `<svg>`: `sides[0][n]` sources of n pieces."""
    longest = max(_quantile(counts, 0.995) for counts in sides)
    width = max(1, -(-longest // N_BARS))  # pieces in a bar
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.0, 2.3), layout="constrained")
        axes = figure.subplots()
        for side, counts in enumerate(sides):
            shown = [sum(counts[i : i + width]) for i in range(0, longest + 1, width)]
            shown[-1] += sum(counts[len(shown) * width :])
            left = [(i + 0.05 + 0.45 * side) * width for i in range(len(shown))]
            axes.bar(left, shown, 0.45 * width, align="edge", color=run_colour(side))
        axes.set_xlabel("pieces")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        return to_svg(figure, title)


def _quantile(counts: Sequence[int], share: float) -> int:
    """The least length at which `share` of the sentences have been counted."""
    return int(np.searchsorted(np.cumsum(counts), share * sum(counts)))


def _spans_powers_of_ten(lines: Sequence[Line]) -> bool:
    values = [value for line in lines for value in line.y]
    return min(values) > 0 and max(values) > 100 * min(values)


def run_colour(run: int) -> str:
    """The stand-in for the colour of a run, by its number."""
    return _RUNS[run % N_RUN_COLOURS]


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means of neighbouring points where there are more than can be seen."""
    size = -(-len(x) // MOST_POINTS)
    if size <= 1:
        return list(x), list(y)
    groups = [slice(start, start + size) for start in range(0, len(x), size)]
    return [float(np.mean(x[g])) for g in groups], [float(np.mean(y[g])) for g in groups]


def short_number(value: float) -> str:
    """1500 -> '1.5k', 20000 -> '20k', 0.0025 -> '0.0025'"""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{unit}"
    return f"{value:.4g}"


def to_svg(figure: Figure, title: str) -> str:
    """A figure as an element of a page: scalable, named, in the page's colours."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # The salt parts the ids of one picture from those of another in the same page.
    with mpl.rc_context(_STYLE | {"svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would style the whole page
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # matplotlib's names repeat
    svg = re.sub(
        r' width="[^"]*pt" height="[^"]*pt"',
        f' role="img" aria-label="{escape(title)}"',
        svg,
        count=1,
    )
    svg = re.sub(r"font(-family)?: ([\d.]+px) [^;\"]*", r"font-size: \2", svg)
    svg = re.sub(r"font-family: [^;]*;? ?", "", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    return svg
