"""`data.clean` in a config: one key a filter, with its threshold; `false` switches a filter off.

The keys stand in the order in which the filters look at a pair; the first that objects gets the
pair, under its key's name. What each filter does is in `data.filters`; the defaults are what
`scripts/measure_filters.py` showed to find bad pairs without losing good ones.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mtrain.config.entries import Section

# Zero, which Python takes for false, is a number like any other.
Off = Annotated[Literal[False], BeforeValidator(lambda value: False if value is False else None)]
Share = Annotated[float, Field(ge=0, le=1)]


class CleanConfig(Section):
    """Which training pairs are dropped; `clean: false` drops none. `false` turns one filter off.

    All text is normalised before (NFC, no control characters, single spaces), filters or not.
    """

    max_characters: Annotated[int, Field(ge=1)] | Off = Field(
        default=2000, description="most characters of a side"
    )
    max_words: Annotated[int, Field(ge=1)] | Off = Field(
        default=250,
        description="most words of a side; where a script has no spaces, two characters are one",
    )
    max_word_characters: Annotated[int, Field(ge=1)] | Off = Field(
        default=150, description="most characters of a word, in scripts with spaces"
    )
    min_letters: Share | Off = Field(
        default=0.3, description="least share of letters among a side's characters, spaces aside"
    )
    max_digits: Share | Off = Field(
        default=0.5, description="largest share of digits among a side's characters, spaces aside"
    )
    max_punctuation: Share | Off = Field(
        default=0.5,
        description="largest share of punctuation and symbols among a side's characters, "
        "spaces aside",
    )
    garbled: bool = Field(
        default=True,
        description="text that was decoded wrongly: replacement characters, UTF-8 read as Latin-1",
    )
    script: Share | Off = Field(
        default=0.5,
        description="least share of a side's letters in the script of its language, which is "
        "known from the code (`sr_Latn` names another than the usual one) or else the script "
        "of most of the text",
    )
    copies: Share | Off = Field(
        default=0.95,
        description="share of words that are in the other side too, from which on a side of three "
        "words or more counts as not translated",
    )
    length_ratio: Annotated[float, Field(gt=0)] | Off = Field(
        default=4.0,
        description="most deviations of the logarithm of target by source characters from the "
        "middle of the corpus; middle and deviation are learnt from the data, for each length",
    )
    numbers: bool = Field(
        default=True,
        description="each side has a number that the other one lacks; separators, number words, "
        "names of months and the 12-hour clock are allowed for",
    )
    repetition: Share | Off = Field(
        default=0.25,
        description="least share of different words in a side of ten words or more, and of "
        "different characters in a word of twenty characters or more",
    )
    markup: bool = Field(
        default=True, description="tags of HTML, or braces, that differ between the sides"
    )
    urls: Share | Off = Field(
        default=0.5, description="largest share of a side in web and mail addresses"
    )
    wrong_side: bool = Field(
        default=True,
        description="a side in the language of the other one, which is known by the words that "
        "the data has on either side",
    )
    language: Share | Off = Field(
        default=False,
        description="least probability of each side's language, by the language identifier of "
        "the extra `mtrain[langid]`: 0.01 is a good choice; half a millisecond a pair",
    )
    normalized_duplicates: bool = Field(
        default=False,
        description="pairs that repeat another one but for case, digits and punctuation",
    )
    max_target_repeats: Annotated[int, Field(ge=1)] | Off = Field(
        default=100, description="most pairs with the same target; the first ones stay"
    )


def as_filters(value: Any) -> Any:
    """`clean: false` switches off every filter, `true` is as if it were not there."""
    if value is False:
        return dict.fromkeys(CleanConfig.model_fields, False)
    return {} if value is True else value
