"""Planted faults are found, references raise no alarm, and what is unusual but right is let be."""

import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrain.errors import DataError
from mtrain.evaluation.diagnostics import TITLES, Diagnosis, Suspect, diagnose, wilson_interval
from mtrain.evaluation.entities import Numbers
from mtrain.evaluation.faults import Sentence

WHO = [("A man", "Ein Mann"), ("The old woman", "Die alte Frau"), ("Anna", "Anna")]
WHAT = [
    ("buys {n} red apples", "kauft {n} rote Äpfel"),
    ("reads page {n} of the newspaper", "liest Seite {n} der Zeitung"),
    ("waits {n} minutes for the bus", "wartet {n} Minuten auf den Bus"),
    ("finds {n} old coins on the beach", "findet {n} alte Münzen am Strand"),
]
WHERE = [("in the quiet village", "im stillen Dorf"), ("near the station", "beim Bahnhof")]
PAIRS = [
    (f"{who[0]} {what[0]} {where[0]}.".format(n=n), f"{who[1]} {what[1]} {where[1]}.".format(n=n))
    for (who, what, where), n in zip(product(WHO, WHAT, WHERE), range(13, 99), strict=False)
] * 5
SOURCES, REFERENCES = [source for source, _ in PAIRS], [reference for _, reference in PAIRS]


def diagnose_lines(
    sources: list[str], outputs: list[str], references: list[str] | None
) -> Diagnosis:
    return diagnose(sources, outputs, references, source_lang="en", target_lang="de")


def found(diagnosis: Diagnosis) -> dict[str, list[int]]:
    """Name -> the lines named, where there are any."""
    return {d.name: d.lines for d in diagnosis.diagnostics if d.lines}


def plant(**faults: tuple[int, str]) -> Diagnosis:
    """The references as outputs, but for some lines."""
    outputs = list(REFERENCES)
    for line, text in faults.values():
        outputs[line] = text
    return diagnose_lines(SOURCES, outputs, REFERENCES)


def test_references_raise_no_alarm():
    for references in (REFERENCES, None):
        assert found(diagnose_lines(SOURCES, REFERENCES, references)) == {}
    diagnosis = diagnose_lines(SOURCES, REFERENCES, REFERENCES)
    assert {d.reference_rate for d in diagnosis.diagnostics} == {0.0, None}
    assert [d.name for d in diagnosis.diagnostics if d.reference_rate is None] == ["names"]


def test_each_planted_fault_is_found_by_its_diagnostic():
    rng = random.Random(5)
    faults: dict[str, list[str]] = {
        "copied": SOURCES,
        "empty": [""] * len(PAIRS),
        "short": [" ".join(text.split()[: len(text.split()) // 2]) for text in REFERENCES],
        "long": [f"{text} Und noch vieles andere mehr ist dort zu sehen." for text in REFERENCES],
        "repeated": [f"{text[:-1]} {' '.join(text[:-1].split()[-2:])}." for text in REFERENCES],
        "numbers_lost": ["".join(c for c in text if not c.isdigit()) for text in REFERENCES],
        "numbers_invented": [text.replace(".", " seit 2011.") for text in REFERENCES],
        "urls": [text.replace(".", " http://example.org/x.") for text in REFERENCES],
        "script": [text.replace("e", "е", 1) for text in REFERENCES],  # Cyrillic
        "language": [SOURCES[(i + 7) % len(SOURCES)] for i in range(len(SOURCES))],
        "unknown_characters": [f"{text[:5]}\ufffd{text[6:]}" for text in REFERENCES],
    }
    for name, texts in faults.items():
        lines = sorted(rng.sample(range(len(PAIRS)), 12))
        outputs = [texts[i] if i in lines else text for i, text in enumerate(REFERENCES)]
        diagnosis = diagnose_lines(SOURCES, outputs, REFERENCES)
        assert found(diagnosis)[name] == lines, name
        [diagnostic] = [d for d in diagnosis.diagnostics if d.name == name]
        assert diagnostic.is_noteworthy
        assert diagnostic.n_found == 12
        assert diagnostic.rate == pytest.approx(12 / len(PAIRS))
        assert diagnostic.low < diagnostic.rate < diagnostic.high
        named = {line for found_lines in found(diagnosis).values() for line in found_lines}
        assert named == set(lines), name  # nothing else is accused


def test_a_lost_name_is_named():
    line = REFERENCES.index(next(text for text in REFERENCES if text.startswith("Anna")))
    diagnosis = plant(name=(line, REFERENCES[line].replace("Anna", "Sie")))
    assert found(diagnosis) == {"names": [line]}
    assert "names" not in found(plant(name=(line, REFERENCES[line].replace("Anna", "Annas"))))


def test_the_worst_come_first():
    one = REFERENCES[3][:-1]
    diagnosis = plant(a=(3, f"{one} im Dorf im Dorf."), b=(9, "Ein " + "Mann " * 9 + "."))
    [repeated] = [d for d in diagnosis.diagnostics if d.name == "repeated"]
    assert [suspect.line for suspect in repeated.worst] == [9, 3]
    assert repeated.worst[0] == Suspect(9, 8, "“mann” 9 times in a row")


def test_at_most_twenty_are_shown_and_all_are_listed():
    diagnosis = diagnose_lines(SOURCES, [""] * len(PAIRS), REFERENCES)
    assert len(diagnosis.diagnostics[0].worst) == 20
    assert diagnosis.diagnostics[0].lines == list(range(len(PAIRS)))


def test_what_was_learnt_by_heart():
    known = set(REFERENCES[:6])
    diagnosis = diagnose(
        *(SOURCES, REFERENCES, REFERENCES),
        source_lang="en",
        target_lang="de",
        was_seen=known.__contains__,
    )
    [seen] = [d for d in diagnosis.diagnostics if d.name == "seen_in_training"]
    assert (
        seen.rate == seen.reference_rate == sum(text in known for text in REFERENCES) / len(PAIRS)
    )
    assert not seen.is_noteworthy
    assert (
        "data is missing" in diagnose_lines(SOURCES, REFERENCES, None).skipped["seen_in_training"]
    )


def test_control_characters_in_the_corpus_are_named():
    diagnosis = plant(control=(4, REFERENCES[4].replace(" ", "\x07 ", 1)))
    [unknown] = [d for d in diagnosis.diagnostics if d.name == "unknown_characters"]
    assert unknown.worst == [Suspect(4, 1, "U+0007")]
    references = [text.replace(" ", "\x07 ", 1) for text in REFERENCES]
    assert found(diagnose_lines(SOURCES, references, references)) == {}  # as the reference has them


def test_few_sentences_know_no_language():
    diagnosis = diagnose_lines(["A dog."], ["Ein Hund."], ["Ein Hund."])
    assert "too few" in diagnosis.skipped["language"]
    assert set(diagnosis.skipped) | {d.name for d in diagnosis.diagnostics} == set(TITLES)


def test_unequal_counts_are_refused():
    with pytest.raises(DataError, match="2 hypotheses cannot be scored against 1 references"):
        diagnose_lines(["a"], ["a", "b"], None)


texts = st.text(max_size=40)


@settings(max_examples=40)
@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=8))
def test_any_text_can_be_judged(lines):
    sources, outputs, references = (list(side) for side in zip(*lines, strict=True))
    for diagnostic in diagnose_lines(sources, outputs, references).diagnostics:
        assert 0 <= diagnostic.low <= diagnostic.rate <= diagnostic.high <= 1


# -- numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("It costs 1,000.50 dollars.", "Es kostet 1.000,5 Dollar."),
        ("10,000 people", "10 000 Menschen"),
        ("10,000 people", "10\u202f000 Menschen"),
        ("12 men and 1 dog", "zwölf Männer und ein Hund"),
        ("two dogs", "2 Hunde"),
        ("25 years", "fünfundzwanzig Jahre"),
        ("a thousand nights", "1000 Nächte"),
        ("on 12/05/2010", "am 12. Mai 2010"),
        ("at 5:30 pm", "um 17:30 Uhr"),
        ("at 5.30 p.m.", "um 17.30 Uhr"),
        ("the 1980s", "die 80er Jahre"),
        ("1.5 million", "1.500.000"),
        ("1.5 million", "1,5 Millionen"),
        ("$20 thousand", "20.000 Dollar"),
        ("Louis XIV", "Ludwig 14."),
        ("chapter 4", "Kapitel IV"),
        ("１２ units", "12 Einheiten"),
        ("call 555-123-456", "Anruf: 555 123 456"),
        ("May 5", "5. Mai"),
    ],
)
def test_numbers_are_the_same_in_any_notation(source, target):
    numbers = Numbers("en", "de")
    assert numbers.lost(Sentence(0, source, target, None)) is None
    assert numbers.invented(Sentence(0, source, target, None)) is None


@pytest.mark.parametrize(
    ("source", "target", "lost", "invented"),
    [
        ("in 1999", "vor Jahren", "1999 missing", None),
        ("years ago", "im Jahr 1999", None, "1999 invented"),
        ("20 dogs", "200 Hunde", "20 missing", "200 invented"),
        ("3.7 percent", "3,8 Prozent", "3.7 missing", "3,8 invented"),
        ("from 34 to 56", "von 34 bis 57", "56 missing", "57 invented"),
    ],
)
def test_other_numbers_are_not(source, target, lost, invented):
    numbers, sentence = Numbers("en", "de"), Sentence(0, source, target, None)
    for fault, detail in ((numbers.lost(sentence), lost), (numbers.invented(sentence), invented)):
        assert (fault.detail if fault else None) == detail


def test_the_reference_excuses():
    numbers = Numbers("en", "de")
    assert numbers.lost(Sentence(0, "in 1999", "vor Jahren", "damals")) is None
    assert numbers.lost(Sentence(0, "in 1999", "vor Jahren", "1999")) is not None
    assert numbers.invented(Sentence(0, "years ago", "1999", "1999")) is None
    # Where numbers in words are not known, small ones are let be unless others wrote digits.
    foreign = Numbers("en", "sw")
    assert foreign.lost(Sentence(0, "3 dogs", "mbwa watatu", None)) is None
    assert foreign.lost(Sentence(0, "3 dogs", "mbwa", "mbwa 3")) is not None


# -- shares ----------------------------------------------------------------------------------


def test_the_interval_of_wilson():
    # by hand: (0.1 + 0.0192 -+ 1.96 sqrt(0.0009 + 0.000096)) / 1.0384
    assert wilson_interval(10, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)
    assert wilson_interval(0, 100) == pytest.approx((0, 0.0370), abs=1e-4)
    assert wilson_interval(1, 1)[1] == 1
