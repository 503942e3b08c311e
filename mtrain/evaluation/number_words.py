"""Numbers in words, as far as needed to recognise that 12 and "zwölf" are the same.

For each language the stems of 0 to 20, of 30 to 90 by tens, of 100 and of 1,000; `/` separates
several stems of one number (ordinals, genders). Words begin with their stem, so that inflected
forms are found; a stem of three letters or fewer may be followed by two more. Compounds and words
with hyphens are found by their parts.
"""

from __future__ import annotations

import re
from functools import cache

from mtrain import languages

_VALUES = [*range(21), *range(30, 100, 10), 100, 1000]

_STEMS = {
    "en": "zero/nil/no one/a/an/once/first/single two/second/twice/both/pair/couple/double "
    "three/third/thrice/triple four five/fifth six seven eight nine/ninth ten eleven "
    "twelve/twelfth/dozen thirteen fourteen fifteen sixteen seventeen eighteen nineteen "
    "twenty/twentieth/twenties thirty/thirtieth/thirties forty/fortieth/forties "
    "fifty/fiftieth/fifties/half sixty/sixtieth/sixties seventy/seventieth/seventies "
    "eighty/eightieth/eighties ninety/ninetieth/nineties hundred/century/centuries "
    "thousand/millenni",
    "de": "null/kein ein/erst zwei/zwo/beid/doppel/paar drei/dritt vier fünf sechs sieb acht neun "
    "zehn elf zwölf/dutzend dreizehn vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn "
    "zwanzig dreißig/dreissig vierzig fünfzig/halb/hälfte sechzig siebzig achtzig neunzig "
    "hundert/jahrhundert tausend/jahrtausend",
    "fr": "zéro un/une/premi deux/second/double trois/triple quatre/quatri cinq six sept huit "
    "neuf/neuv dix/dizaine onz douz/douzaine treiz quatorz quinz seiz dix-sept dix-huit "
    "dix-neuf vingt trent quarant cinquant/moitié soixant soixante-dix quatre-vingt "
    "quatre-vingt-dix cent/siècle mill",
    "es": "cero un/una/uno/primer dos/segund/doble tres/tercer cuatro/cuart cinco/quint seis/sext "
    "siete/séptim ocho/octav nueve/noven diez/décim/decena once doce/docena trece catorce "
    "quince dieciséis diecisiete dieciocho diecinueve veint treinta cuarenta cincuenta/mitad "
    "sesenta setenta ochenta noventa cien/siglo mil",
    "it": "zero un/uno/una/prim due/second/doppi tre/terz quattr/quart cinqu/quint sei/sest sett "
    "ott nov/non diec/decim/decina undic dodic/dozzina tredic quattordic quindic sedic "
    "diciasett diciott diciannov vent/ventun trent quarant cinquant/metà sessant settant "
    "ottant novant cent/secolo mil",
    "pt": "zero um/uma/primeir dois/duas/segund/dobro três/terceir quatro/quart cinco/quint "
    "seis/sext sete/sétim oito/oitav nove/non dez/décim/dezena onze doze/dúzia treze "
    "catorze/quatorze quinze dezasseis/dezesseis dezassete/dezessete dezoito "
    "dezanove/dezenove vinte trinta quarenta cinquenta/metade sessenta setenta oitenta "
    "noventa cem/cent/século mil",
    "nl": "nul/geen een/één/eerst twee/beide/dubbel/paar drie/derde vier vijf/vijv zes zeven acht "
    "negen tien elf twaalf/dozijn dertien veertien vijftien zestien zeventien achttien "
    "negentien twintig dertig veertig vijftig/half/helft zestig zeventig tachtig negentig "
    "honderd/eeuw duizend/millennium",
    "cs": "nul jed/prvn/první dv/dvě/dvou/druh/oba/obě/dvojn tři/tří/třem/třetí čtyř/čtvrt pět/pát "
    "šest sedm osm devět/devít/devát deset/desít/desát jedenáct dvanáct/tucet třináct čtrnáct "
    "patnáct šestnáct sedmnáct osmnáct devatenáct dvacet/dvacát/dvacít třicet/třicát/třicít "
    "čtyřicet/čtyřicát/čtyřicít padesát/polovin šedesát sedmdesát osmdesát devadesát "
    "sto/stole/stovk tisíc/tisic",
    "pl": "zero jed/pierwsz dw/dwa/dwie/drug/oba trzy/trzech/trzec cztery/czterech/czwart "
    "pięć/pięci/piąt sześć/sześci/szóst siedem/siedmi/siódm osiem/ośmi/ósm "
    "dziewięć/dziewięci/dziewiąt dziesięć/dziesięci/dziesiąt jedenaśc/jedenast "
    "dwanaśc/dwunast/tuzin trzynaśc/trzynast czternaśc/czternast piętnaśc/piętnast "
    "szesnaśc/szesnast siedemnaśc/siedemnast osiemnaśc/osiemnast dziewiętnaśc/dziewiętnast "
    "dwadzieśc/dwudziest trzydzieśc/trzydziest czterdzieśc/czterdziest pięćdziesiąt/połow "
    "sześćdziesiąt siedemdziesiąt osiemdziesiąt dziewięćdziesiąt sto/setk/wiek tysiąc/tysięc",
    "sv": "noll en/ett/förs två/andra/båda/dubbel tre fyra/fjärd fem sex sju åtta/åtton nio ti/tio "
    "elv tolv/dussin trett fjort femt sext sjutton arton nitton tjug trettio fyrtio "
    "femtio/halv/hälft sextio sjuttio åttio nittio hundra/sekel tusen",
}  # fmt: skip


@cache
def _patterns(language: str) -> dict[int, tuple[str, re.Pattern[str]]]:
    """Number -> its stems as alternatives, and a pattern for words that begin with one."""
    stems = _STEMS.get(language, "").split()
    assert len(stems) in (0, len(_VALUES)), (language, len(stems))
    found = {}
    for value, forms in zip(_VALUES, stems, strict=False):
        by_length = [
            re.escape(form) + (r"\w{0,2}\b" if len(form) <= 3 else "") for form in forms.split("/")
        ]
        parts = "|".join(re.escape(form) for form in forms.split("/") if len(form) > 2)
        found[value] = (parts, re.compile(rf"\b(?:{'|'.join(by_length)})"))
    return found


@cache
def _months(language: str) -> dict[int, set[str]]:
    return languages.language(language).months()


def knows(language: str) -> bool:
    """True if numbers in words are recognised; territory and script are ignored."""
    return languages.primary(language) in _STEMS


def says(text: str, number: int, language: str) -> bool:
    """True if a casefolded text may have the number in words, or the month with this number."""
    if any(name in text for name in _months(language).get(number, ())):
        return True
    patterns = _patterns(languages.primary(language))
    if not patterns:
        return False
    if number in patterns:
        return bool(patterns[number][1].search(text))
    return all(re.search(patterns[part][0], text) for part in _parts(number) if patterns[part][0])


def _parts(number: int) -> list[int]:
    """The words that make up a number: 2350 -> 2, 1000, 3, 100, 50."""
    while number and number % 1000 == 0:  # thousand, million, billion: under any name
        number //= 1000
    if number <= 20 or (number < 100 and number % 10 == 0):
        return [number]
    if number < 100:
        return [number - number % 10, number % 10]
    for unit in (1000, 100):
        if number >= unit:
            many = _parts(number // unit) if number >= 2 * unit else []
            return [*many, unit, *(_parts(number % unit) if number % unit else [])]
    raise AssertionError(number)
