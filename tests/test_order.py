"""The order of an epoch: every pair as often as it should come, and any stretch alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrain.config.entries import CldrEntry
from mtrain.config.sections import DataConfig
from mtrain.data import order
from mtrain.data.order import EpochOrder, Mixture, Permutation


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(st.integers(1, 3000), st.integers(0, 3), st.booleans())
@settings(max_examples=60)
def test_a_permutation_has_every_item_once(n, seed, is_computed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "SHUFFLED_WHOLE", 0 if is_computed else 1 << 20)
        permutation = Permutation(n, rng(seed))
        items = permutation.at(np.arange(n))
        assert sorted(items.tolist()) == list(range(n))
        assert permutation.at(np.arange(n // 2, n)).tolist() == items[n // 2 :].tolist()


def test_a_computed_permutation_looks_random(monkeypatch):
    monkeypatch.setattr(order, "SHUFFLED_WHOLE", 0)
    n = 100_000
    items = Permutation(n, rng(1)).at(np.arange(n))
    assert abs(np.corrcoef(items, np.arange(n))[0, 1]) < 0.02
    assert abs(np.corrcoef(items[1:], items[:-1])[0, 1]) < 0.02
    cells = np.bincount(items * 100 // n + 100 * (np.arange(n) * 100 // n), minlength=10_000)
    assert 0.85 < cells.var() / cells.mean() < 1.15  # as of independent draws, nearly
    assert (items != Permutation(n, rng(2)).at(np.arange(n))).mean() > 0.999


def test_small_orders_are_those_of_numpy():
    assert EpochOrder(50, rng(7, 3)).stretch(0, 50).tolist() == rng(7, 3).permutation(50).tolist()


def epoch_of(mixture: Mixture, epoch: int, seed: int = 1) -> list[int]:
    found = mixture.order(seed, epoch, rng(seed, epoch))
    return found.stretch(0, len(found)).tolist()


def test_without_weights_every_pair_comes_once_in_numpys_order():
    mixture = Mixture((30, 20), (1.0, 1.0))
    assert epoch_of(mixture, 2) == rng(1, 2).permutation(50).tolist()


def test_weights_say_how_often_an_epoch_goes_through_an_entry():
    mixture = Mixture((10, 8, 4), (1.0, 0.5, 3.0))
    epochs = [epoch_of(mixture, epoch) for epoch in (0, 1)]
    for pairs in epochs:
        counts = Counter(pairs)
        assert [counts[i] for i in range(10)] == [1] * 10
        assert sum(counts[i] for i in range(10, 18)) == 4
        assert [counts[i] for i in range(18, 22)] == [3] * 4
    halves = [{i for i in pairs if 10 <= i < 18} for pairs in epochs]
    assert halves[0] | halves[1] == set(range(10, 18))  # the other half in the next epoch
    assert epochs[0] != epochs[1]


@given(
    st.lists(st.tuples(st.integers(0, 40), st.floats(0.05, 3)), min_size=1, max_size=4),
    st.integers(1, 6),
)
@settings(max_examples=60)
def test_no_pair_of_an_entry_falls_behind(entries, n_epochs):
    """After any number of epochs, the counts of two pairs of one entry differ by one at most."""
    sizes, weights = zip(*entries, strict=True)
    mixture = Mixture(sizes, weights)
    counts = Counter(i for epoch in range(n_epochs) for i in epoch_of(mixture, epoch))
    first = 0
    for size, weight in entries:
        of_entry = [counts[i] for i in range(first, first + size)]
        if size:
            assert max(of_entry) - min(of_entry) <= 1
            assert abs(sum(of_entry) - n_epochs * weight * size) <= 1
        first += size


def test_a_temperature_evens_entries_out():
    entries = np.repeat([0, 2], [900, 100]).astype(np.uint16)
    train = (CldrEntry(cldr=1),) * 3
    at = {
        temperature: Mixture.of(DataConfig(train=train, temperature=temperature), entries)
        for temperature in (1.0, 2.0, 100.0)
    }
    assert at[1.0].sizes == (900, 0, 100)
    assert at[1.0].weights == pytest.approx((1, 1, 1))
    drawn = {t: [s * w for s, w in zip(m.sizes, m.weights, strict=True)] for t, m in at.items()}
    assert drawn[2.0] == pytest.approx([750, 0, 250])  # 30 to 10
    assert sum(drawn[100.0]) == pytest.approx(1000)
    assert drawn[100.0][2] == pytest.approx(500, rel=0.02)
