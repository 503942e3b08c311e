"""Hub data sets, read by the real libraries from a hub on loopback."""

import json
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, run_mtrain
from hub_server import Repository, card, environment, running_hub, translations, use_hub
from sacrebleu.dataset import DATASETS
from test_catalogues import archive_of_newstest, files_of
from test_sources import read as read_entry

from mtrain.config.entries import HubEntry
from mtrain.config.load import load_config
from mtrain.data.lock import Lock
from mtrain.data.prepare import prepare
from mtrain.errors import DataError, DownloadError
from mtrain.storage import sha256_of

REVISION = "a" * 40
TRAIN = [(f"a dog {i}", f"ein Hund {i}") for i in range(10)]
VALID = [("one cat", "eine Katze")]
FIRST, SECOND = "de-en/train-00000-of-00002.parquet", "de-en/train-00001-of-00002.parquet"


def toy_repository() -> Repository:
    return Repository(
        {
            "README.md": card(
                {
                    "de-en": {"train": "de-en/train-*", "validation": "de-en/validation-*"},
                    "fr-en": {"train": "fr-en/train-*"},
                }
            ),
            FIRST: translations(TRAIN[:6], ("en", "de")),
            SECOND: translations(TRAIN[6:], ("en", "de")),
            "de-en/validation-00000-of-00001.parquet": translations(VALID, ("en", "de")),
            "fr-en/train-00000-of-00001.parquet": translations([("dog", "chien")], ("en", "fr")),
        }
    )


@pytest.fixture(scope="module")
def hub():
    with running_hub() as running:
        yield running


@pytest.fixture(autouse=True)
def _surroundings(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    use_hub(hub, tmp_path, monkeypatch)
    hub.repositories = {"wmt/toy": toy_repository()}
    hub.requests.clear()


@pytest.fixture
def lock(tmp_path):
    return Lock.open(tmp_path / "my.yaml")


def entry(**keys: Any) -> HubEntry:
    return HubEntry(**{"hub": "wmt/toy", "config": "de-en", "languages": ("en", "de")} | keys)


def read(lock: Lock, **keys: Any) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in read_entry(entry(**keys), lock)]


def test_a_split_is_read_and_locked(lock, hub):
    assert read(lock, name="toy") == TRAIN
    facts = lock.sources["hub:wmt/toy de-en train"]
    assert facts["name"] == "toy"
    assert facts["revision"] == REVISION
    assert facts["licence"] == "cc-by-4.0"
    assert facts["pairs"] == 10
    assert list(facts["files"]) == [FIRST, SECOND]
    inputs = files_of(entry(), lock, may_ask=False)
    assert list(inputs) == [f"hub:wmt/toy@{REVISION}/{path}" for path in (FIRST, SECOND)]
    assert all(sha256 and len(sha256) == 64 for sha256 in inputs.values())
    assert read(lock, split="validation", languages=("de", "en")) == [("eine Katze", "one cat")]


def test_what_is_locked_and_cached_needs_no_network(lock, hub):
    read(lock)
    hub.requests.clear()
    assert read(lock) == TRAIN
    assert hub.requests == []


def test_the_lock_and_the_mirror_need_no_hub(lock, hub, tmp_path, monkeypatch):
    files_of(entry(), lock)
    for path in (FIRST, SECOND):
        mirrored = tmp_path / "mirror" / "any" / "folder" / Path(path).name
        mirrored.parent.mkdir(parents=True, exist_ok=True)
        mirrored.write_bytes(hub.repositories["wmt/toy"].files[path])
    monkeypatch.setenv("MTRAIN_MIRROR", str(tmp_path / "mirror"))
    hub.requests.clear()
    assert read(lock) == TRAIN
    assert hub.requests == []


def test_a_newer_commit_does_not_change_what_is_locked(lock, hub):
    read(lock)
    hub.repositories["wmt/toy"].revision = "b" * 40
    hub.repositories["wmt/toy"].files[FIRST] = translations(VALID, ("en", "de"))
    assert read(lock) == TRAIN
    assert lock.sources["hub:wmt/toy de-en train"]["revision"] == REVISION


def test_a_file_that_changed_under_its_commit_is_an_error(lock, hub):
    files_of(entry(), lock)
    hub.repositories["wmt/toy"].files[FIRST] = translations(VALID, ("en", "de"))
    with pytest.raises(DownloadError, match=r"train-00000-of-00002\.parquet of wmt/toy has the wr"):
        read(lock)


def test_large_sets_are_streamed(lock, hub, tmp_path):
    assert read(lock, stream_above_gib=0.0) == TRAIN
    assert lock.sources["hub:wmt/toy de-en train"]["pairs"] == 10
    assert not list((tmp_path / "cache").rglob("*.parquet"))


def test_other_formats_are_streamed(lock, hub):
    lines = "".join(json.dumps({"text": s, "gold": t}) + "\n" for s, t in TRAIN)
    hub.repositories["wmt/json"] = Repository({"train.jsonl": lines.encode()})
    keys = {"hub": "wmt/json", "config": None, "source_column": "text", "target_column": "gold"}
    assert read(lock, **keys) == TRAIN
    assert lock.sources["hub:wmt/json train"]["format"] == "json"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hub": "no/body"}, "the hub data set no/body does not exist, or needs a login"),
        ({"hub": "wmt/closed"}, "the hub data set wmt/closed needs a login"),
        ({"revision": "v9"}, "the hub data set wmt/toy has no revision `v9`"),
        ({"config": "xx"}, r"wmt/toy has no configuration `xx` \(found: de-en, fr-en\)"),
        ({"config": None}, r"has no configuration `default` \(found: de-en, fr-en\)"),
        ({"split": "test"}, r"wmt/toy has no split `test` \(found: train, validation\)"),
        ({"languages": ("en", "cs")}, "no column of text `translation.cs` or `cs` or `target`"),
    ],
)
def test_what_is_not_there_is_named(lock, hub, keys, message):
    hub.repositories["wmt/closed"] = Repository({}, is_gated=True)
    with pytest.raises(DataError, match=message) as error:
        read(lock, **keys)
    assert error.value.fix


def test_no_hub_at_all(lock, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="the hub data set wmt/toy cannot be read") as error:
        read(lock)
    assert "MTRAIN_MIRROR" in str(error.value)


@pytest.mark.parametrize("size", ["base", "big"])
def test_the_shipped_wmt14_configs_find_their_data(hub, tmp_path, monkeypatch, size):
    """From hub and sacreBLEU to prepared data, with a few pairs instead of 4.5 million."""
    shards = [TRAIN[:4], TRAIN[4:8], TRAIN[8:]]
    files = {
        f"de-en/train-{i:05d}-of-00003.parquet": translations(shard, ("en", "de"))
        for i, shard in enumerate(shards)
    }
    files["de-en/validation-00000-of-00001.parquet"] = translations(VALID, ("en", "de"))
    splits = {split: f"de-en/{split}-*" for split in ("train", "validation")}
    files["README.md"] = card({"de-en": splits, "fr-en": splits}, licence="unknown")
    hub.repositories["wmt/wmt14"] = Repository(files, licence="unknown")
    newstest = tmp_path / "mirror" / "test-full.tgz"
    newstest.parent.mkdir()
    newstest.write_bytes(archive_of_newstest())
    monkeypatch.setattr(DATASETS["wmt14/full"], "md5", [md5(newstest.read_bytes()).hexdigest()])
    monkeypatch.setenv("MTRAIN_MIRROR", str(newstest.parent))
    path = tmp_path / f"wmt14-en-de-{size}.yaml"
    path.write_bytes((REPOSITORY / "configs" / path.name).read_bytes())
    lock = Lock.open(path)
    lock.record(DATASETS["wmt14/full"].data[0], sha256_of(newstest), newstest.stat().st_size)
    lock.save(tmp_path)

    prepared = prepare(load_config(path, ["tokenizer.vocab_size=300"]), path)

    assert prepared.manifest["n_train_pairs"] == len(TRAIN)
    assert (prepared.path / "valid.target").read_text() == "eine Katze\n"
    assert (prepared.path / "newstest2014.source").read_text() == "One.\nTwo &amp; words\n"
    sources = Lock.open(path).sources
    assert sources["hub:wmt/wmt14 de-en train"]["revision"] == REVISION
    assert sources["sacrebleu:wmt14/full en-de"]["pairs"] == 2


@pytest.mark.slow
def test_the_command_obeys_hf_endpoint(hub, tmp_path):
    """The round trip of a user: a process of its own that knows the hub by its environment."""
    (tmp_path / "toy.yaml").write_text(
        """\
name: toy
source: en
target: de
data:
  train: {hub: wmt/toy, config: de-en, name: animals}
  valid: {hub: wmt/toy, config: de-en, split: validation}
tokenizer: {vocab_size: 300}
"""
    )
    done = run_mtrain("prepare", "toy.yaml", cwd=tmp_path, env=environment(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "10 training pairs" in done.stderr
    locked = json.loads((tmp_path / "toy.lock").read_text())["sources"]
    assert locked["hub:wmt/toy de-en train"]["name"] == "animals"
    hub.requests.clear()
    away = environment(hub, tmp_path) | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    again = run_mtrain("prepare", "toy.yaml", "--force", cwd=tmp_path, env=away)
    assert again.returncode == 0, again.stderr
    assert hub.requests == []
