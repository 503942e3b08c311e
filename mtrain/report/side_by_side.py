"""Sentence by sentence: the common test sets of the runs, with each run's translations.

The texts of a test set are stored as one block of gzip in base64, a third of their size, which the
page unpacks when the test set is chosen. Base64 holds no `<`: no sentence can end the block.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mtrain import console
from mtrain.config.root import in_languages
from mtrain.errors import DataError
from mtrain.evaluation.analysis import Analysis
from mtrain.evaluation.metrics import statistics
from mtrain.report.facts import RunFacts
from mtrain.run import Split


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
        """The texts and scores for the page: gzip in base64."""
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
        analysis = None if found is None else Analysis.from_json(found)
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
