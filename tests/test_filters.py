"""Tests of mtrain.data.filters: what each filter drops, and what it must not."""

from __future__ import annotations

import json
import pickle
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mtrain.clean_config import CleanConfig, as_filters
from mtrain.data.cleaning import normalize
from mtrain.data.filters import REASONS, PairFilter, numbers_differ
from mtrain.data.languages import Identifier
from mtrain.data.norms import LengthRatio, Norms
from mtrain.errors import UsageError

GOOD = ("We met her in the old town.", "Wir haben sie in der Altstadt getroffen.")


def only(key: str, value: Any = None, languages: str = "en-de", norms: Norms | None = None) -> Any:
    """The pairs that one filter drops, all others off."""
    default = CleanConfig.model_fields[key].default
    off: dict[str, Any] = dict.fromkeys(CleanConfig.model_fields, False)
    config = CleanConfig.model_validate(off | {key: default if value is None else value})
    pair_filter = PairFilter(config, *languages.split("-"), norms)

    def drops(source: str, target: str = GOOD[1]) -> bool:
        return pair_filter.reason(normalize(source), normalize(target)) == key

    return drops


def test_every_key_of_the_config_has_words_in_the_order_of_the_config() -> None:
    assert list(REASONS) == list(CleanConfig.model_fields)


def test_false_switches_all_filters_off() -> None:
    off = CleanConfig.model_validate(as_filters(False))
    assert PairFilter(off, "en", "de").reason("<b>1 2 3 4 5", "日本") is None


def test_zero_is_a_threshold_and_true_is_none() -> None:
    assert CleanConfig.model_validate({"copies": 0}).copies == 0.0
    assert CleanConfig.model_validate({"copies": 0}).copies is not False
    for wrong in ({"max_words": 0}, {"max_words": True}, {"numbers": 0}):
        with pytest.raises(ValidationError):
            CleanConfig.model_validate(wrong)
    assert CleanConfig.model_validate(as_filters(True)) == CleanConfig()


def test_a_filter_survives_pickling() -> None:
    norms = Norms.learn([GOOD] * 100)
    pair_filter = pickle.loads(pickle.dumps(PairFilter(CleanConfig(), "en", "de", norms)))
    assert pair_filter.reason(GOOD[0], "日本のことば") == "script"
    assert pair_filter.reason(*GOOD) is None


def test_the_first_filter_in_the_order_of_the_config_gets_the_pair() -> None:
    pair_filter = PairFilter(CleanConfig(), "en", "de")
    bad = ("<p>Im Jahr 1984", "Ð¯ Im Jahr 1985")
    assert pair_filter.reasons(*bad) == ["garbled", "numbers", "markup"]
    assert pair_filter.reason(*bad) == "garbled"


# -- amounts ---------------------------------------------------------------------------------


def test_length() -> None:
    assert only("max_characters", 30)("a" * 31)
    assert not only("max_characters", 40)("a" * 40)
    assert only("max_words", 5)("one two three four five six", "x")
    assert only("max_words", 5)("x", "one two three four five six")
    assert not only("max_words", 7)("one two three four five six")
    assert only("max_words", 5)("日本の言葉を話す人たちです", "x")  # two characters a word
    assert only("max_word_characters", 20)("a " + "x" * 21)
    assert not only("max_word_characters", 20)("a " + "x" * 20)
    assert not only("max_word_characters", 20)("日本の言葉を話す人たちがここにたくさんいます")


def test_shares_of_characters() -> None:
    assert only("min_letters", 0.5)("a b 1 2 3")
    assert not only("min_letters", 0.5)("a b c 1 2 3")
    assert not only("min_letters", 0.9)("हिन्दी में लिखा है")  # marks belong to letters
    assert only("max_digits", 0.5)("call 555 1234")
    assert not only("max_digits", 0.5)("call me at 555 1234")
    assert only("max_punctuation", 0.4)("*** ab ***")
    assert not only("max_punctuation", 0.4)("„Ja!“ – „Niemals!“ 1999")
    for key in ("min_letters", "max_digits", "max_punctuation"):
        assert not only(key)(*GOOD)
        assert not only(key)("Привет, мир!", "日本のことば。")


def test_repetition() -> None:
    assert only("repetition")("the cat the cat the cat the cat the cat the cat")
    assert only("repetition")("a" * 20)
    assert not only("repetition")("the cat sat on the mat and the dog sat on the cat")
    assert not only("repetition")("he said yes and she said yes and he said yes")
    assert not only("repetition")("very very good")
    assert not only("repetition")("Donaudampfschifffahrtsgesellschaft")


def test_addresses() -> None:
    assert only("urls")("see https://example.org/a/long/path/of/it")
    assert only("urls")("mail someone.of.us@example.org")
    assert not only("urls")("The page www.example.org tells what there is to know of it.")


# -- one side against the other --------------------------------------------------------------


def test_copies() -> None:
    assert only("copies")("The Lord of the Rings", "The Lord of the Rings")
    assert only("copies", 0.7)("Kit pannelli filtranti pezzi", "Set pannelli filtranti pezzi")
    assert not only("copies")("New York", "New York")  # a name
    assert not only("copies")("Golf 6 Cabrio (from 2011)", "Golf 6 Cabrio (ab 2011)")


@pytest.mark.parametrize(
    ("source", "target", "differ"),
    [
        ("in 1984", "im Jahr 1985", True),
        ("4 months ago", "vor 6 Monaten", True),
        ("9 dogs", "59 Hunde", True),
        ("10 dogs", "100 Hunde", True),
        ("50 dogs", "62 Hunde", True),
        ("2 million", "2.000.000", False),
        ("2 million of 7", "2.000.000 von 7", False),
        ("99.00 EUR 7.425", "99,00 EUR 7.524", True),
        ("1,000,000 people", "1.000.000 Menschen", False),
        ("1,000 people", "1000 Menschen", False),
        ("1.5 million", "1500000", False),
        ("3.14", "3,14", False),
        ("at 3 p.m. on 5/6", "um 15 Uhr am 6.5.", False),
        ("06 May", "6. Mai", False),
        ("in the '90s", "in den 1990ern", False),
        ("two dogs", "2 Hunde", False),  # a word on one side
        ("May 6, 2010", "6.5.2010", False),
        ("12 dogs", "keine Hunde", False),
        ("٣ كتب", "3 books", False),  # digits of another script
    ],
)
def test_numbers(source: str, target: str, differ: bool) -> None:
    assert numbers_differ(source, target) == differ
    assert numbers_differ(target, source) == differ
    assert only("numbers")(source, target) == differ


@given(st.lists(st.integers(0, 10**7), max_size=6), st.randoms())
def test_the_same_numbers_in_any_order_do_not_differ(
    numbers: list[int], generator: random.Random
) -> None:
    others = numbers[:]
    generator.shuffle(others)
    target = " und ".join(f"{number:,}".replace(",", ".") for number in others)
    assert not numbers_differ(" and ".join(f"{number:,}" for number in numbers), target)


def test_markup() -> None:
    assert only("markup")("<b>Hello</b> there", "Hallo")
    assert only("markup")("Hello {name}", "Hallo")
    assert not only("markup")("<b>Hello</b> <i>you</i>", "<i>du</i>, <b>hallo</b>")
    assert only("markup")('See <A HREF="x.html">here<br/>', "Siehe hier")
    assert not only("markup")("the <interpreter shutdown> and <https://x.org>", "Ende")
    assert not only("markup")("5 < 6 & 7 > 3", "Hallo")


# -- language --------------------------------------------------------------------------------


def test_garbled() -> None:
    for text in ("geschwächte Kopfhaut – ja", "“what”", "Crème brûlée", "Привет", "ãéâ"):
        assert not only("garbled")(text)
        spoilt = text.encode().decode("cp1252", errors="replace")
        assert only("garbled")(spoilt) == (spoilt != text), spoilt
    assert only("garbled")("ok", "Crème".encode().decode("latin-1"))
    assert not only("garbled")("São Paulo, Âge, Ærø, Ångström, à côté, Île")


def test_script() -> None:
    assert only("script", languages="en-ru")("Hello there", "Hello there")
    assert not only("script", languages="en-ru")("Hello there", "Привет, John")
    assert only("script", languages="en-de")("Hello there", "Привет, John")
    assert not only("script", languages="en-de")("Hello there", "… 123 …")
    assert not only("script", languages="en-de")("Hello there", "Äußerst schön – „ja“")
    assert not only("script", languages="en-vi")("Hello", "Tiếng Việt rất hay và đẹp")
    assert not only("script", languages="en-ja")("Hello there", "東京タワーのことです")
    assert only("script", languages="en-zh")("Hello there", "東京タワーのことです")
    assert only("script", languages="en-sr")("Hello", "Dobar dan")
    assert not only("script", languages="en-sr_Latn")("Hello", "Dobar dan")


def test_the_script_of_an_unknown_language_is_that_of_most_text() -> None:
    norms = Norms.learn([("Hello there", "ကောင်းသောနေ့")] * 60 + [("Hello", "Hello")] * 20)
    assert norms.scripts == ("Latn", "Mymr")
    drops = only("script", languages="xx-qqq", norms=norms)
    assert drops("Hello there", "Good day")
    assert not drops("Hello there", "ကောင်း")


def test_wrong_side() -> None:
    words = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for"]
    wörter = ["der", "die", "und", "das", "nicht", "ist", "ein", "zu", "von", "mit"]
    generator = random.Random(1)
    pairs = [
        (" ".join(generator.choices(words, k=8)), " ".join(generator.choices(wörter, k=8)))
        for _ in range(500)
    ]
    noisy = pairs + [(source, source) for source, _ in pairs[:50]]
    drops = only("wrong_side", norms=Norms.learn(noisy))
    assert drops("that is for the", "the one that is in it")
    assert drops("nicht das ist ein", "von der und mit")
    assert not any(drops(*pair) for pair in pairs)
    assert not drops("New York", "New York")


def test_language() -> None:
    pytest.importorskip("py3langid")
    drops = only("language", 0.01)
    assert not drops(*GOOD)
    assert drops(GOOD[0], "Nous l'avons rencontrée dans la vieille ville, près de la gare.")
    assert not only("language", 0.01, "en-xx")(GOOD[0], "Dobar dan")


def test_a_missing_identifier_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Identifier, "is_installed", staticmethod(lambda: False))
    PairFilter(CleanConfig(), "en", "de")
    with pytest.raises(UsageError, match="needs the language identifier") as error:
        only("language", 0.01)
    assert "mtrain[langid]" in (error.value.fix or "")


# -- norms -----------------------------------------------------------------------------------


def test_length_ratio_is_learnt_from_noisy_data() -> None:
    generator = random.Random(1)
    pairs = [
        ("x" * n, "y" * max(1, round(2 * n * generator.uniform(0.8, 1.25))))
        for n in (generator.randint(20, 200) for _ in range(2000))
    ]
    noise = [("x" * generator.randint(5, 200), "y" * generator.randint(5, 200)) for _ in range(300)]
    drops = only("length_ratio", 4.0, norms=Norms.learn(pairs + noise))
    assert not any(drops(*pair) for pair in pairs)
    assert drops("x" * 100, "y" * 80)
    assert drops("x" * 100, "y" * 450)
    assert not drops("x" * 100, "y" * 200)


def test_short_pairs_may_deviate_more() -> None:
    generator = random.Random(1)
    short = [("x" * 5, "y" * generator.randint(2, 12)) for _ in range(500)]
    long = [("x" * 100, "y" * generator.randint(90, 110)) for _ in range(500)]
    ratio = LengthRatio.learn(short + long)
    assert ratio.deviation(5, 10) < 2
    assert ratio.deviation(100, 200) > 5


def test_copies_of_one_length_do_not_make_everything_else_odd() -> None:
    ratio = LengthRatio.learn([("x" * 10, "y" * 10)] * 1000)
    assert ratio.deviation(10, 13) < 4
    assert LengthRatio.learn([]).deviation(10, 13) < 4


def test_norms_survive_json() -> None:
    norms = Norms.learn([GOOD] * 100)
    assert Norms.from_json(json.loads(json.dumps(norms.to_json()))) == norms


@given(st.text(), st.text())
def test_any_normalised_pair_is_judged(source: str, target: str) -> None:
    source, target = normalize(source), normalize(target)
    if source and target:
        norms = Norms.learn([GOOD] * 60)
        reason = PairFilter(CleanConfig(), "en", "ru", norms).reason(source, target)
        assert reason is None or reason in REASONS
