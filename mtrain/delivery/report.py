"""One self-contained page about one or several runs: what they are, how good, and how made.

`write_report` reads the files of the runs (no torch), has every chapter worded by `chapters`, drawn
by `curves`, and put on the page by Jinja2, which escapes all text. The page loads nothing; its
content security policy lets no script run but its own, so no sentence of a corpus can.
"""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mtrain import __version__
from mtrain.delivery import chapters, findings
from mtrain.delivery.curves import Line, line_chart
from mtrain.delivery.facts import RunFacts, read_runs
from mtrain.delivery.policy import with_policy
from mtrain.delivery.side_by_side import put_side_by_side
from mtrain.delivery.speeds import speed_chapter
from mtrain.delivery.training_data import data_chapters
from mtrain.evaluation.diagnostics import TITLES
from mtrain.languages import primary
from mtrain.run import RunDir
from mtrain.storage import atomic_write

_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n\r"}
_CONTROLS[0x7F] = "\u2421"
REFRESH_S = 15  # between two readings of a watched page
_CHAPTERS = (
    ("model", "Model"),
    ("scores", "Scores"),
    ("faults", "Faults"),
    ("where", "Where"),
    ("sentences", "Sentences"),
    ("attention", "Attention"),
    ("speed", "Speed"),
    ("training", "Training"),
    ("data", "Data"),
    ("again", "Make it again"),
)


@dataclass(frozen=True)
class Curve:
    """A picture of training, and what it shows."""

    title: str
    caption: str
    svg: Markup


def write_report(paths: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page about some runs; -> where it is (by default report.html in the first run)."""
    target = output or _beside(paths[0], "report.html")
    atomic_write(target, render(read_runs(paths)))
    return target


def watch_report(paths: Sequence[Path], output: Path | None = None, every_s: float = 5) -> Path:
    """Write the page again whenever a run has something new, until all are trained to the end.

    Meanwhile the page reads itself anew; however this ends, the last one written no longer does.
    """
    target = output or _beside(paths[0], "report.html")
    seen: list[list[tuple[str, int]]] = []
    runs = read_runs(paths)
    try:
        while not all(run.is_finished for run in runs):
            if (now := [_stamps(run.run) for run in runs]) != seen:
                atomic_write(target, render(runs, refresh_s=REFRESH_S))
                seen = now
            time.sleep(every_s)
            runs = read_runs(paths)
    finally:
        atomic_write(target, render(runs))
    return target


def write_model_card(path: Path, output: Path | None = None) -> Path:
    """Write the page of one run as Markdown; -> where it is (by default model_card.md there)."""
    target = output or _beside(path, "model_card.md")
    atomic_write(target, render_model_card(read_runs([path])[0]))
    return target


def _beside(run: Path, name: str) -> Path:
    """In a run directory; beside an exported file."""
    return run.with_suffix(f".{name}") if run.is_file() else run / name


def _stamps(run: RunDir) -> list[tuple[str, int]]:
    """What changes when a run has something new to show."""
    shown = [run.metrics, run.scores, run.weights, *run.path.glob("*.json")]
    files = [*shown, *run.translations.glob("*")]
    return sorted((str(path), path.stat().st_mtime_ns) for path in files if path.exists())


def render(runs: Sequence[RunFacts], refresh_s: int = 0) -> str:
    """The page as text; with `refresh_s` it reads itself anew that often."""
    labels = [run.label for run in runs]
    scores = chapters.score_table(runs)
    comparisons = put_side_by_side(runs)
    script = _script()
    return with_policy(
        _environment()
        .get_template("report.html")
        .render(
            title=" and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]])),
            languages=" · ".join(dict.fromkeys(map(chapters.languages, runs))),
            labels=labels,
            summary=chapters.summary(runs),
            statuses=[(i, text) for i, run in enumerate(runs) if (text := chapters.status(run))],
            tiles=chapters.tiles(runs[0], scores) if len(runs) == 1 else [],
            chapters=_CHAPTERS,
            models=[chapters.model_facts(run) for run in runs],
            examples=chapters.examples(comparisons),
            usage=chapters.usage(runs[0]),
            scores=scores,
            significance=findings.significance(runs, comparisons),
            comparisons=comparisons,
            blocks=[comparison.block() for comparison in comparisons],
            fault_titles=TITLES,
            faults=findings.faults(comparisons),
            where=findings.where_it_goes_wrong(comparisons),
            in_short=findings.in_short(runs[0], comparisons) if len(runs) == 1 else [],
            trainings=[chapters.training_facts(run) for run in runs],
            curves=_curves(runs),
            attention=_attention(runs),
            speeds=speed_chapter(runs),
            data=data_chapters(runs),
            differences=chapters.config_differences(runs) if len(runs) > 1 else [],
            again=[chapters.again(run) for run in runs],
            versions=_versions(),
            version=__version__,
            refresh_s=refresh_s,
            script=Markup(script),
        )
    )


def render_model_card(run: RunFacts) -> str:
    """The model card as text."""
    comparisons = put_side_by_side([run])
    return (
        _environment()
        .get_template("model_card.jinja")
        .render(
            title=run.label,
            languages=[primary(run.config.source), primary(run.config.target)],
            summary=chapters.summary([run]),
            status=chapters.status(run),
            model=chapters.model_facts(run),
            usage=chapters.usage(run),
            comparison=comparisons[0] if comparisons else None,
            examples=chapters.examples(comparisons),
            scores=chapters.score_table([run]),
            faults=findings.faults(comparisons),
            data=data_chapters([run])[0],
            training=chapters.training_facts(run),
            again=chapters.again(run),
            version=__version__,
        )
    )


# -- the template ----------------------------------------------------------------------------


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mtrain.delivery"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
    )
    environment.filters |= {
        "side_by_side": chapters.side_by_side,
        "cell": _table_cell,
        "literal": Markup,
    }
    return environment


def _visible(value: Any) -> Any:
    """Control characters, which a page must not hold, as the pictures that Unicode has of them."""
    return value.translate(_CONTROLS) if type(value) is str else value


def _table_cell(text: str) -> Markup:
    """Text in a cell of a Markdown table: on one line, with no mark of Markdown in force."""
    marks = re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", _visible(" ".join(text.split())))
    return Markup(escape(marks))


def _script() -> str:
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, "report.js")[0]


# -- chapters with pictures or commands ------------------------------------------------------


_CURVES = (
    # title, caption, (kind, key, whether few points)
    (
        "Loss",
        "Nats a target token, without label smoothing: in training (solid, with dropout) and on "
        "the validation set (dots).",
        (("train", "nll", False), ("valid", "loss", True)),
    ),
    (
        "Validation BLEU",
        "Real translations, decoded as mtrain eval does.",
        (("valid", "bleu", True),),
    ),
    ("Validation chrF2", "Of the same translations.", (("valid", "chrf", True),)),
    ("Learning rate", "The schedule as it was used.", (("train", "learning_rate", False),)),
    ("Gradient norm", "Before clipping.", (("train", "grad_norm", False),)),
    (
        "Speed",
        "Source and target tokens trained on in a second.",
        (("train", "tokens_per_s", False),),
    ),
)


def _curves(runs: Sequence[RunFacts]) -> list[Curve]:
    """What metrics.jsonl holds, all runs in one picture; none of what it does not hold."""
    curves = []
    for title, caption, series in _CURVES:
        lines = [
            line
            for number, run in enumerate(runs)
            for kind, key, is_dotted in series
            if (line := _line(run, number, kind, key, is_dotted))
        ]
        if lines:
            svg = line_chart(title, lines, may_be_log=title == "Gradient norm")
            curves.append(Curve(title, caption, Markup(svg)))
    return curves


def _attention(runs: Sequence[RunFacts]) -> list[dict[str, Any]]:
    """The sentences whose attention `eval` kept: the run, its text, the maps."""
    found = []
    for number, run in enumerate(runs):
        for maps in run.run.read_attention():
            text = "".join(maps["source"][:-1]).replace("\u2581", " ").strip()
            found.append({"run": number, "text": text, "maps": maps})
    return found


def _line(run: RunFacts, number: int, kind: str, key: str, is_dotted: bool) -> Line | None:
    points = [
        (record["step"], record[key])
        for record in run.logged(kind)
        if record.get(key) is not None  # not finite, or of an older version
    ]
    if not points:
        return None
    steps, values = zip(*points, strict=True)
    return Line(number, steps, values, is_dotted)


def _versions() -> list[chapters.Fact]:
    """Of what wrote this page."""
    names = ("sacrebleu", "numpy", "matplotlib")
    found = {"mtrain": __version__, "Python": platform.python_version()}
    found |= {name: version(name) for name in names}
    return [chapters.Fact(name, value) for name, value in found.items()]
