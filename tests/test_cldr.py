"""Phrase pairs from CLDR: right, unambiguous, never repeated, the same every time."""

import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import babel
import pytest

from mtrain.data import cldr
from mtrain.data.cldr import _folded, _locale, _Phrases, cldr_pairs
from mtrain.data.reading import Pair
from mtrain.errors import DataError, UsageError


def fingerprint(parts: list[list[Pair]]) -> str:
    text = "\n".join(f"{pair.src}\t{pair.tgt}" for part in parts for pair in part)
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(scope="module")
def parts():
    return cldr_pairs("en", "de", [200, 100, 5000], seed=1)


def test_the_counts_are_met(parts):
    assert [len(part) for part in parts] == [200, 100, 5000]


def test_no_text_occurs_twice_on_either_side(parts):
    pairs = [pair for part in parts for pair in part]
    assert len({_folded(pair.src) for pair in pairs}) == len(pairs)
    assert len({_folded(pair.tgt) for pair in pairs}) == len(pairs)


def test_the_same_seed_gives_the_same_pairs_in_every_process(parts):
    code = (
        "from test_cldr import cldr_pairs, fingerprint;"
        "print(fingerprint(cldr_pairs('en', 'de', [200, 100], seed=1)))"
    )
    here = Path(__file__).parent
    python_path = os.pathsep.join(map(str, [here, here.parent]))
    for surroundings in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo"}):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": python_path} | surroundings,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == fingerprint(parts[:2])


def test_another_seed_gives_other_pairs(parts):
    assert fingerprint(cldr_pairs("en", "de", [200, 100], seed=2)) != fingerprint(parts[:2])


def test_a_part_does_not_depend_on_those_after_it(parts):
    assert cldr_pairs("en", "de", [200], seed=1) == parts[:1]


@pytest.mark.parametrize(
    ("target", "known"),
    [
        (
            "de",
            {
                "Germany": "Deutschland",
                "Welsh": "Walisisch",
                "Swiss Franc": "Schweizer Franken",
            },
        ),
        ("fr", {"Germany": "Allemagne", "Welsh": "gallois", "Swiss Franc": "franc suisse"}),
        ("ja", {"Germany": "ドイツ", "Welsh": "ウェールズ語", "Swiss Franc": "スイス フラン"}),
    ],
)
def test_names_are_those_of_cldr(target, known):
    phrases = _Phrases(_locale("en"), _locale(target), random.Random(1))
    tables = phrases.places, phrases.languages, phrases.currencies
    names = {name.src: name.tgt for table in tables for name in table.values()}
    assert known.items() <= names.items()


@pytest.mark.skipif(babel.__version__ != "2.18.0", reason="other data of CLDR, other phrases")
def test_phrases_of_all_kinds_are_right():
    """One phrase of each kind, checked by a person."""
    phrases = _Phrases(_locale("en"), _locale("de"), random.Random(5))
    assert {make.__name__: _spaced(make()) for make in phrases.kinds()} == {
        "calendar_date": ("Wed, Nov 1, 1995", "Mi., 1. Nov. 1995"),
        "clock_time": ("1:03 AM", "01:03"),
        "date_time": (
            "Thursday, September 8, 1994, 11:37:42 PM",
            "Donnerstag, 8. September 1994, 23:37:42",
        ),
        "relative_time": ("in 15 months", "in 15 Monaten"),
        "date_interval": ("Jan 27 – Feb 9", "27. Jan. – 9. Feb."),
        "money": ("PGK47.00", "47,00 PGK"),
        "measure": ("74 calories", "74 Kalorien"),
        "name": ("India", "Indien"),
        "list_of_names": (
            "Rwandan Franc, Cuban Peso, Cape Verdean Escudo, and United Arab Emirates Dirham",
            "Ruanda-Franc, Kubanischer Peso, Cabo-Verde-Escudo und VAE-Dirham",
        ),
    }


def _spaced(pair: Pair) -> tuple[str, str]:
    return _folded(pair.src), _folded(pair.tgt)


@pytest.mark.parametrize("languages", [("en", "de"), ("de", "en"), ("fr", "en"), ("en", "ja")])
def test_one_source_has_one_answer(languages):
    """Before repeated texts are left out: nothing is hidden by that."""
    phrases = _Phrases(*map(_locale, languages), random.Random(3))
    answers: dict[str, str] = {}
    for make, share in phrases.kinds().items():
        for _ in range(share * 40):
            src, tgt = _spaced(make())
            assert answers.setdefault(src, tgt) == tgt


def test_may_is_not_taken_for_an_abbreviation():
    """`May 7, 2024` is the long and the medium form in English, but not in German."""
    phrases = _Phrases(_locale("en"), _locale("de"), random.Random(3))
    pairs = [phrases.calendar_date() for _ in range(3000)]
    in_may = [pair.tgt for pair in pairs if pair.src.startswith("May ") and "," in pair.src]
    assert in_may
    assert all(" Mai " in text for text in in_may)


@pytest.mark.parametrize("code", ["pt_BR", "pt-BR", "zh_Hant", "ar", "sw", "yo", "chr", "no"])
def test_other_locales(code):
    ((first, *rest),) = cldr_pairs("en", code, [300], seed=4)
    assert all(pair.src and pair.tgt for pair in [first, *rest])


def test_from_a_language_to_its_variant():
    (pairs,) = cldr_pairs("de", "de_CH", [300], seed=4)
    assert len(pairs) == 300


def test_an_unknown_language_is_a_sentence():
    with pytest.raises(UsageError, match="CLDR has no locale `xq`") as error:
        cldr_pairs("en", "xq", [1], seed=1)
    assert error.value.exit_code == 2
    with pytest.raises(UsageError, match=r"did you mean .*de_CH"):
        cldr_pairs("en", "de_CX", [1], seed=1)


def test_more_than_there_are(monkeypatch):
    monkeypatch.setattr(_Phrases, "kinds", lambda self: {self.name: 1})
    monkeypatch.setattr(cldr, "MAX_REPEATS", 20_000)
    with pytest.raises(DataError, match=r"only 626 different phrase pairs .* en-de, but 1,001"):
        cldr_pairs("en", "de", [1, 1000], seed=1)


@pytest.mark.slow
def test_the_quickstarts_pairs_take_seconds():
    started = time.perf_counter()
    cldr_pairs("en", "de", [31_000], seed=1)
    assert time.perf_counter() - started < 20
