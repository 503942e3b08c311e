"""`data.clean` in a config: one key per filter, with its threshold; `false` turns the filter off.

Filters run in the order of the keys; a pair is counted under the first filter that drops it. The
filters themselves are in `data.filters`; the defaults come from `scripts/measure_filters.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mtrain.config.entries import Section

# 0 == False in Python, but here 0 is a threshold.
Off = Annotated[Literal[False], BeforeValidator(lambda value: False if value is False else None)]
Count = Annotated[int, Field(ge=1, le=1 << 40)]
Share = Annotated[float, Field(ge=0, le=1)]


class CleanConfig(Section):
    """Filters for training pairs. `false` turns a filter off, `clean: false` all of them.

    Text is always normalised first: NFC, no control characters, single spaces.
    """

    max_characters: Count | Off = Field(default=2000, description="maximum characters per side")
    max_words: Count | Off = Field(
        default=250,
        description="maximum words per side; in scripts without spaces two characters count as one",
    )
    max_word_characters: Count | Off = Field(
        default=150, description="maximum characters per word, in scripts with spaces"
    )
    min_letters: Share | Off = Field(
        default=0.3,
        description="minimum fraction of letters among a side's characters, without spaces",
    )
    max_digits: Share | Off = Field(
        default=0.5,
        description="maximum fraction of digits among a side's characters, without spaces",
    )
    max_punctuation: Share | Off = Field(
        default=0.5,
        description="maximum fraction of punctuation and symbols among a side's characters, "
        "without spaces",
    )
    garbled: bool = Field(
        default=True,
        description="drop wrongly decoded text: replacement characters, UTF-8 read as Latin-1",
    )
    script: Share | Off = Field(
        default=0.5,
        description="minimum fraction of a side's letters in the script of its language, given "
        "by the code (`sr_Latn` names an unusual one) or else by most of the text",
    )
    copies: Share | Off = Field(
        default=0.95,
        description="drop a pair as untranslated if at least this fraction of the words of a side "
        "(three words or more) also occurs in the other side",
    )
    length_ratio: Annotated[float, Field(gt=0)] | Off = Field(
        default=4.0,
        description="drop a pair whose log ratio of target to source characters is more than this "
        "many deviations from the corpus median for pairs of its length",
    )
    numbers: bool = Field(
        default=True,
        description="drop a pair if each side has a number that the other lacks; separators, "
        "number words, month names and the 12-hour clock are taken into account",
    )
    repetition: Share | Off = Field(
        default=0.25,
        description="minimum fraction of distinct words in a side of ten words or more, and of "
        "distinct characters in a word of twenty characters or more",
    )
    markup: bool = Field(default=True, description="drop pairs whose HTML tags or braces differ")
    urls: Share | Off = Field(
        default=0.5, description="maximum fraction of a side in URLs and e-mail addresses"
    )
    wrong_side: bool = Field(
        default=True,
        description="drop a pair if one side is in the other side's language, judged by the words "
        "that occur on each side of the data",
    )
    language: Share | Off = Field(
        default=False,
        description="minimum probability of each side's language, by the language identifier of "
        "the extra `mtrain[langid]`: 0.01 is a good choice; half a millisecond per pair",
    )
    normalized_duplicates: bool = Field(
        default=False,
        description="drop a pair that equals an earlier one except for case, digits and "
        "punctuation",
    )
    max_target_repeats: Count | Off = Field(
        default=100, description="maximum pairs with the same target; the first ones are kept"
    )


def as_filters(value: Any) -> Any:
    """`clean: false` turns off every filter; `true` is the default."""
    if value is False:
        return dict.fromkeys(CleanConfig.model_fields, False)
    return {} if value is True else value
