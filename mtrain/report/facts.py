"""The files of the runs of a report, read once and checked. No torch, no formatting.

What a run does not hold (it was trained by an older version, or is still training) is None or
empty; the chapters say so. `put_side_by_side` reads the test sets that runs have in common, with
each run's translations.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from mtrain import console
from mtrain.config.load import read_run_config
from mtrain.config.root import Config, in_languages
from mtrain.errors import CheckpointError, DataError, UsageError
from mtrain.evaluation.analysis import ANALYSIS, Analysis
from mtrain.evaluation.metrics import statistics
from mtrain.run import RunDir, Split
from mtrain.single_file import FILE, open_tensors, read_note
from mtrain.storage import sha256_of


@dataclass(frozen=True)
class Weights:
    """The weights that `translate` would load, from the header of their file."""

    name: str
    n_parameters: int
    size_bytes: int
    sha256: str  # of the file
    checkpoint: str  # best, last, avg ...
    step: int | None  # None in files of older versions
    valid: dict[str, Any]  # the record of their validation; empty if there was none


@dataclass(frozen=True)
class RunFacts:
    """The contents of one run."""

    path: Path  # as given
    label: str  # its unique name on the page
    run: RunDir
    config: Config
    manifest: dict[str, Any]
    metrics: list[dict[str, Any]]
    scores: dict[str, Any]
    weights: Weights | None

    @property
    def is_finished(self) -> bool:
        """Whether training has ended."""
        return self.run.weights.exists()

    def logged(self, kind: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of one kind: `train`, `valid`, `rival` or `config`."""
        return [record for record in self.metrics if record.get("kind") == kind]


def read_runs(paths: Sequence[Path]) -> list[RunFacts]:
    """Read the runs; a UsageError where a path is not a run, or a run is named twice."""
    runs = [RunDir.open(path) for path in paths]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise UsageError("the same run is named twice", "name each run once")
    names = [path.absolute().name for path in paths]
    labels = [
        name if names.count(name) == 1 else str(path)
        for name, path in zip(names, paths, strict=True)
    ]
    return [_read(run, label) for run, label in zip(runs, labels, strict=True)]


def _read(run: RunDir, label: str) -> RunFacts:
    manifest = run.read_manifest()
    if missing := {"source", "target", "n_train_pairs", "vocab_sizes"} - manifest.keys():
        raise DataError(
            f"{run.manifest} is damaged: it has no `{min(missing)}`",
            "restore the file, or train again",
        )
    for name in [] if run.is_exported else run.splits():
        run.read_split(name)  # checks its hash, even where no chapter shows the text
    return RunFacts(
        path=run.path,
        label=label,
        run=run,
        config=read_run_config(run),
        manifest=manifest,
        metrics=run.read_metrics(),
        scores=run.read_scores(),
        weights=_read_weights(run),
    )


def _read_weights(run: RunDir) -> Weights | None:
    """None before the first checkpoint."""
    try:
        path = run.checkpoint_files(None)[0]
    except CheckpointError:
        return None
    try:
        with open_tensors(path, "np") as file:
            facts = read_note(path, file.metadata())["facts"]
            names = [name for name in file.keys() if not name.startswith(FILE)]  # noqa: SIM118
            shapes = [file.get_slice(name).get_shape() for name in names]
    except CheckpointError:
        if path.exists():
            raise
        return None  # deleted by training in the meantime
    name = path.name if path == run.path else path.relative_to(run.path).as_posix()
    return Weights(
        name=name,
        n_parameters=sum(map(prod, shapes)),
        size_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        checkpoint=facts.get("checkpoint", "last" if "/step-" in name else "best"),
        step=facts.get("step"),
        valid=facts.get("valid", {}),
    )


# -- test sets, sentence by sentence ---------------------------------------------------------


@dataclass(frozen=True)
class Output:
    """The translations of a test set by one run."""

    run: int  # its number among the runs of the report
    translations: list[str]
    chrf: list[float]  # per sentence, in percent
    model_scores: list[float] | None  # log-probability / length^p of each translation
    analysis: Analysis | None  # None in runs of older versions

    def to_json(self) -> dict[str, Any]:
        """Translations, scores and faults for the page."""
        scores = self.model_scores
        found = [] if self.analysis is None else self.analysis.diagnosis.diagnostics
        return {
            "run": self.run,
            "texts": self.translations,
            "chrf": [round(score, 1) for score in self.chrf],
            "scores": None if scores is None else [round(score, 3) for score in scores],
            "faults": {
                fault.name: {
                    "lines": fault.lines,
                    "worst": [[suspect.line, suspect.detail] for suspect in fault.worst],
                }
                for fault in found
                if fault.lines
            },
        }


@dataclass(frozen=True)
class SideBySide:
    """A test set, and the outputs of all runs that translated exactly this text."""

    name: str
    source_lang: str
    target_lang: str
    sources: list[str]
    references: list[str]
    outputs: list[Output]

    def block(self) -> str:
        """All of it for the page, which unpacks it when the test set is chosen: gzip in base64.

        That is a third of the size, and holds no `<`: no sentence can end the block.
        """
        sentences = {
            "sources": self.sources,
            "references": self.references,
            "outputs": [output.to_json() for output in self.outputs],
        }
        data = json.dumps(sentences, ensure_ascii=False, separators=(",", ":"))
        # mtime=0: the same run gives the same page.
        return base64.b64encode(gzip.compress(data.encode(), mtime=0)).decode()


def put_side_by_side(runs: Sequence[RunFacts]) -> list[SideBySide]:
    """The scored test sets (and valid), in the order of the runs: one per text, not per name."""
    by_text: dict[tuple[str, str, str], SideBySide] = {}
    for number, run in enumerate(runs):
        names = [] if run.run.is_exported else run.run.splits()
        for name in sorted(names, key=lambda name: name == "valid"):  # last
            if name not in run.scores:
                continue
            split = run.run.read_split(name)
            languages = in_languages(run.config, split.languages)
            source_lang, target_lang = languages.source, languages.target
            test_set = by_text.setdefault(
                (split.sha256, source_lang, target_lang),
                SideBySide(name, source_lang, target_lang, split.sources, split.references, []),
            )
            test_set.outputs.append(_read_output(number, run, split, target_lang))
    return list(by_text.values())


def _read_output(number: int, run: RunFacts, split: Split, target_lang: str) -> Output:
    """The output of `eval` for a test set; a DataError if it belongs to another text."""
    name = split.name
    fix = f"run {console.command('mtrain', 'eval', run.path, '--split', name)} again"
    lines = run.run.read_translations(name)
    pairs = list(zip(split.sources, split.references, strict=True))
    if [(line.source, line.reference) for line in lines] != pairs:
        raise DataError(
            f"the translations of {name} in {run.run.translations} are of another text", fix
        )
    found = run.run.read_analysis(name)
    try:
        analysis = None if found is None else ANALYSIS.validate_python(found)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"the analysis of {name} in {run.path} is damaged: {reason}", fix
        ) from error
    if analysis is not None and not analysis.fits(len(lines)):
        raise DataError(f"the analysis of {name} in {run.path} is of another text", fix)
    translations = [line.translation for line in lines]
    if analysis is not None:
        chrf = analysis.breakdown.sentence_chrf
    else:
        counts = statistics("chrf", translations, split.references, target_lang)
        chrf = [float(score) for score in counts.of_each()]
    scores = [line.score for line in lines if line.score is not None]
    model_scores = scores if len(scores) == len(lines) else None
    return Output(number, translations, chrf, model_scores, analysis)
