"""Tests of mtrain.data.filters: what each filter drops, and what it must not."""

from __future__ import annotations

import pickle

from mtrain.clean_config import CleanConfig
from mtrain.data.filters import REASONS, PairFilter


def test_every_key_of_the_config_has_words_in_the_order_of_the_config() -> None:
    assert list(REASONS) == list(CleanConfig.model_fields)


def test_false_switches_all_filters_off() -> None:
    off = CleanConfig.model_validate(False)
    pair_filter = PairFilter(off, "en", "de")
    assert pair_filter.reason("<b>1 2 3 4 5", "日本") is None


def test_a_filter_survives_pickling() -> None:
    pair_filter = pickle.loads(pickle.dumps(PairFilter(CleanConfig(), "en", "de")))
    assert pair_filter.reason("What a nice day.", "日本のことば") == "script"
    assert pair_filter.reason("What a nice day.", "Was für ein Tag.") is None
