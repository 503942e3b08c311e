"""The plan of an epoch: what forms an update, how it is cut, and the tensors that come of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrain.data import batching
from mtrain.data.batching import BatchPlan, batch_of, collate
from mtrain.data.micro_batches import Indices, cut
from mtrain.data.store import StoreWriter, TokenStore
from mtrain.data.tokenizer import BOS, EOS, PAD

# (source, target) lengths of an epoch, EOS included
pairs = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=120)
budgets = st.integers(16, 400)


def plan_of(lengths: list[tuple[int, int]], budget: int, seed: int = 1, epoch: int = 0):
    src, tgt = (np.array(side, dtype=np.int64) for side in zip(*lengths, strict=True))
    return BatchPlan(src, tgt, budget, seed, epoch)


def micro_batches(plan: BatchPlan, update: int, max_tokens: int, n_workers: int = 1):
    lengths = plan.src_lengths, plan.tgt_lengths
    return cut(plan.sentences(update), *lengths, max_tokens, n_workers)


def listed(plan: BatchPlan) -> list[list[int]]:
    return [update.tolist() for update in plan.updates]


def multi30k_like(n: int = 20_000) -> tuple[Indices, Indices]:
    """Lengths as of captions in pieces: about 15 a side, correlated, from 4 to some 50."""
    rng = np.random.default_rng(0)
    src = np.clip(rng.lognormal(2.65, 0.33, n), 3, 60).astype(np.int64) + 1
    tgt = np.clip(src * rng.normal(1.05, 0.17, n), 3, 70).astype(np.int64) + 1
    return src, tgt


# -- updates ---------------------------------------------------------------------------------


@given(pairs, budgets, st.integers(0, 3))
@settings(max_examples=60)
def test_each_sentence_comes_once_an_epoch(lengths, budget, epoch):
    plan = plan_of(lengths, budget, epoch=epoch)
    assert sorted(i for update in listed(plan) for i in update) == list(range(len(lengths)))
    assert all(len(update) for update in plan.updates)
    assert sum(plan.n_target_tokens(i) for i in range(len(plan))) == sum(t for _, t in lengths)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=300),
    st.integers(200, 500),
)
@settings(max_examples=60)
def test_updates_lie_within_a_tenth_of_the_budget_but_the_last_cut(lengths, budget):
    plan = plan_of(lengths, budget)
    sizes = [plan.n_target_tokens(i) for i in range(len(plan))]
    off = [size for size in sizes if abs(size - budget) > 0.1 * budget]
    assert len(off) <= 1
    assert all(size <= 1.1 * budget for size in sizes)


def test_a_sentence_longer_than_the_budget_is_an_update_of_its_own():
    plan = plan_of([(1, 2), (2, 90), (3, 4)], budget=16)
    assert sorted(listed(plan)) == [[0], [1], [2]]


@given(pairs, budgets)
@settings(max_examples=30)
def test_the_same_seed_and_epoch_give_the_same_plan(lengths, budget):
    assert listed(plan_of(lengths, budget)) == listed(plan_of(lengths, budget))


def test_another_epoch_or_seed_gives_another_plan():
    src, tgt = multi30k_like(2000)
    plans = [
        listed(BatchPlan(src, tgt, 500, seed, epoch)) for seed, epoch in ((1, 0), (1, 1), (2, 0))
    ]
    assert plans[0] != plans[1]
    assert plans[0] != plans[2]
    together = [{frozenset(update) for update in plan} for plan in plans]
    n_alike = len(together[0] & together[1])  # the few longest have no other companions
    assert n_alike < len(together[0]) / 4


def test_updates_hold_sentences_of_like_length_in_random_order():
    src, tgt = multi30k_like(4000)
    plan = BatchPlan(src, tgt, 1000, seed=1, epoch=0)
    spread = [int(np.ptp(src[update])) for update in plan.updates]
    assert sorted(spread)[len(spread) // 2] <= 1
    means = [float(src[update].mean()) for update in plan.updates]
    assert abs(float(np.corrcoef(means, np.arange(len(means)))[0, 1])) < 0.3


@given(pairs, budgets, st.integers(0, 200))
@settings(max_examples=40)
def test_updates_asked_for_one_by_one_are_those_of_the_whole_plan(lengths, budget, number):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "WINDOW", 16)
        whole, asked = plan_of(lengths, budget), plan_of(lengths, budget)
        assert asked.has(number) is (number < len(whole))
        if number < len(whole):
            assert asked.sentences(number).tolist() == whole.updates[number].tolist()
            assert sorted(i for u in whole.updates for i in u) == list(range(len(lengths)))


def test_only_the_windows_asked_for_are_planned(monkeypatch):
    monkeypatch.setattr(batching, "WINDOW", 64)
    src, tgt = multi30k_like(5000)
    plan = BatchPlan(src, tgt, 200, seed=1, epoch=0)
    assert plan.has(0)
    assert len(plan._updates) < 10


# -- micro-batches ---------------------------------------------------------------------------


@given(pairs, budgets, st.integers(1, 300), st.integers(1, 3))
@settings(max_examples=80)
def test_micro_batches_partition_their_update_within_the_limit(
    lengths, budget, max_tokens, n_workers
):
    plan = plan_of(lengths, budget)
    before = listed(plan)
    for i, update in enumerate(before):
        parts = micro_batches(plan, i, max_tokens, n_workers)
        assert sorted(s for part in parts for s in part.tolist()) == sorted(update)
        for part in parts:
            longest = max(max(lengths[s]) for s in part.tolist())
            assert len(part) * longest <= max_tokens or len(part) == 1
    assert listed(plan) == before


def test_one_long_sentence_does_not_break_up_the_others():
    plan = plan_of([(4, 4)] * 30 + [(4, 50)], budget=1000)
    sizes = sorted(len(part) for part in micro_batches(plan, 0, max_tokens=40))
    assert sizes[0] == 1
    assert len(sizes) <= 6


def test_one_source_length_stands_alone_where_it_fills_half_a_micro_batch():
    plan = plan_of([(10, 10)] * 6 + [(11, 11), (12, 12)], budget=1000)
    parts = [sorted(part.tolist()) for part in micro_batches(plan, 0, max_tokens=120)]
    assert parts == [[0, 1, 2, 3, 4, 5], [6, 7]]
    together = micro_batches(plan, 0, max_tokens=1000)
    assert [sorted(part.tolist()) for part in together] == [list(range(8))]


def test_micro_batches_of_an_update_are_of_even_size():
    plan = plan_of([(10, 10)] * 9, budget=1000)
    assert [len(part) for part in micro_batches(plan, 0, max_tokens=80)] == [5, 4]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=3, max_size=12))
def test_the_largest_micro_batch_of_two_workers_is_as_small_as_can_be(lengths):
    def positions(part: list[tuple[int, int]]) -> int:
        return len(part) * (max(s for s, _ in part) + max(t for _, t in part))

    plan = plan_of(lengths, budget=10_000)
    parts = [[lengths[i] for i in part] for part in micro_batches(plan, 0, 10_000, n_workers=2)]
    by_target = sorted(lengths, key=lambda pair: (pair[1], pair[0]))
    best = min(
        max(positions(by_target[:cut]), positions(by_target[cut:]))
        for cut in range(1, len(lengths))
    )
    assert max(map(positions, parts)) == best
    assert len(parts) == 2


@pytest.mark.parametrize("n_workers", [1, 2, 4])
def test_at_least_95_percent_of_positions_are_real_on_captions(n_workers):
    src, tgt = multi30k_like()
    plan = BatchPlan(src, tgt, 4096, seed=1, epoch=0)
    real = computed = 0
    for update in range(len(plan)):
        for part in micro_batches(plan, update, 2048, n_workers):
            real += int(src[part].sum() + tgt[part].sum())
            computed += len(part) * int(src[part].max() + tgt[part].max())
    assert real == src.sum() + tgt.sum()
    assert real / computed >= 0.95


# -- tensors ---------------------------------------------------------------------------------


def test_a_batch_by_hand():
    sources = [np.array([5, 6], np.uint16), np.array([7], np.uint16)]
    batch = batch_of(sources, [np.array([8]), np.array([9, 10, 11])])
    assert batch.src.tolist() == [[5, 6, EOS], [7, EOS, PAD]]
    assert batch.tgt_out.tolist() == [[8, EOS, PAD, PAD], [9, 10, 11, EOS]]
    assert batch.tgt_in.tolist() == [[BOS, 8, EOS, PAD], [BOS, 9, 10, 11]]
    assert batch.src_mask is not None
    assert batch.src_mask.tolist() == [[[[True, True, True]]], [[[True, True, False]]]]
    assert (batch.n_source_tokens, batch.n_target_tokens, batch.n_positions) == (5, 6, 14)
    assert batch.src.dtype is torch.int64


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=6))
@settings(max_examples=60)
def test_a_batch_holds_each_side_shifted_and_masked_only_where_padded(lengths):
    sources = [np.arange(4, 4 + s) for s, _ in lengths]
    targets = [np.arange(20, 20 + t) for _, t in lengths]
    batch = batch_of(sources, targets)
    assert (batch.src_mask is None) == (len({s for s, _ in lengths}) == 1)
    for row, (s, t) in enumerate(lengths):
        assert batch.src[row].tolist()[: s + 1] == [*range(4, 4 + s), EOS]
        assert batch.tgt_in[row].tolist()[: t + 1] == [BOS, *range(20, 20 + t)]
        assert batch.tgt_out[row].tolist()[: t + 1] == [*range(20, 20 + t), EOS]
        assert not (batch.src[row, s + 1 :] != PAD).any()
        assert not (batch.tgt_out[row, t + 1 :] != PAD).any()
        if batch.src_mask is not None:
            assert batch.src_mask[row, 0, 0].tolist() == (batch.src[row] != PAD).tolist()
    assert batch.n_source_tokens == sum(s + 1 for s, _ in lengths)
    assert batch.n_target_tokens == int((batch.tgt_out != PAD).sum())


@pytest.fixture
def store(tmp_path):
    with StoreWriter(tmp_path, "train", (100, 100)) as writer:
        writer.append([([5, 6], [7]), ([8], [9, 10]), ([11, 12], [13])])
        writer.close()
    return TokenStore.open(tmp_path)


def test_collate_takes_the_named_sentences_in_their_order(store):
    batch = collate(store, np.array([2, 0]))
    assert batch.src.tolist() == [[11, 12, EOS], [5, 6, EOS]]
    assert batch.tgt_out.tolist() == [[13, EOS], [7, EOS]]
    assert batch.src_mask is None


def test_a_batch_on_its_device_is_itself_on_a_cpu(store):
    batch = collate(store, [1])
    assert batch.to(torch.device("cpu")) is batch
