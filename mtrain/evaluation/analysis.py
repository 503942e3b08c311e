"""The reasons behind a score: diagnostics and breakdown of one test set, without torch.

Questions about the training data (was this output seen in training, how rare is this word) are
answered from the run and its prepared data, and skipped with a message if these are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from mtrain.config.root import Config, in_languages
from mtrain.data.cleaning import hash_text, normalize
from mtrain.data.store import read_target_hashes
from mtrain.evaluation.breakdown import Breakdown, break_down
from mtrain.evaluation.diagnostics import Diagnosis, diagnose
from mtrain.evaluation.metrics import composed, reference_streams, scoring_of, statistics
from mtrain.run import RunDir, Split


@dataclass(frozen=True)
class Analysis:
    """Why a test set got its scores."""

    diagnosis: Diagnosis
    breakdown: Breakdown

    def fits(self, n_lines: int) -> bool:
        """Whether this can be the analysis of a text with this number of lines."""
        found = [
            line
            for one in self.diagnosis.diagnostics
            for line in (*one.lines, *(suspect.line for suspect in one.worst))
        ]
        chrf = self.breakdown.sentence_chrf
        return (
            self.diagnosis.n_sentences == len(chrf) == n_lines
            and all(0 <= line < n_lines for line in found)
            and all(0 <= score <= 100.001 for score in chrf)
        )


ANALYSIS: TypeAdapter[Analysis] = TypeAdapter(Analysis)  # reads what `asdict` gave


@dataclass(frozen=True)
class TrainingText:
    """The available facts about a run's training text; None if missing."""

    was_seen: Callable[[str], bool] | None  # as a target, word for word
    source_counts: Mapping[str, int] | None  # of words in valid and the test sets

    @classmethod
    def of(cls, run: RunDir) -> TrainingText:
        """Read the facts about a run's training text, if available."""
        directory, counts = run.prepared_data(), run.read_word_counts()
        hashes = None if directory is None else read_target_hashes(directory)
        return cls(
            was_seen=None if hashes is None else _membership(hashes),
            source_counts=None if counts is None else counts["source"],
        )


def analyse(
    split: Split,
    hypotheses: Sequence[str],
    config: Config,
    training: TrainingText,
    model_scores: Sequence[float] | None = None,
) -> Analysis:
    """Diagnose the outputs of one test set, and break its scores down.

    With several references per line, diagnostics use the first one, scores use all.
    """
    sources, hypotheses = composed(split.sources), composed(hypotheses)
    references = reference_streams(split.all_references, len(hypotheses))
    languages = in_languages(config, split.languages)
    diagnosis = diagnose(
        sources,
        hypotheses,
        references[0],
        source_lang=languages.source,
        target_lang=languages.target,
        was_seen=training.was_seen,
    )
    bleu, chrf = (
        statistics(metric, hypotheses, references, *scoring_of(config, split.languages))
        for metric in ("bleu", "chrf")
    )
    breakdown = break_down(
        sources,
        hypotheses,
        references[0],
        bleu,
        chrf,
        model_scores=model_scores,
        training_counts=training.source_counts,
    )
    return Analysis(diagnosis, breakdown)


def _membership(hashes: Any) -> Callable[[str], bool]:
    """Whether a text's hash is among those of the training targets."""
    known = np.sort(hashes)

    def was_seen(text: str) -> bool:
        number = np.uint64(hash_text(normalize(text)))
        at = int(np.searchsorted(known, number))
        return at < len(known) and bool(known[at] == number)

    return was_seen
