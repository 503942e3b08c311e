"""Scores are sacreBLEU's to the last digit, and say what they are."""

import json
import logging
import os
import random
import re
import subprocess
import sys
import unicodedata
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers import tokenizer_spm

from mtrain.config.sections import BleuTokenizer
from mtrain.errors import DataError, UsageError
from mtrain.evaluation import metrics
from mtrain.evaluation.metrics import bleu_tokenizer, notices, score_all, statistics

GERMAN = re.findall(r"\S+", "Der kleine Hund läuft schnell über die grüne Wiese und bellt laut.")
CHINESE = list("一只小狗在绿色的草地上快跑,对着猫叫。")


def make_corpus(words: list[str], joiner: str, n_lines: int = 60) -> tuple[list[str], list[str]]:
    """Hypotheses that resemble their references: words dropped, swapped and upper-cased."""
    rng = random.Random(7)
    hypotheses, references = [], []
    for _ in range(n_lines):
        reference = rng.sample(words, rng.randint(3, len(words)))
        hypothesis = [word for word in reference if rng.random() > 0.15]
        if rng.random() < 0.4:
            hypothesis = hypothesis[2:] + hypothesis[:2]
        if rng.random() < 0.3:
            hypothesis = [word.upper() for word in hypothesis]
        hypotheses.append(joiner.join(hypothesis))
        references.append(joiner.join(reference))
    return hypotheses, references


def run_sacrebleu(
    directory: Path, hypotheses: list[str], references: list[list[str]], *options: str
) -> dict[str, dict[str, object]]:
    """What the command line prints with 12 decimals: metric -> its JSON."""
    names = [f"ref{number}" for number in range(len(references))]
    for name, lines in zip(["hyp", *names], [hypotheses, *references], strict=True):
        (directory / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", *names, "-i", "hyp", "-m", "bleu", "chrf", "ter"]
    done = subprocess.run(
        [*command, "--confidence", "-w", "12", *options],
        cwd=directory,
        env={key: value for key, value in os.environ.items() if key != "SACREBLEU_SEED"},
        capture_output=True,
        check=True,
    )
    ours = {"BLEU": "bleu", "chrF2": "chrf", "TER": "ter"}
    return {ours[entry["name"]]: entry for entry in json.loads(done.stdout)}


@pytest.mark.parametrize("n_references", [1, 2, 3])
@pytest.mark.parametrize(
    ("language", "lowercase", "options"),
    [
        ("de", False, []),
        ("de", True, ["--lowercase", "--chrf-lowercase"]),
        ("zh", False, ["--tokenize", "zh", "--ter-normalized", "--ter-asian-support"]),
        ("jpn_Jpan", False, ["--tokenize", "char", "--ter-normalized", "--ter-asian-support"]),
    ],
)
def test_every_digit_of_the_command_line(
    tmp_path, monkeypatch, language, lowercase, options, n_references
):
    monkeypatch.setenv("SACREBLEU_SEED", "1")  # which would change the intervals
    monkeypatch.setattr(metrics, "_is_installed", lambda tokenizer: False)  # MeCab
    words, joiner = (GERMAN, " ") if language == "de" else (CHINESE, "")
    hypotheses, reference = make_corpus(words, joiner)
    others = [make_corpus(words[n:], joiner)[0] for n in range(1, n_references)]
    references = [reference, *others]
    expected = run_sacrebleu(tmp_path, hypotheses, references, *options)
    given = reference if n_references == 1 else references
    scores = score_all(hypotheses, given, language, lowercase=lowercase)
    assert list(scores) == ["bleu", "chrf", "ter"]
    for name, score in scores.items():
        assert score.score == pytest.approx(expected[name]["score"], abs=1e-12)
        assert score.signature == expected[name]["signature"]
        assert score.signature.startswith(f"nrefs:{n_references}|bs:1000|seed:12345|")
        assert score.low is not None
        assert score.high is not None
        mean, half_width = expected[name]["confidence_mean"], expected[name]["confidence_var"]
        assert (score.low + score.high) / 2 == pytest.approx(mean, abs=1e-11)
        assert (score.high - score.low) / 2 == pytest.approx(half_width, abs=1e-11)
        assert 0 < score.low < score.score < score.high
    assert os.environ["SACREBLEU_SEED"] == "1"


@pytest.mark.parametrize(
    ("text", "language"),
    [("Tôi đã thấy một con chó nhỏ ở đó.", "vi"), ("ড়া পাড়ায় সে গাড়ি চড়ে, বড়ো বাড়ি।", "bn")],
)
@pytest.mark.parametrize("form", ["NFD", "NFC"])
def test_text_is_compared_in_one_normal_form(text, language, form):
    composed = unicodedata.normalize("NFC", text)
    other = unicodedata.normalize(form, text)
    for texts in ([composed], [other]), ([other], [composed]), ([other], [[composed], [other]]):
        scores = score_all(*texts, language)
        assert [scores[name].score for name in scores] == pytest.approx([100, 100, 0])
        assert statistics("chrf", *texts, language).score([0]) == pytest.approx(100)


def test_several_references_have_as_many_lines_each():
    with pytest.raises(DataError, match="2 hypotheses cannot be scored against 1 references"):
        score_all(["a", "b"], [["a", "b"], ["a"]], "de")


def test_closed_forms():
    scores = score_all(["a b c d e"], ["a b c d f"], "en", intervals=False)
    # n-gram precisions 4/5, 3/4, 2/3, 1/2; one substitution in five words
    assert scores["bleu"].score == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert scores["ter"].score == pytest.approx(20.0)
    # without spaces, character n-gram precisions = recalls: 4/5, 3/4, 2/3, 1/2, 0/1 (n = 1 to 5)
    assert scores["chrf"].score == pytest.approx(100 * (4 / 5 + 3 / 4 + 2 / 3 + 1 / 2 + 0) / 5)


def test_a_perfect_translation():
    lines = ["Ein Hund schläft auf dem Sofa.", "Zwei Kinder spielen im Garten."]
    scores = score_all(lines, lines, "de")
    for name, best in (("bleu", 100), ("chrf", 100), ("ter", 0)):
        score = scores[name]
        assert [score.score, score.low, score.high] == pytest.approx([best] * 3)


def test_empty_lines_are_scored():
    """sacreBLEU 2.6 itself ends in a TypeError where a resample holds no reference at all."""
    for hypotheses, references in product((["a b c", "d"], ["a b c", ""]), repeat=2):
        scores = score_all(hypotheses, references, "de")
        assert 0 <= scores["chrf"].score <= 100
        assert all(score.high is not None for score in scores.values())


@pytest.mark.parametrize("hypothesis", ["", "völlig anders"])
def test_a_useless_translation_scores_without_complaint(hypothesis):
    scores = score_all([hypothesis], ["Ein Hund schläft."], "de")
    assert scores["bleu"].score == scores["bleu"].low == scores["bleu"].high == 0
    assert scores["ter"].score == 100


def test_without_intervals_scores_are_the_same():
    corpus = make_corpus(GERMAN, " ", 10)
    with_intervals = score_all(*corpus, "de")
    without = score_all(*corpus, "de", intervals=False, metrics=("bleu", "chrf"))
    assert list(without) == ["bleu", "chrf"]
    for name, score in without.items():
        assert score.score == with_intervals[name].score
        assert score.low is None
        assert score.high is None
        assert "bs:" not in score.signature


def test_case_is_disregarded_when_asked():
    scores = score_all(["EIN HUND SCHLÄFT JETZT"], ["ein Hund schläft jetzt"], "de", lowercase=True)
    assert scores["bleu"].score == pytest.approx(100)
    assert scores["chrf"].score == pytest.approx(100)
    assert "case:lc" in scores["bleu"].signature


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        ("de", "13a"),
        ("fr-CA", "13a"),
        ("zh", "zh"),
        ("zh-Hans", "zh"),
        ("zho_Hant", "zh"),
        ("ZH_cn", "zh"),
        ("yue", "zh"),
        ("th", "char"),
        ("mya_Mymr", "char"),
    ],
)
def test_tokenizer_of_a_language(language, tokenizer):
    assert bleu_tokenizer(language) == tokenizer
    assert f"|tok:{tokenizer}|" in score_all(["a"], ["a"], language)["bleu"].signature


@pytest.mark.parametrize(("language", "mecab"), [("ja", "ja-mecab"), ("kor_Hang", "ko-mecab")])
def test_mecab_is_taken_where_it_is_installed(monkeypatch, language, mecab):
    monkeypatch.setattr(metrics, "_is_installed", lambda tokenizer: tokenizer == mecab)
    assert bleu_tokenizer(language) == mecab
    assert notices(["a"], ["a"], language) == []
    monkeypatch.setattr(metrics, "_is_installed", lambda tokenizer: False)
    assert bleu_tokenizer(language) == "char"
    [notice] = notices(["a"], ["a"], language)
    assert mecab in notice
    with pytest.raises(UsageError, match=f"`{mecab}` is not installed") as caught:
        bleu_tokenizer(language, mecab)
    assert caught.value.fix is not None
    assert f'pip install "sacrebleu[{mecab[:2]}]"' in caught.value.fix


def test_a_given_tokenizer_is_used():
    assert "|tok:intl|" in score_all(["a"], ["a"], "zh", tokenize="intl")["bleu"].signature


def test_an_unknown_tokenizer_names_the_known_ones():
    with pytest.raises(UsageError, match="`14a`") as caught:
        score_all(["a"], ["a"], "de", tokenize="14a")
    assert caught.value.fix is not None
    assert "13a" in caught.value.fix


def test_the_config_knows_all_tokenizers_of_sacrebleu():
    assert set(get_args(BleuTokenizer)) == {"auto", *BLEU.TOKENIZERS}


def test_nothing_is_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr(metrics, "SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr(tokenizer_spm, "download_file", lambda *_: pytest.fail("downloads"))
    with pytest.raises(DataError, match="`flores200` needs the file"):
        score_all(["a"], ["a"], "de", tokenize="flores200")


def test_unequal_counts_are_both_named():
    with pytest.raises(DataError, match=r"1,001 hypotheses .* 1 references"):
        score_all(["a"] * 1001, ["a"], "de")


def test_nothing_cannot_be_scored():
    with pytest.raises(DataError, match="empty"):
        score_all([], [], "de")


def test_tokenised_text_is_noticed_once(caplog):
    raw = ["Ein Hund schläft."] * 200
    tokenised = ["Ein Hund schläft ."] * 200
    with caplog.at_level(logging.WARNING):
        score_all(tokenised, raw, "de", intervals=False)
    assert caplog.records == []  # sacreBLEU itself says nothing
    [notice] = notices(raw, tokenised, "de")
    assert notice.startswith("200 of 200 references end in a period after a space")
    [notice] = notices(tokenised, raw, "de")
    assert notice.startswith("200 of 200 hypotheses")
    assert notices(raw * 10, raw * 10, "de") == []
    assert notices(raw * 10 + tokenised[:9], raw * 10 + raw[:9], "de") == []  # a few mean nothing


def test_empty_lines_are_noticed():
    found = notices(["a", "", " "], ["a", "b", ""], "de")
    assert found == ["2 of 3 hypotheses are empty", "1 of 3 references are empty"]
