"""A few sentences that stand for a test set, chosen by number and not by eye; their attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtrain.data.cleaning import count_words, normalize
from mtrain.run import RunDir
from mtrain.storage import write_json

if TYPE_CHECKING:
    from mtrain.decoding.translate import Translator

# What a translation is called of which so large a share of the others have a lower chrF.
GRADES = {"good": 0.75, "usual": 0.5, "poor": 0.25}
_WORDS = range(4, 21)  # of a source that shows something, and that is seen at a glance
_MOST_PIECES = 60  # of a sentence whose attention is kept


def samples(sources: Sequence[str], chrf: Sequence[float]) -> dict[str, int]:
    """Grade -> line (from 0); `chrf` is that of each sentence."""
    usual = [line for line, source in enumerate(sources) if count_words(source) in _WORDS]
    ranked = sorted(usual or range(len(sources)), key=lambda line: (chrf[line], line))
    return {grade: ranked[int(share * (len(ranked) - 1))] for grade, share in GRADES.items()}


def keep_attention(
    run: RunDir,
    translator: Translator,
    sources: Sequence[str],
    hypotheses: Sequence[str],
    chrf: Sequence[float],
) -> None:
    """Write what the model looked at in the samples of a test set into the run."""
    from mtrain.decoding.attention import maps_of_ids

    tokenizers = translator.src_tokenizer, translator.tgt_tokenizer
    limit = min(_MOST_PIECES - 1, translator.config.data.max_length)  # but for EOS
    kept = []
    for line in samples(sources, chrf).values():
        texts = sources[line], hypotheses[line]
        ids = [t.encode([normalize(text)])[0] for t, text in zip(tokenizers, texts, strict=True)]
        if all(1 <= len(row) <= limit for row in ids):
            kept.append(maps_of_ids(translator, *ids).to_json())
    write_json(run.attention, kept)
