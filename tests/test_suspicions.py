"""Tests of mtrain.data.suspicions: what is said of a corpus, and what is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mtrain.data import suspicions
from mtrain.data.statistics import Norms
from mtrain.data.suspicions import check_sides, suspicions_of_sample
from mtrain.errors import DataError

ENGLISH = ["we met in {} and went to the sea", "they come in {} or on monday, not before"]
GERMAN = ["wir trafen uns im {} und fuhren ans meer", "sie kommen im {} oder am montag, nicht eher"]
MONTHS = [("january", "januar"), ("march", "märz"), ("may", "mai"), ("june", "juni")] * 10
PAIRS = [
    (english.format(month).capitalize(), german.format(monat).capitalize())
    for month, monat in MONTHS
    for english, german in zip(ENGLISH, GERMAN, strict=True)
]
SWAPPED = [(target, source) for source, target in PAIRS]


@pytest.fixture(autouse=True, params=[False, True], ids=["without", "with"])
def _identifier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is found without the language identifier, and is not lost with it."""
    if request.param:
        pytest.importorskip("py3langid")
    monkeypatch.setattr(suspicions, "can_identify", lambda: request.param)


def say(pairs: list[tuple[str, str]]) -> list[str]:
    return suspicions_of_sample(pairs, ("en", "de"), Norms.learn(pairs), "data.train.0")


def test_swapped_sides_are_an_error_that_says_which() -> None:
    check_sides(PAIRS, ("en", "de"), "data.train.0")
    with pytest.raises(DataError) as error:
        check_sides(SWAPPED, ("en", "de"), "data.train.0")
    assert error.value.message == (
        "data.train.0: the sides are swapped: its source text is German, its target text English"
    )
    assert "exchange the two sides of data.train.0" in (error.value.fix or "")


def test_scripts_tell_the_sides_apart() -> None:
    pairs = [("Hello there.", "Привет.")] * 10
    check_sides(pairs, ("en", "ru"), "x")
    check_sides(pairs, ("xx", "yy"), "x")  # unknown languages may be in any script
    with pytest.raises(DataError, match="source text is English, its target text Russian"):
        check_sides(pairs, ("ru", "en"), "x")


def test_text_that_does_not_tell_is_left_alone() -> None:
    check_sides([("a b", "b a")] * 100, ("en", "de"), "x")
    check_sides([], ("en", "de"), "x")
    check_sides([("xq zv", english) for english, _ in PAIRS], ("en", "de"), "x")  # one side only


def test_good_text_is_not_suspicious() -> None:
    assert say(PAIRS) == []
    assert suspicions_of_sample([], ("en", "de"), Norms.learn(PAIRS), "x") == []


def test_a_share_of_the_target_in_the_source_language_is_named() -> None:
    pairs = [(source, source if i % 8 == 0 else target) for i, (source, target) in enumerate(PAIRS)]
    assert say(pairs) == [
        "12% of the target side of data.train.0 is English: `data.clean.language` and "
        "`data.clean.wrong_side` drop such pairs"
    ]


def test_alternating_languages_are_counted_right() -> None:
    identifier = pytest.importorskip("py3langid")
    del identifier
    english = [
        f"We will meet them in the old town on day {i}, if it does not rain." for i in range(801)
    ]
    german = [
        f"Wir treffen sie am Tag {i} in der Altstadt, wenn es nicht regnet." for i in range(801)
    ]
    mixed = [english[i] if i % 2 else german[i] for i in range(801)]
    shares = suspicions._identified(mixed, "de")
    assert 0.4 < shares["en"] < 0.6


@pytest.mark.parametrize(
    ("share", "code", "fix"),
    [
        (1.0, "fr", "give the text in German, or correct the code by `languages: [en, fr]` of the"),
        (1.0, "en", "both sides are in one language; give the text in German"),
        (0.1, "fr", "`data.clean.language` drops such pairs"),
        (0.1, "en", "`data.clean.language` and `data.clean.wrong_side` drop such pairs"),
    ],
)
def test_the_fix_fits_the_share_and_the_language(
    share: float, code: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suspicions, "can_identify", lambda: True)
    found = {"de": {code: share}, "en": {}}
    monkeypatch.setattr(suspicions, "_identified", lambda lines, code: found[code])
    said = [sentence for sentence in say(PAIRS) if "target side" in sentence]
    assert len(said) == 1
    assert f"is {'English' if code == 'en' else 'French'}: {fix}" in said[0]


def test_the_code_of_another_script_is_named() -> None:
    pairs = [("What is this?", "Šta je ovo?")] * 30
    (said,) = suspicions_of_sample(pairs, ("en", "sr"), Norms.learn(pairs), "x")[:1]
    assert "Serbian usually in Cyrillic" in said
    assert said.endswith("as in `sr_Latn`")


def test_text_in_another_script_is_named() -> None:
    pairs = [*PAIRS, *[("What is this?", "Что это?")] * 5]
    assert any("6% of the target side of data.train.0 is not in the Latin" in s for s in say(pairs))


@pytest.mark.parametrize("languages", [("en", "de"), ("en", "de_Latn")])
def test_a_side_that_is_all_in_another_script_is_named(languages: tuple[str, str]) -> None:
    pairs = [(english, "Мы встретились в марте и поехали к морю") for english, _ in PAIRS]
    said = " ".join(suspicions_of_sample(pairs, languages, Norms.learn(pairs), "x"))
    assert "is in the Cyrillic script, and German usually in Latin" in said
    assert "`de_Cyrl`" in said


@pytest.mark.parametrize("code", ["ru", "de_Cyrl", "mn", "xx"])
def test_a_script_that_is_usual_or_in_the_code_is_not(code: str) -> None:
    pairs = [(english, "Мы встретились в марте и поехали к морю") for english, _ in PAIRS]
    said = " ".join(suspicions_of_sample(pairs, ("en", code), Norms.learn(pairs), "x"))
    assert "script" not in said


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: f"{text} &amp; more", "100% of the target side of x holds HTML entities"),
        (lambda text: f"{text} .", "the target side of x looks tokenised (100% of it"),
        (lambda text: text.replace("e", "e@@ "), "the target side of x looks split into subwords"),
        (str.lower, "the target side of x is in lower case"),
    ],
)
def test_traces_of_preprocessing(spoil: Callable[[str], str], said: str) -> None:
    pairs = [(source, spoil(target)) for source, target in PAIRS]
    found = suspicions_of_sample(pairs, ("en", "de"), Norms.learn(PAIRS), "x")
    assert [sentence for sentence in found if "source" in sentence] == []
    assert any(sentence.startswith(said) for sentence in found)


def test_a_handful_of_lines_is_no_evidence() -> None:
    tokenized = [(f"{source} .", f"{target} .") for source, target in PAIRS]
    norms = Norms.learn(PAIRS)
    assert suspicions_of_sample(tokenized[:10], ("en", "de"), norms, "x") == []
    assert suspicions_of_sample(tokenized[:20], ("en", "de"), norms, "x") != []
