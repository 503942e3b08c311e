"""Tests of mtrain.languages: what a code stands for, and how its script is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrain.config.clean import CleanConfig
from mtrain.data.cldr import cldr_pairs
from mtrain.data.filters import PairFilter
from mtrain.data.statistics import Norms
from mtrain.decoding.alignment import Side
from mtrain.evaluation import number_words
from mtrain.evaluation.metrics import Score, bleu_tokenizer, score_all
from mtrain.languages import (
    identifies,
    identify,
    is_kind_of,
    language,
    main_script,
    primary,
    probability,
    runs_outside,
    script_of,
    scripts_of,
    unspaced,
)

# Codes of one language, as corpora write them: ISO 639, BCP 47, FLORES, mBART.
ONE_LANGUAGE = {
    "bn": "bn ben ben_Beng bn-IN bn_BD BN bn-Beng",
    "or": "or ory ori ory_Orya or-IN",
    "as": "as asm asm_Beng",
    "zh": "zh zho chi cmn zho_Hant cmn_Hans zh-CN zh_TW ZH-hant",
    "ja": "ja jpn jpn_Jpan ja_XX",
    "ko": "ko kor kor_Hang ko_KR",
    "de": "de deu ger deu_Latn de-AT de_DE",
    "fa": "fa pes fas per pes_Arab prs fa_IR",
    "sr": "sr srp srp_Cyrl sr-Latn sh",
    "he": "he heb iw heb_Hebr",
    "fil": "fil tl tgl tgl_Latn",
    "sw": "sw swh swa swh_Latn",
    "bo": "bo bod tib bod_Tibt",
    "my": "my mya bur mya_Mymr",
    "uz": "uz uzn uzn_Latn uz-Cyrl",
    "acm": "acm acm_Arab",
}
CODES = [(code, same) for code, codes in ONE_LANGUAGE.items() for same in codes.split()]


def ter(code: str) -> Score:
    return score_all(["京都 a"], ["京 都 b"], code, intervals=False, metrics=["ter"])["ter"]


@pytest.mark.parametrize(("code", "same"), CODES)
def test_all_codes_of_a_language_are_one(code: str, same: str) -> None:
    assert primary(same) == code
    assert is_kind_of(same, code)
    assert number_words.knows(same) == number_words.knows(code)
    if set(scripts_of(language(same).script or "")) == set(scripts_of(language(code).script or "")):
        assert language(same).has_spaces == language(code).has_spaces
        assert bleu_tokenizer(same) == bleu_tokenizer(code)
        assert ter(same) == ter(code)
        assert Side.of(["▁ab", "c"], same) == Side.of(["▁ab", "c"], code)


@pytest.mark.parametrize("same", ["deu", "ger", "deu_Latn", "de_XX", "DE"])
def test_months_and_numbers_in_words_follow_the_language(same: str) -> None:
    assert number_words.says("am 3. mai", 5, same)
    assert number_words.says("zwölf hunde", 12, same)
    assert language(same).words() == language("de").words() != set()


@pytest.mark.parametrize("same", ["ben", "ben_Beng", "bn_XX"])
def test_names_and_generated_phrases_follow_the_language(same: str) -> None:
    assert language(same).name == language("bn").name == "Bangla"
    assert cldr_pairs(language(same).canonical.removesuffix("_XX"), "deu", [50], 1) == (
        cldr_pairs("bn", "de", [50], 1)
    )


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("de", "German"),
        ("deu", "German"),
        ("pt-BR", "Portuguese (Brazil)"),
        ("zho_Hant", "Chinese (Traditional)"),
        ("sr_Latn", "Serbian (Latin)"),
        ("en_XX", "English"),
        ("ace_Arab", "Acehnese"),
        ("acm", "acm"),
        ("xx", "xx"),
        ("und", "Unknown language"),
    ],
)
def test_names(code: str, name: str) -> None:
    assert language(code).name == name


# Of each script that FLORES-200 is written in, the code of a language and a letter.
LETTERS = {
    "arb_Arab": "س", "hye": "հ", "ben": "ক", "asm": "অ", "mni": "ম", "bul": "б", "hin": "क",
    "kas_Deva": "क", "ell": "α", "kat": "ქ", "guj": "ક", "pan": "ਕ", "heb": "ש", "jpn": "の",
    "kan": "ಕ", "khm": "ក", "kor": "한", "lao": "ກ", "mal": "ക", "mya": "က", "shn": "ၵ",
    "ory": "କ", "sat": "ᱚ", "sin": "ක", "tam": "க", "tel": "క", "taq_Tfng": "ⴰ", "tha": "ก",
    "bod": "ཀ", "dzo": "ཀ", "amh": "አ", "tir": "አ", "yue": "香", "cmn_Hans": "京", "deu": "ß",
    "ace_Arab": "ء", "knc_Arab": "ك", "min_Arab": "ك", "uig": "ئ", "ydd": "ש", "khk": "ө",
    "vie": "ễ", "nus": "ɣ", "zho_Hant": "ㄅ", "jpn_Jpan": "々", "dje": "ŋ", "ff_Adlm": "𞤀",
}  # fmt: skip


@pytest.mark.parametrize(("code", "letter"), LETTERS.items())
def test_each_language_is_in_its_own_script(code: str, letter: str) -> None:
    script = language(code).script
    assert script is not None
    assert script_of(letter) in scripts_of(script)
    assert not runs_outside(script).search(letter + "µʼーº5²½")  # what many scripts share
    other = "a" if script != "Latn" else "я"
    assert runs_outside(script).findall(letter + other) == [other]
    assert set(scripts_of(main_script([letter * 3]) or "")) & set(scripts_of(script))


@pytest.mark.parametrize("code", ["en_Test", "en_Zxxx", "en_Zyyy", "en_Qaaa", "en_1994"])
def test_what_is_no_script_of_unicode_is_ignored(code: str) -> None:
    assert language(code).script == "Latn"


def test_codes_that_nobody_knows_are_languages_of_no_script() -> None:
    for code in ("und", "xx", "qaa", "x-klingon", "i-klingon", ""):
        assert (language(code).script, language(code).has_spaces) == (None, True)
    assert primary("x-klingon") != primary("x-elvish")


@given(st.text())
def test_any_text_is_some_language(code: str) -> None:
    known = language(code)
    assert isinstance(known.name, str)
    assert language(known.canonical).primary == known.primary
    assert isinstance(known.words(), set)


def test_a_variety_is_a_kind_of_its_language() -> None:
    assert is_kind_of("arz", "ar")
    assert is_kind_of("prs", "fa")
    assert not is_kind_of("ar", "arz")
    assert not is_kind_of("de", "nl")


UNSPACED = {
    "Thai": "ก", "Lao": "ກ", "Khmer": "ក", "Burmese": "က", "Shan": "ꩡ", "Tibetan": "ཀ",
    "Chinese": "京", "beyond U+20000": "𠀋", "beyond U+30000": "𰀀", "Hiragana": "の",
    "Katakana": "ア", "half width": "ｱ", "Bopomofo": "ㄅ", "Yi": "ꀀ", "Javanese": "ꦲ",
    "Balinese": "ᬅ", "Tai Tham": "ᨠ", "Tai Le": "ᥐ", "Tai Viet": "ꪀ",
}  # fmt: skip


@pytest.mark.parametrize("letter", UNSPACED.values(), ids=UNSPACED)
def test_scripts_without_spaces(letter: str) -> None:
    assert unspaced().fullmatch(letter)


def test_all_other_scripts_have_spaces() -> None:
    assert not unspaced().search("a я α 한 अ ক அ አ ש س ⴰ ᱚ ა հ 5 。")


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("µ", None),
        ("5 µm", "Latn"),
        ("東京都知事選挙の候補者", "Jpan"),
        ("한국어", "Kore"),
        ("北京", "Hans"),
        ("123 …", None),
        ("ꯃꯅꯤ", "Mtei"),
    ],
)
def test_the_script_of_most_letters(text: str, script: str | None) -> None:
    assert main_script([text]) == script


@pytest.mark.parametrize(
    ("code", "text", "scripts"),
    [
        ("crh", "Bu kün", ("Cyrl", "Latn")),  # CLDR knows one script of it, and no words
        ("tzm", "ⴰⵣⵓⵍ", ("Latn", "Tfng")),  # another one than English has
        ("ru", "Guten Tag", ("Cyrl",)),  # not translated, or not Russian
        ("sr", "Dobar dan", ("Cyrl",)),
        ("sr_Latn", "Dobar dan", ("Latn",)),
        ("xx", "Добрый день", ("Cyrl",)),
    ],
)
def test_the_text_tells_a_script_that_the_code_leaves_open(
    code: str, text: str, scripts: tuple[str, ...]
) -> None:
    assert Norms.learn([(text, "Hello there")] * 60).scripts_of(0, code) == scripts
    assert Norms.learn([("Hello there", text)] * 60).scripts_of(1, code) == scripts


@pytest.mark.parametrize("code", ["tgl_Latn", "fil", "tl", "zho_Hant", "zh", "ben_Beng", "deu"])
def test_the_identifier_knows_a_language_by_any_code(code: str) -> None:
    pytest.importorskip("py3langid")
    assert identifies(code)
    assert 0 <= probability("Ang mga bata ay naglalaro.", code) <= 1
    assert not identifies("deu_Cyrl")
    assert identify("Ang mga bata ay naglalaro sa labas ng bahay.") == "fil"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("ben", "সে গতকাল বাজারে গিয়েছিল।"),
        ("asm", "তেওঁ কালি বজাৰলৈ গৈছিল।"),
        ("ory_Orya", "ସେ କାଲି ବଜାରକୁ ଯାଇଥିଲା।"),
        ("sat", "ᱩᱱᱤ ᱦᱚᱞᱟ ᱵᱟᱡᱟᱨ ᱮ ᱥᱮᱱ ᱞᱮᱱᱟ ᱾"),
        ("tzm_Tfng", "ⵉⴷⴷⴰ ⵖⵔ ⵙⵙⵓⵇ ⴰⵙⵙⵏⵏⴰⵟ."),
        ("bod", "ཁོ་ཁ་ས་ཁྲོམ་ལ་ཕྱིན་སོང་། ཁོང་གིས་ཁ་ལག་མང་པོ་ཉོས་པ་རེད།"),
        ("tha", "เมื่อวานเขาไปตลาดและซื้ออาหารมากมายสำหรับครอบครัวของเขา"),
    ],
)
def test_no_script_is_taken_for_another(code: str, text: str) -> None:
    english = "Yesterday he went to the market and bought a lot of food for his family."
    pair_filter = PairFilter(CleanConfig(), code, "en")
    assert pair_filter.reasons(text, english) == []
    assert "script" in pair_filter.reasons("Вчера он ходил на рынок и купил еды.", english)


def test_a_script_that_most_of_the_text_has_is_accepted_where_the_code_names_none() -> None:
    """Crimean Tatar is mostly Cyrillic for CLDR; this corpus is not."""
    english = "Yesterday he went to the market."
    norms = Norms.learn([(f"O dün bazarğa bardı {i}.", f"{english} {i}") for i in range(60)])
    text = "O dün bazarğa bardı ve çoq aş aldı."
    assert (
        PairFilter(CleanConfig(length_ratio=False), "crh", "en", norms).reasons(text, english) == []
    )
    assert PairFilter(CleanConfig(length_ratio=False), "crh_Cyrl", "en", norms).reasons(
        text, english
    ) == ["script"]


def test_a_language_in_an_unusual_script_has_no_name_of_another() -> None:
    assert "Ol Chiki" not in language("sat_Beng").name
    assert language("zh_Hant").name == "Chinese (Traditional)"
