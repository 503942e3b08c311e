"""The report: one self-contained page about one or several runs; or a model card of one.

`write_report` reads the files of the runs (without torch); the chapters are put into words by
`scores`, `findings` and `chapters`, drawn by `charts`, and put on the page by `html`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mtrain import __version__
from mtrain.evaluation.diagnostics import TITLES
from mtrain.languages import primary
from mtrain.report import chapters
from mtrain.report.charts import training_curves
from mtrain.report.facts import RunFacts, put_side_by_side, read_runs
from mtrain.report.findings import calibration_sentence, findings, in_short
from mtrain.report.html import render, render_page
from mtrain.report.scores import how_scored, interval, score_table, significance
from mtrain.run import RunDir
from mtrain.storage import atomic_write

REFRESH_S = 15  # after which a watched page reloads itself


def write_report(paths: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page about some runs; -> its path (by default report.html in the first run)."""
    target = output or _beside(paths[0], "report.html")
    atomic_write(target, page(read_runs(paths)))
    return target


def watch_report(paths: Sequence[Path], output: Path | None = None, every_s: float = 5) -> Path:
    """Rewrite the page whenever a run has new data, until all training has ended.

    Until then the page reloads itself; the last one written, however this ends, does not.
    """
    target = output or _beside(paths[0], "report.html")
    seen: list[list[tuple[str, int]]] = []
    runs = read_runs(paths)
    try:
        while not all(run.is_finished for run in runs):
            if (now := [_stamps(run.run) for run in runs]) != seen:
                atomic_write(target, page(runs, refresh_s=REFRESH_S))
                seen = now
            time.sleep(every_s)
            runs = read_runs(paths)
    finally:
        atomic_write(target, page(runs))
    return target


def write_model_card(path: Path, output: Path | None = None) -> Path:
    """Write a Markdown page about one run; -> its path (by default model_card.md in the run)."""
    target = output or _beside(path, "model_card.md")
    atomic_write(target, model_card(read_runs([path])[0]))
    return target


def _beside(run: Path, name: str) -> Path:
    """In a run directory; beside an exported file."""
    return run.with_suffix(f".{name}") if run.is_file() else run / name


def _stamps(run: RunDir) -> list[tuple[str, int]]:
    """Times of the files that change when a run has new data."""
    shown = [run.metrics, run.scores, run.weights, *run.path.glob("*.json")]
    files = [*shown, *run.translations.glob("*")]
    return sorted((str(path), path.stat().st_mtime_ns) for path in files if path.exists())


def page(runs: Sequence[RunFacts], refresh_s: int = 0) -> str:
    """The page as text; with `refresh_s` it reloads itself that often."""
    labels = [run.label for run in runs]
    is_single = len(runs) == 1
    values = _values(runs)
    return render_page(
        "report.html",
        **values,
        title=" and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]])),
        languages=" · ".join(dict.fromkeys(map(chapters.languages, runs))),
        labels=labels,
        tiles=chapters.tiles(runs[0], values["scores"]) if is_single else [],
        in_short=in_short(runs[0], values["findings"]) if is_single else [],
        in_columns=chapters.in_columns,
        significance=significance(runs, values["test_sets"]),
        fault_titles=TITLES,
        calibration_sentence=calibration_sentence,
        attention=_attention(runs),
        speeds=chapters.speeds(runs),
        curves=training_curves(runs),
        differences=[] if is_single else chapters.config_differences(runs),
        refresh_s=refresh_s,
    )


def model_card(run: RunFacts) -> str:
    """The model card as text."""
    languages = [primary(run.config.source), primary(run.config.target)]
    return render("model_card.jinja", title=run.label, language_codes=languages, **_values([run]))


def _values(runs: Sequence[RunFacts]) -> dict[str, Any]:
    """The values shared by the page and the model card."""
    test_sets, table = put_side_by_side(runs), score_table(runs)
    found = findings(test_sets)
    return {
        "summary": chapters.summary(runs),
        "statuses": [(i, text) for i, run in enumerate(runs) if (text := chapters.status(run))],
        "models": [chapters.model_facts(run) for run in runs],
        "choices": [chapters.choices(run) for run in runs],
        "examples": chapters.examples(test_sets),
        "usage": chapters.usage(runs[0], test_sets),
        "scores": table,
        "how_scored": how_scored,
        "interval": interval,
        "test_sets": test_sets,
        "findings": found,
        "missing": chapters.missing(runs, table, found),
        "trainings": [chapters.training_facts(run) for run in runs],
        "data": chapters.data_chapters(runs),
        "repetitions": [chapters.repetition(run) for run in runs],
        "versions": {"mtrain": __version__, "Python": platform.python_version()}
        | {name: version(name) for name in ("sacrebleu", "numpy", "matplotlib")},
    }


def _attention(runs: Sequence[RunFacts]) -> dict[str, Any]:
    """The sentences whose attention `eval` kept, for attention.js."""
    sentences = []
    for run in runs:
        label = {"label": run.label} if len(runs) > 1 else {}
        sentences += [maps | label for maps in run.run.read_attention()]
    return {"sentences": sentences, "kind": "cross", "layer": None, "heads": "all"}
