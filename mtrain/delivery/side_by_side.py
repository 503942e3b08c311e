"""Sentence by sentence: the test sets that runs have in common, ready for the page.

The texts of a test set travel as one block of gzip in base64, a third of their size, which the page
unpacks when the test set is chosen. Base64 holds no `<`: nothing in a corpus can end the block.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mtrain.config.root import in_languages
from mtrain.delivery.facts import RunFacts, Translated
from mtrain.evaluation.metrics import statistics


@dataclass(frozen=True)
class Output:
    """What one run made of a test set."""

    run: int  # its number among the runs of the report
    translated: Translated
    target_lang: str

    @cached_property
    def chrf(self) -> list[float]:
        """Of each sentence, in percent."""
        analysis = self.translated.analysis
        if analysis is not None:
            return analysis.breakdown.sentence_chrf
        text = self.translated
        counts = statistics("chrf", text.translations, text.references, self.target_lang)
        return [float(score) for score in counts.of_each()]

    def block(self) -> dict[str, Any]:
        """Translations, scores and faults for the page."""
        analysis, scores = self.translated.analysis, self.translated.model_scores
        found = [] if analysis is None else analysis.diagnosis.diagnostics
        return {
            "run": self.run,
            "texts": self.translated.translations,
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
    """A test set, and the translations of every run that was tested on exactly this text."""

    name: str
    source_lang: str
    target_lang: str
    outputs: list[Output]

    @property
    def text(self) -> Translated:
        """The sources and references, which all outputs share."""
        return self.outputs[0].translated

    def block(self) -> str:
        """All of it for the page: gzip in base64."""
        sentences = {
            "sources": self.text.sources,
            "references": self.text.references,
            "outputs": [output.block() for output in self.outputs],
        }
        data = json.dumps(sentences, ensure_ascii=False, separators=(",", ":"))
        # mtime=0: the same run gives the same page.
        return base64.b64encode(gzip.compress(data.encode(), mtime=0)).decode()


def put_side_by_side(runs: Sequence[RunFacts]) -> list[SideBySide]:
    """The translated test sets in the order of the runs; one for each text, whatever its name."""
    by_text: dict[tuple[str, str, str], SideBySide] = {}
    for number, run in enumerate(runs):
        for translated in run.translated:
            own = in_languages(run.config, translated.languages)
            source_lang, target_lang = own.source, own.target
            key = (translated.sha256, source_lang, target_lang)
            if key not in by_text:
                by_text[key] = SideBySide(translated.name, source_lang, target_lang, [])
            by_text[key].outputs.append(Output(number, translated, target_lang))
    return list(by_text.values())
