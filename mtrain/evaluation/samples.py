"""A few representative sentences of a test set, chosen automatically, and their attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtrain.data.cleaning import count_words, normalize
from mtrain.run import RunDir
from mtrain.storage import write_json

if TYPE_CHECKING:
    from mtrain.decoding.translate import Translator

# The name of a translation by its quantile of chrF.
GRADES = {"good": 0.75, "typical": 0.5, "poor": 0.25}
_WORDS = range(4, 21)  # of a source: not trivial, and easy to take in
_MOST_PIECES = 60  # of a sentence with attention


def samples(sources: Sequence[str], chrf: Sequence[float]) -> dict[str, int]:
    """Grade -> line (from 0); `chrf` has the score of each sentence."""
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
    """Write the attention of the model on the samples of a test set into the run."""
    from mtrain.decoding.attention import maps_of_ids

    tokenizers = translator.src_tokenizer, translator.tgt_tokenizer
    limit = min(_MOST_PIECES - 1, translator.config.data.max_length)  # except EOS
    kept = []
    for line in samples(sources, chrf).values():
        texts = sources[line], hypotheses[line]
        ids = [t.encode([normalize(text)])[0] for t, text in zip(tokenizers, texts, strict=True)]
        if all(1 <= len(row) <= limit for row in ids):
            kept.append(maps_of_ids(translator, *ids).to_json())
    write_json(run.attention, kept)
