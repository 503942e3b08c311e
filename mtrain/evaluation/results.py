"""The result of one test set, and what a run keeps of it: scores, translations, some attention."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mtrain import console
from mtrain.config.root import Config
from mtrain.data.cleaning import count_words, normalize
from mtrain.errors import StorageError
from mtrain.evaluation.analysis import Analysis
from mtrain.evaluation.comparison import Comparison
from mtrain.evaluation.metrics import Score
from mtrain.run import RunDir, ScoreKey, Split
from mtrain.storage import atomic_write, write_json

if TYPE_CHECKING:
    from mtrain.decoding.translate import Translator

# The name of a translation by its quantile of chrF.
GRADES = {"good": 0.75, "typical": 0.5, "poor": 0.25}
_WORDS = range(4, 21)  # of a source: not trivial, and easy to take in
_MOST_PIECES = 60  # of a sentence with attention


@dataclass(frozen=True)
class Evaluation:
    """One test set, translated and scored."""

    split: Split  # without sources if only a hypothesis was given
    scores: dict[str, Score]  # bleu, chrf, ter; comet if requested
    hypotheses: list[str]
    model_scores: list[float] | None = None  # log-probability / length^p of each hypothesis
    facts: dict[str, Any] = field(default_factory=dict)  # next to the scores in JSON
    analysis: Analysis | None = None  # None in validation, and without sources
    comparison: Comparison | None = None  # if requested
    kept_as: str | None = None  # its key in the run's scores.json

    def to_json(self) -> dict[str, Any]:
        """Metric -> score, low, high, signature; also the facts and the comparison."""
        scores = {name: asdict(score) for name, score in self.scores.items()}
        against = {} if self.comparison is None else {"against": self.comparison.to_json()}
        return scores | self.facts | against


def keep(result: Evaluation, run: RunDir, config: Config) -> Evaluation:
    """Write the scores, translations and analysis of a split into the run.

    The key in scores.json is the name of the split, followed by the settings that differ from the
    run's own, as `flickr[beam_size=1]`. The same settings replace the earlier scores. In a
    read-only run nothing is written, with a warning.
    """
    try:
        with run.scores_locked():
            return replace(result, kept_as=_keep(result, run, config))
    except StorageError as error:
        console.warn(f"the scores of {result.split.name} are not kept in the run: {error.message}")
        return result


def keep_comparison(result: Evaluation, run: RunDir) -> None:
    """Add a comparison to the recorded scores of the run."""
    if result.kept_as is None or result.comparison is None:
        return
    with run.scores_locked():
        scores = run.read_scores()
        scores[result.kept_as] |= {"against": result.comparison.to_json()}
        write_json(run.scores, scores)


def own_checkpoint(run: RunDir) -> str:
    """The name of the weights that a run uses by default.

    The checkpoint chosen at the end of training, such as `avg`; until then, and for an exported
    file, which does not record it, `best`.
    """
    if not run.weights.exists():
        return "best"
    from mtrain.model.weights import read_facts

    return str(read_facts(run.weights).get("checkpoint", "best"))


def _keep(result: Evaluation, run: RunDir, config: Config) -> str:
    """The key in scores.json."""
    name, checkpoint, used = result.split.name, result.facts["checkpoint"], result.facts["decode"]
    own = {"beam_size": config.decode.beam_size, "length_penalty": config.decode.length_penalty}
    changed = [f"{key}={used[key]}" for key in own if used[key] != own[key]]
    named = [] if checkpoint == own_checkpoint(run) else [f"checkpoint={checkpoint}"]
    key = str(ScoreKey(name, (*named, *changed)))
    stem = ".".join([name, checkpoint, *changed])
    scores = run.read_scores()
    _warn_of_another_text(scores.get(key, {}), key, run, result.split)
    _keep_translations(run, stem, result)
    scores[key] = result.to_json() | {"translations": stem}
    write_json(run.scores, scores)
    return key


def _keep_translations(run: RunDir, stem: str, result: Evaluation) -> None:
    """The translations as text, as JSON lines with their sources, and their analysis."""
    assert result.model_scores is not None
    assert result.analysis is not None
    split = result.split
    columns = (split.sources, split.references, result.hypotheses, result.model_scores)
    keys = ("source", "reference", "translation", "score")
    rows = (dict(zip(keys, values, strict=True)) for values in zip(*columns, strict=True))
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    for suffix, texts in (("txt", result.hypotheses), ("jsonl", lines)):
        atomic_write(run.translations / f"{stem}.{suffix}", "".join(f"{t}\n" for t in texts))
    write_json(run.translations / f"{stem}.analysis.json", asdict(result.analysis))


def _warn_of_another_text(entry: dict[str, Any], key: str, run: RunDir, split: Split) -> None:
    before = entry.get("test_set_sha256", split.sha256)
    if before != split.sha256:
        console.warn(
            f"the text of `{key}` has changed since it was last scored (sha256 {before[:12]}, now "
            f"{split.sha256[:12]}): its old scores in {run.scores} are replaced, and cannot be "
            "compared with the new ones"
        )


# -- a few sentences -------------------------------------------------------------------------


def samples(sources: Sequence[str], chrf: Sequence[float]) -> dict[str, int]:
    """Grade -> line (from 0); `chrf` has the score of each sentence."""
    usual = [line for line, source in enumerate(sources) if count_words(source) in _WORDS]
    ranked = sorted(usual or range(len(sources)), key=lambda line: (chrf[line], line))
    return {grade: ranked[int(share * (len(ranked) - 1))] for grade, share in GRADES.items()}


def keep_attention(run: RunDir, translator: Translator, result: Evaluation) -> None:
    """Write the attention of the model on the samples of a test set into the run."""
    from mtrain.decoding.attention import maps_of_ids

    assert result.analysis is not None
    sources, chrf = result.split.sources, result.analysis.breakdown.sentence_chrf
    tokenizers = translator.src_tokenizer, translator.tgt_tokenizer
    limit = min(_MOST_PIECES - 1, translator.config.data.max_length)  # except EOS
    kept = []
    for line in samples(sources, chrf).values():
        texts = sources[line], result.hypotheses[line]
        ids = [t.encode([normalize(text)])[0] for t, text in zip(tokenizers, texts, strict=True)]
        if all(1 <= len(row) <= limit for row in ids):
            kept.append(maps_of_ids(translator, *ids).to_json())
    try:
        write_json(run.attention, kept)
    except StorageError as error:
        console.warn(f"the attention of {result.split.name} is not kept: {error.message}")
