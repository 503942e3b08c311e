"""Score a translation of a Multi30k test set as the papers do, and as plain sacreBLEU.

    mtrain translate runs/multi30k-en-de test_2016_flickr.en -o hypothesis.de
    python scripts/score_multi30k.py --hypothesis hypothesis.de --data multi30k --lang de

The papers' way: the output is lowercased, punctuation-normalised and Moses-tokenised, then scored
without further tokenisation against `data/task1/tok` of multi30k/dataset, which was made from the
raw references in these same steps. To show that our steps are theirs, the script first makes that
file anew from the raw reference and prints how many lines differ (none, for de, fr, cs and en).

DIR holds <split>.<lang>.gz and tok/<split>.lc.norm.tok.<lang>.gz. Needs sacremoses.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mtrain.errors import DataError, MtrainError, UsageError
from mtrain.evaluation.given import read_lines
from mtrain.evaluation.metrics import Score, score_all


def main(arguments: list[str] | None = None) -> int:
    """Print both scores; returns the exit code."""
    options = parse(arguments)
    try:
        for line in report(options.hypothesis, options.data, options.lang, options.split):
            print(line)
    except MtrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; its help is this file's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hypothesis", type=Path, required=True, help="translations, one a line")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--lang", choices=["cs", "de", "en", "fr"], required=True)
    parser.add_argument("--split", default="test_2016_flickr")
    return parser.parse_args(arguments)


def report(hypothesis: Path, data: Path, lang: str, split: str) -> list[str]:
    """The lines to print: the check of our steps, then the two scores."""
    raw = read_lines(data / f"{split}.{lang}.gz")
    tokenized = read_lines(data / "tok" / f"{split}.lc.norm.tok.{lang}.gz")
    hypotheses = read_lines(hypothesis)
    if not len(raw) == len(tokenized) == len(hypotheses):
        raise DataError(
            f"{hypothesis} has {len(hypotheses):,} lines, but {split}.{lang} has {len(raw):,}, "
            f"and {len(tokenized):,} tokenised ones",
            f"translate {split} whole, one line for each of its lines",
        )
    made = as_papers(raw, lang)
    n_differing = sum(ours != theirs for ours, theirs in zip(made, tokenized, strict=True))
    papers = score_all(as_papers(hypotheses, lang), tokenized, lang, "none", metrics=["bleu"])
    plain = score_all(hypotheses, raw, lang, metrics=["bleu"])
    return [
        f"{split}.{lang} recreated from the raw reference: "
        f"{n_differing:,} of {len(raw):,} lines differ from tok/",
        in_words("as the papers score it (lc.norm.tok)", papers["bleu"]),
        in_words("plain sacreBLEU (cased, raw)", plain["bleu"]),
    ]


def as_papers(lines: list[str], lang: str) -> list[str]:
    """Lowercase, normalise punctuation and tokenise, as the Moses scripts do for Multi30k."""
    try:
        from sacremoses import MosesPunctNormalizer, MosesTokenizer
    except ImportError as error:
        raise UsageError(
            "scoring Multi30k as the papers do needs sacremoses, which is not installed",
            "pip install sacremoses",
        ) from error
    normalizer = MosesPunctNormalizer(lang, perl_parity=True)
    tokenizer = MosesTokenizer(lang)
    # The Perl script sees each line with its end, and moves a final ." only because of it.
    normalized = (normalizer.normalize(line.lower() + "\n") for line in lines)
    return [tokenizer.tokenize(line, return_str=True) for line in normalized]


def in_words(how: str, score: Score) -> str:
    """One score with its 95 % interval and signature."""
    return f"{how}: BLEU {score.score:.2f} [{score.low:.2f}, {score.high:.2f}] {score.signature}"


if __name__ == "__main__":
    sys.exit(main())
