"""Subwords that are drawn anew in every epoch, and tags, from the config to the ids."""

from pathlib import Path

import numpy as np
import pytest
import test_prepare
import torch
from test_prepare import CONFIG, PAIRS, TEST, files, hashes, make_config

from mtrain.config.root import Config
from mtrain.data import corpus, epochs, identity
from mtrain.data.epochs import Epochs
from mtrain.data.prepare import Prepared, copy_into_run, find_prepared, prepare
from mtrain.data.store import TokenStore
from mtrain.data.tokenizer import load_tokenizers
from mtrain.machine import process_pool
from mtrain.machine.distributed import Distributed
from mtrain.run import RunDir

_directory = test_prepare._directory  # each test in one of its own


def text_of(store: TokenStore, prepared: Prepared) -> list[tuple[str, str]]:
    source, target = load_tokenizers(prepared.path)
    indices = range(len(store))
    return list(
        zip(
            source.decode([store.src(i) for i in indices]),
            target.decode([store.tgt(i) for i in indices]),
            strict=True,
        )
    )


def epochs_of(config: Config, prepared: Prepared, name: str = "x") -> Epochs:
    return Epochs(config, prepared.path, Path(name), Distributed(torch.device("cpu")))


def drawn(config: Config, prepared: Prepared, number: int, name: str = "x") -> dict[str, str]:
    epochs_of(config, prepared, name).open(number)
    return hashes(Path(name, f"epoch-{number}"))


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_every_epoch_draws_the_same_text_anew(kind):
    settings = {"sampling": 0.3, "type": kind}
    config = make_config(tokenizer=settings)
    prepared = prepare(config, CONFIG)
    made = epochs_of(config, prepared)
    ids = []
    for number in (0, 1, 7):
        epoch = made.open(number)
        store, plan = epoch.store, epoch.plan
        assert text_of(store, prepared) == PAIRS
        assert [path.name for path in Path("x").iterdir()] == [f"epoch-{number}"]
        assert plan.src_lengths.tolist() == [len(store.src(i)) + 1 for i in range(len(store))]
        ids.append(store.src_ids.tolist())
    assert ids[0] != ids[1] != ids[2]
    assert drawn(config, prepared, 1) == drawn(config, prepared, 1)  # and so after a resume
    other = config.model_copy(update={"train": config.train.model_copy(update={"seed": 2})})
    assert drawn(other, prepared, 1) != drawn(config, prepared, 1)
    with made:
        pass
    assert not Path("x").exists()


@pytest.mark.parametrize("sampling", [0.0, 0.3])
def test_in_two_epochs_of_both_directions_every_pair_comes_once_each_way(sampling):
    config = make_config(tokenizer={"sampling": sampling, "type": "bpe"})
    prepared = prepare(config, CONFIG)
    made = epochs_of(config, prepared)
    found = []
    for number in (4, 5, 6):
        epoch = made.open(number, in_both_directions=True)
        store, plan = epoch.store, epoch.plan
        assert sorted(np.concatenate(plan.updates)) == list(range(len(PAIRS)))
        assert plan.tgt_lengths.tolist() == [len(store.tgt(i)) + 1 for i in range(len(store))]
        found.append(text_of(store, prepared))
    turned = [(target, source) for source, target in PAIRS]
    for pair, back, *both in zip(PAIRS, turned, *found[:2], strict=True):
        assert both in ([pair, back], [back, pair])
    n_turned = sum(pair != other for pair, other in zip(PAIRS, found[0], strict=True))
    assert len(PAIRS) / 4 < n_turned < 3 * len(PAIRS) / 4
    assert found[2] not in (found[0], found[1])  # another half
    assert text_of(made.open(6).store, prepared) == PAIRS


def test_several_processes_draw_the_same(monkeypatch):
    config = make_config(tokenizer={"sampling": 0.3, "type": "bpe"})
    for module in (corpus, identity, epochs):
        monkeypatch.setattr(module, "CHUNK_PAIRS", 20)
    prepared = prepare(config, CONFIG, n_processes=1)
    one = drawn(config, prepared, 3)
    monkeypatch.setattr(process_pool, "N_HERE", 1)
    monkeypatch.setattr(process_pool, "n_cores", lambda: 2)
    assert drawn(config, prepared, 3) == one


def test_a_pair_that_is_cut_too_small_keeps_its_best_pieces():
    config = make_config(tokenizer={"sampling": 0.9, "type": "bpe"})
    longest = max(map(len, encode(config)))
    config = make_config(tokenizer={"sampling": 0.9, "type": "bpe"}, max_length=longest)
    prepared = prepare(config, CONFIG)
    made = epochs_of(config, prepared)
    store = made.open(0).store
    assert max(store.src_lengths.max(), store.tgt_lengths.max()) <= longest
    assert text_of(store, prepared) == PAIRS


def encode(config: Config) -> list[list[int]]:
    tokenizers = load_tokenizers(prepare(config, CONFIG).path)
    return [
        row
        for tokenizer, texts in zip(tokenizers, zip(*PAIRS, strict=True), strict=True)
        for row in tokenizer.encode(texts)
    ]


def test_without_sampling_no_text_is_kept_and_nothing_is_drawn():
    config = make_config()
    prepared = prepare(config, CONFIG)
    assert not (prepared.path / "train.text").exists()
    made = epochs_of(config, prepared)
    store = made.open(0).store
    assert store is made.store
    assert not Path("x").exists()


def test_how_much_is_drawn_and_mixed_needs_no_new_data():
    prepared = prepare(make_config(tokenizer={"sampling": 0.1}), CONFIG)
    train = files("train", PAIRS).model_copy(update={"weight": 2.0})
    for other in (
        make_config(tokenizer={"sampling": 0.2}),
        make_config(tokenizer={"sampling": 0.1}, temperature=2.0),
        make_config(tokenizer={"sampling": 0.1}, train=(train,)),
    ):
        assert find_prepared(other, CONFIG) == prepared
    assert find_prepared(make_config(), CONFIG) is None  # keeps no text


@pytest.mark.parametrize("sampling", [0.0, 0.3])
def test_tags_stand_in_front_of_the_sources_of_their_entries(sampling):
    plain, tagged = files("a", PAIRS[:40]), files("b", PAIRS[40:])
    tagged = tagged.model_copy(update={"tag": "bt"})
    test = {"toy": files("test", TEST).model_copy(update={"tag": "bt"})}
    config = make_config(train=(plain, tagged), test=test, tokenizer={"sampling": sampling})
    prepared = prepare(config, CONFIG)
    [tag] = load_tokenizers(prepared.path)[0].ids(["<bt>"])
    made = epochs_of(config, prepared)
    store = made.open(0).store
    begins_with_tag = [store.src(i)[0] == tag for i in range(len(store))]
    assert begins_with_tag == [False] * 40 + [True] * 60
    assert not np.isin(store.tgt_ids, [tag]).any()
    assert text_of(store, prepared) == PAIRS
    run = RunDir("runs/toy")
    copy_into_run(prepared, run)
    assert (run.read_split("toy").tag, run.read_split("valid").tag) == ("bt", None)
