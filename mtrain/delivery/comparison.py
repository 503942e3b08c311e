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

from sacrebleu.metrics.chrf import CHRF

from mtrain.delivery.facts import RunFacts, Translated


@dataclass(frozen=True)
class Output:
    """What one run made of a test set."""

    run: int  # its number among the runs of the report
    translated: Translated

    @cached_property
    def chrf(self) -> list[float]:
        """Of each sentence, in percent, as sacreBLEU's `sentence_chrf` gives it."""
        metric = CHRF()
        pairs = zip(self.translated.translations, self.translated.references, strict=True)
        return [metric.sentence_score(text, [reference]).score for text, reference in pairs]


@dataclass(frozen=True)
class Comparison:
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
        sentences: dict[str, Any] = {
            "sources": self.text.sources,
            "references": self.text.references,
            "outputs": [
                {
                    "run": output.run,
                    "texts": output.translated.translations,
                    "chrf": [round(score, 1) for score in output.chrf],
                    "scores": _rounded(output.translated.model_scores),
                }
                for output in self.outputs
            ],
        }
        data = json.dumps(sentences, ensure_ascii=False, separators=(",", ":"))
        # mtime=0: the same run gives the same page.
        return base64.b64encode(gzip.compress(data.encode(), mtime=0)).decode()


def compare(runs: Sequence[RunFacts]) -> list[Comparison]:
    """The translated test sets in the order of the runs; one for each text, whatever its name."""
    by_text: dict[tuple[str, str, str], Comparison] = {}
    for number, run in enumerate(runs):
        languages = (run.config.source, run.config.target)
        for translated in run.translated:
            key = (translated.sha256, *languages)
            if key not in by_text:
                by_text[key] = Comparison(translated.name, *languages, [])
            by_text[key].outputs.append(Output(number, translated))
    return list(by_text.values())


def _rounded(scores: Sequence[float] | None) -> list[float] | None:
    return None if scores is None else [round(score, 3) for score in scores]
