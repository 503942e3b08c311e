"""Corpora in, prepared data out: what is kept, what is dropped, and what a failure leaves."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import mtrain_command, mtrain_environment

from mtrain.config.entries import CldrEntry, Entry, FilesEntry, JsonlEntry
from mtrain.config.load import dump_config
from mtrain.config.root import Config
from mtrain.config.sections import DataConfig, TokenizerConfig
from mtrain.data import corpus, identity, store
from mtrain.data import prepare as prepare_module
from mtrain.data.cleaning import hash_text, normalize
from mtrain.data.prepare import Prepared, copy_into_run, find_prepared, prepare
from mtrain.data.store import SIDES, TokenStore, read_target_hashes
from mtrain.data.tokenizer import load_tokenizers
from mtrain.errors import DataError, StorageError
from mtrain.machine import process_pool
from mtrain.run import RunDir
from mtrain.storage import sha256_of

CONFIG = Path("toy.yaml")
ANIMALS = ["dog", "cat", "bird", "horse", "cow", "pig", "fox", "bear", "mouse", "goat"]
PAIRS = [(f"the {a} sees a {b}", f"ein {b} wird vom {a} gesehn") for a in ANIMALS for b in ANIMALS]
VALID = [("all new here", "ganz neu hier"), ("Yes.", "Ja.")]
NONE = FilesEntry(source="none.en", target="none.de")
TEST = [("one two three four five", "eins zwei drei vier fünf")]


@pytest.fixture(autouse=True)
def _directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def files(name: str, pairs: list[tuple[str, str]]) -> FilesEntry:
    for column, side in enumerate(("en", "de")):
        text = "".join(f"{pair[column]}\n" for pair in pairs)
        Path(f"{name}.{side}").write_bytes(text.encode())
    return FilesEntry(source=f"{name}.en", target=f"{name}.de")


def make_config(
    pairs: list[tuple[str, str]] = PAIRS,
    valid: Entry | None = None,
    has_valid: bool = True,
    tokenizer: dict[str, object] | None = None,
    **data: object,
) -> Config:
    """A config whose files are written anew."""
    settings = {
        "train": (files("train", pairs),),
        "test": {"toy": files("test", TEST)},
        "clean": False,
    } | data
    if has_valid:
        settings["valid"] = valid or files("valid", VALID)
    return Config(
        name="toy",
        source="en",
        target="de",
        data=DataConfig.model_validate(settings),
        tokenizer=TokenizerConfig.model_validate({"vocab_size": 320} | (tokenizer or {})),
    )


def table(prepared: Prepared, split: str = "train") -> dict[str, int]:
    rows = [row for row in prepared.manifest["table"] if row["split"] == split]
    return {row["reason"]: row["pairs"] for row in rows}


def stored_text(prepared: Prepared) -> list[tuple[str, str]]:
    store = TokenStore.open(prepared.path, "train")
    source, target = load_tokenizers(prepared.path)
    indices = range(len(store))
    return list(
        zip(
            source.decode([store.src(i).tolist() for i in indices]),
            target.decode([store.tgt(i).tolist() for i in indices]),
            strict=True,
        )
    )


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in directory.iterdir()}


# -- what is kept ----------------------------------------------------------------------------


def test_every_dropped_pair_is_counted(capsys):
    dirty = [
        ("", "leer"),
        ("\u00a0\x01", "auch leer"),
        ("nichts", " "),
        (" the\tdog sees a  dog\r", "ein dog wird vom dog gesehn"),  # repeats PAIRS[0]
        (TEST[0][0], "eine andere Übersetzung"),
        ("Yes.", "Ja."),
        ("x " * 21, "zu lang"),
        ("zu lang", "y" * (16 * 20 + 1)),
        ("Yes.", "Doch."),
    ]
    prepared = prepare(make_config([*PAIRS, *dirty], max_length=20), CONFIG)
    assert table(prepared) == {
        "read": 109,
        "with an empty side": 3,
        "in valid or test": 2,
        "repeated": 1,
        "over-long": 2,
        "kept": 101,
    }
    assert table(prepared, "valid") == {"kept": 2}
    assert stored_text(prepared) == [*PAIRS, ("Yes.", "Doch.")]
    shown = capsys.readouterr().err
    assert "repeated" in shown
    assert "101 training pairs" in shown


def test_filters_can_be_switched_off():
    pairs = [*PAIRS, PAIRS[0], *TEST]
    config = make_config(pairs, deduplicate=False, decontaminate=False)
    prepared = prepare(config, CONFIG)
    assert stored_text(prepared) == pairs
    assert prepared.manifest["n_leaked"] == {"valid": 0, "toy": 1}  # counted all the same
    assert prepared.manifest["decontaminated"] is False


def test_the_filters_of_clean_count_what_they_drop():
    bad = [("www.a.de/x www.b.de/y", "https://a.com https://b.com"), ("a 5 b", "a 6 b")]
    frequent = [(f"which {animal} is it", "ja gut") for animal in ANIMALS]
    loose = [(source.upper(), f"{target}!") for source, target in PAIRS[:3]]
    clean = {"max_target_repeats": 4, "normalized_duplicates": True, "length_ratio": False}
    prepared = prepare(make_config([*PAIRS, *bad, *frequent, *loose], clean=clean), CONFIG)
    counts = table(prepared)
    assert counts["mostly addresses"] == 1
    assert counts["other numbers"] == 1
    assert counts["a target seen too often"] == 6
    assert counts["repeated but for case and punctuation"] == 3
    assert stored_text(prepared) == [*PAIRS, *frequent[:4]]
    [entry] = json.loads((prepared.path / "report.json").read_text())["entries"]
    assert (entry["n_read"], entry["n_kept"]) == (115, 104)
    dropped = {row["reason"]: row for row in entry["dropped"]}
    assert dropped["max_target_repeats"]["n_pairs"] == 6
    assert len(dropped["max_target_repeats"]["examples"]) == 5
    assert dropped["numbers"]["examples"] == [list(bad[1])]


def test_an_entry_can_be_spared_by_the_filters(capsys):
    """By all of data.clean, not by what would repeat a pair or give away the test set."""
    bad = [("a 5 b", "a 6 b"), ("a 5 b", "a 6 b"), TEST[0], ("over " * 21, "long")]
    frequent = [(f"which {animal} is it", "ja gut") for animal in ANIMALS]
    spared = files("spared", [*bad, *frequent]).model_copy(update={"clean": False})
    train = (files("judged", [("b 5 a", "b 6 a"), *PAIRS]), spared)
    clean = {"max_target_repeats": 1, "normalized_duplicates": True, "length_ratio": False}
    prepared = prepare(make_config(train=train, clean=clean, max_length=20), CONFIG)
    assert stored_text(prepared) == [*PAIRS, bad[0], *frequent]
    report = json.loads((prepared.path / "report.json").read_text())
    dropped = [{row["reason"] for row in entry["dropped"]} for entry in report["entries"]]
    assert dropped == [{"numbers"}, {"in valid or test", "repeated", "over-long"}]
    assert [entry["is_spared"] for entry in report["entries"]] == [False, True]
    described = {source["entry"]: source for source in prepared.manifest["sources"]}
    assert described["data.train.0"]["clean"] is True
    assert described["data.train.1"]["clean"] is False
    assert "clean" not in described["data.valid"]
    assert "cleaning the training text, except that of data.train.1\n" in capsys.readouterr().err


def test_generated_phrases_are_spared_unless_the_entry_says_otherwise():
    def prepare_with(entry: CldrEntry, clean: bool = True) -> Prepared:
        pieces = {"vocab_size": 400}
        return prepare(make_config(train=(entry,), clean=clean, tokenizer=pieces), CONFIG)

    spared = prepare_with(CldrEntry(cldr=200))
    judged = prepare_with(CldrEntry(cldr=200, clean=True))
    assert judged.manifest["n_train_pairs"] < spared.manifest["n_train_pairs"] == 200
    assert judged.path != spared.path
    without_filters = prepare_with(CldrEntry(cldr=200), clean=False)
    assert (
        without_filters.manifest["files"]["train.target.ids"]
        == (spared.manifest["files"]["train.target.ids"])
    )
    # Without filters it says nothing of the data whether an entry is spared.
    assert prepare_with(CldrEntry(cldr=200, clean=True), clean=False).path == without_filters.path


def test_words_of_valid_and_test_are_counted_in_training():
    valid = [("The DOG, the bear!", "Hund gesehn?")]
    prepared = prepare(make_config(valid=files("words", valid)), CONFIG)
    counts = json.loads((prepared.path / "word_counts.json").read_text())
    assert counts["source"] == {"bear": 20, "dog": 20, "the": 100}
    assert counts["target"] == {"gesehn": 100}


def test_each_pair_keeps_its_entry_and_the_hash_of_its_target():
    train = (files("a", PAIRS[:30]), files("b", [("", "x"), *PAIRS[20:60]]))
    prepared = prepare(make_config(train=train), CONFIG)
    stored = TokenStore.open(prepared.path)
    assert stored.entries.tolist() == [0] * 30 + [1] * 30
    target_hashes = read_target_hashes(prepared.path)
    assert target_hashes is not None
    assert target_hashes.tolist() == [hash_text(target) for _, target in PAIRS[:60]]


def test_valid_and_test_sets_keep_their_text_line_by_line():
    raw = [
        ("  two  spaces ", "cafe\u0301\u2028x"),
        ("", "nichts"),
        ("same", "same"),
        ("same", "same"),
    ]
    prepared = prepare(make_config(valid=files("raw", raw)), CONFIG)
    for side, name in enumerate(("source", "target")):
        text = (prepared.path / f"valid.{name}").read_bytes().decode()
        assert text == "".join(f"{pair[side]}\n" for pair in raw)


def test_a_line_break_inside_json_is_no_second_line():
    Path("v.jsonl").write_text(json.dumps({"source": "a\nb", "target": "c"}) + "\n")
    prepared = prepare(make_config(valid=JsonlEntry(jsonl="v.jsonl")), CONFIG)
    assert (prepared.path / "valid.source").read_text() == "a b\n"


def test_the_manifest_says_what_the_store_holds():
    manifest = (prepared := prepare(make_config(), CONFIG)).manifest
    assert manifest == json.loads((prepared.path / "manifest.json").read_text())
    store = TokenStore.open(prepared.path, "train")
    assert manifest["splits"] == ["valid", "toy"]
    assert manifest["n_train_pairs"] == len(store) == 100
    assert manifest["n_source_tokens"] == store.src_lengths.sum()
    assert manifest["n_target_tokens"] == store.tgt_lengths.sum()
    ratios = (store.tgt_lengths + 1) / (store.src_lengths + 1)
    assert manifest["length_ratio"]["mean"] == pytest.approx(ratios.mean())
    assert manifest["length_ratio"]["std"] == pytest.approx(ratios.std())
    sides = manifest["sides"]
    assert sides["source"]["tokens_per_word"] == pytest.approx(store.src_lengths.sum() / 500)
    assert sides["target"]["byte_share"] == 0
    assert manifest["files"] == {
        name: sha256 for name, sha256 in hashes(prepared.path).items() if name != "manifest.json"
    }
    source, target = load_tokenizers(prepared.path)
    assert manifest["vocab_sizes"] == [source.vocab_size, target.vocab_size]


def test_held_out_pairs_share_no_sentence_with_training(capsys):
    pairs = [(f"source {i // 2}", f"target {(i + 1) // 2}") for i in range(200)]  # a long chain
    prepared = prepare(make_config(pairs, has_valid=False), CONFIG)
    counts = table(prepared)
    assert counts["held out as valid"] == 4
    assert "4 of 200 training pairs are held out" in capsys.readouterr().err
    assert counts["sharing a sentence with valid"] > 0
    kept = stored_text(prepared)
    assert counts["kept"] == len(kept)
    for side, name in enumerate(SIDES):
        held_out = (prepared.path / f"valid.{name}").read_text().split("\n")[:-1]
        assert not {pair[side] for pair in kept} & set(held_out)


def test_generated_phrases_share_no_sentence():
    config = make_config(
        valid=CldrEntry(cldr=50),
        train=(CldrEntry(cldr=300),),
        test={"t": CldrEntry(cldr=50)},
        tokenizer={"vocab_size": 1000},
    )
    prepared = prepare(config, CONFIG)
    assert table(prepared)["in valid or test"] == 0
    trained = stored_text(prepared)
    for side, name in enumerate(SIDES):
        tested = (prepared.path / f"t.{name}").read_text().split("\n")[:-1]
        assert len(tested) == 50
        assert not {pair[side] for pair in trained} & set(map(normalize, tested))


def test_the_tokenizer_learns_from_text_in_one_language_too():
    words = ["zebra", "quagga", "okapi", "wombat"]
    Path("mono.en").write_text("".join(f"{a} {b}\n\xa0\n" for a in words for b in words))
    without = prepare(make_config(tokenizer={"shared": False, "vocab_size": 400}), CONFIG)
    config = make_config(
        tokenizer={"shared": False, "vocab_size": 400},
        mono=({"mono": "mono.en", "side": "source", "name": "animals"},),
    )
    prepared = prepare(config, CONFIG)
    assert prepared.path != without.path
    sides = load_tokenizers(prepared.path), load_tokenizers(without.path)
    n_pieces = [[len(side.encode(["okapi quagga"])[0]) for side in pair] for pair in sides]
    assert n_pieces[0][0] < n_pieces[1][0]
    assert n_pieces[0][1] == n_pieces[1][1]
    assert json.loads(Path("toy.lock").read_text())["sources"]["mono.en"] == {
        "lines": 32,
        "name": "animals",
    }


# -- when it is made anew --------------------------------------------------------------------


def test_a_second_run_changes_nothing(capsys):
    config = make_config()
    first = prepare(config, CONFIG)
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    capsys.readouterr()
    assert prepare(config, CONFIG) == first
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
    assert capsys.readouterr().err == f"{first.path} is up to date\n"


def test_force_gives_the_same_bytes():
    config = make_config()
    first = prepare(config, CONFIG)
    before, inode = hashes(first.path), first.path.stat().st_ino
    assert prepare(config, CONFIG, force=True).path == first.path
    assert hashes(first.path) == before
    assert first.path.stat().st_ino != inode


def test_what_matters_gives_a_new_directory_and_the_old_one_stays():
    first = prepare(make_config(), CONFIG)
    before = hashes(first.path)
    others = [
        prepare(make_config(tokenizer={"vocab_size": 310}), CONFIG),
        prepare(make_config(max_length=100), CONFIG),
        prepare(make_config(PAIRS[1:]), CONFIG),  # only the content of a file differs
    ]
    assert len({prepared.path for prepared in [first, *others]}) == 4
    assert hashes(first.path) == before
    assert prepare(make_config(), CONFIG).path == first.path


def test_what_does_not_matter_gives_the_same_directory():
    config = make_config()
    first = prepare(config, CONFIG)
    os.utime("train.en", (1, 1))
    train = config.train.model_copy(update={"max_steps": 7})
    assert prepare(config.model_copy(update={"train": train}), CONFIG).path == first.path


def test_find_prepared_only_looks():
    config = make_config()
    before = sorted(Path().rglob("*"))
    assert find_prepared(config, CONFIG) is None
    assert sorted(Path().rglob("*")) == before
    assert prepare(config, CONFIG) == find_prepared(config, CONFIG)


def test_prepared_data_outlives_the_text_it_was_made_from():
    config = make_config()
    first = prepare(config, CONFIG)
    Path("train.en").unlink()
    assert find_prepared(config, CONFIG) == first
    with pytest.raises(DataError, match="no file train"):
        prepare(config, CONFIG, force=True)
    assert find_prepared(config, CONFIG) == first


def test_what_was_downloaded_once_needs_no_network(monkeypatch):
    files("mirror", PAIRS)
    sides = {"source": "en", "target": "de"}
    entry = FilesEntry(
        **{side: f"https://example.invalid/mirror.{end}" for side, end in sides.items()},
        sha256={side: sha256_of(Path(f"mirror.{end}")) for side, end in sides.items()},
    )
    monkeypatch.setenv("MTRAIN_CACHE", "cache")
    monkeypatch.setenv("MTRAIN_MIRROR", str(Path.cwd()))
    config = make_config(train=(entry,))
    first = prepare(config, CONFIG)
    assert stored_text(first) == PAIRS
    monkeypatch.delenv("MTRAIN_MIRROR")
    assert prepare(config, CONFIG) == first


@pytest.mark.parametrize("name", ["train.source.ids", "tokenizer.model", "manifest.json"])
def test_damaged_data_is_prepared_again(name, capsys):
    config = make_config()
    first = prepare(config, CONFIG)
    before = hashes(first.path)
    (first.path / name).write_bytes((first.path / name).read_bytes()[:-3])
    assert find_prepared(config, CONFIG) is None
    prepare(config, CONFIG)
    assert hashes(first.path) == before
    assert "is damaged" in capsys.readouterr().err


def test_the_lock_records_the_files():
    prepare(make_config(), CONFIG)
    recorded = json.loads(Path("toy.lock").read_text())["files"]
    assert recorded["train.en"]["sha256"] == sha256_of(Path("train.en"))
    assert recorded["train.en"]["lines"] == 100


# -- failures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"pairs": [("", "x"), ("a", ""), *TEST]},
            "left of 3: 2 with an empty side, 1 in valid or test",
        ),
        ({"max_length": 2}, "left of 100: 100 over-long"),
        ({"pairs": PAIRS[:1], "has_valid": False}, "left of 1: 1 held out as valid"),
        ({"pairs": []}, r"data\.train holds no sentence pairs"),
        ({"valid": NONE}, r"data\.valid holds no sentence pairs"),
        ({"test": {"t": NONE}}, r"data\.test\.t holds no sentence pairs"),
    ],
)
def test_nothing_left_is_an_error_that_names_the_filter(settings, said):
    files("none", [])
    with pytest.raises(DataError, match=said):
        prepare(make_config(**settings), CONFIG)
    assert leftovers() == []


def test_when_cleaning_leaves_nothing_its_filter_is_named():
    numbers = [(f"{i} dogs sat here today", f"{i + 50} Hunde saßen heute da") for i in range(20)]
    pairs = [*numbers, ("See here {", "Siehe da")]
    with pytest.raises(DataError) as error:
        prepare(make_config(pairs, clean={}), CONFIG)
    assert "no training pairs are left of 21: " in error.value.message
    assert "20 other numbers, 1 markup on one side" in error.value.message
    assert "`data.clean.numbers`" in (error.value.fix or "")


def test_swapped_sides_are_an_error():
    months = [("January", "Januar"), ("March", "März"), ("June", "Juni"), ("July", "Juli")]
    pairs = [
        (f"Im {monat} und im {other} regnet es.", f"It rains in {month} and {another}.")
        for month, monat in months
        for another, other in months
    ]
    with pytest.raises(DataError, match=r"data.train.0: the sides are swapped: its source text is"):
        prepare(make_config(pairs), CONFIG)
    assert not list(Path("data").glob("*/*/manifest.json"))


def test_a_directory_that_cannot_be_written():
    Path("data").write_text("a file where the directory should be")
    with pytest.raises(StorageError, match="cannot write data/toy"):
        prepare(make_config(), CONFIG)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(
    ("module", "name", "is_first_step"),
    [(store, "corpus.text", True), (store, "train.target.ids", False)],
)
def test_a_full_disk_is_named_and_only_whole_steps_stay(module, name, is_first_step, monkeypatch):
    config = make_config()

    def open_on_a_full_disk(path: Path, *mode: str, **options: object) -> object:
        return open("/dev/full" if Path(path).name == name else path, *mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "open", open_on_a_full_disk, raising=False)
        with pytest.raises(StorageError, match=f"no space left .*{name}"):
            prepare(config, CONFIG)
    left = {path.name for path in Path("data").rglob("*") if path.is_file()}
    assert name not in left
    assert ("tokenizer.model" in left) is not is_first_step
    prepare(config, CONFIG)
    assert leftovers() == []


def test_an_interrupted_run_leaves_what_was_there(monkeypatch):
    config = make_config()
    first = prepare(config, CONFIG)
    before = hashes(first.path)
    interrupt_at(monkeypatch, "encode_corpus")
    with pytest.raises(KeyboardInterrupt):
        prepare(config, CONFIG, force=True)
    assert hashes(first.path) == before


def interrupt_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, name, interrupt)


def test_whole_steps_are_not_done_again(monkeypatch, capsys):
    config = make_config(has_valid=False, clean={})
    whole = prepare(config, CONFIG)
    expected = hashes(whole.path)
    shutil.rmtree("data")
    with monkeypatch.context() as patch:
        interrupt_at(patch, "train_tokenizers")
        with pytest.raises(KeyboardInterrupt):
            prepare(config, CONFIG)
    with monkeypatch.context() as patch:
        interrupt_at(patch, "encode_corpus")
        patch.setattr(prepare_module, "Norms", None)  # for cleaning: would fail
        with pytest.raises(KeyboardInterrupt):
            prepare(config, CONFIG)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "train_tokenizers", None)
        assert hashes(prepare(config, CONFIG).path) == expected
    assert "after: cleaned-text, tokenizer" in capsys.readouterr().err
    assert leftovers() == []


def test_a_step_whose_files_were_damaged_is_done_again(monkeypatch):
    config = make_config()
    expected = hashes(prepare(config, CONFIG).path)
    shutil.rmtree("data")
    with monkeypatch.context() as patch:
        interrupt_at(patch, "encode_corpus")
        with pytest.raises(KeyboardInterrupt):
            prepare(config, CONFIG)
    [text] = Path("data").rglob("corpus.text")
    text.write_bytes(text.read_bytes()[:-5])
    assert hashes(prepare(config, CONFIG).path) == expected


def test_what_killed_runs_of_other_data_left_is_removed():
    gone, alive = Path("data/toy/0.partial"), Path("data/toy/1.partial")
    for path in (gone, alive):
        path.mkdir(parents=True)
    with open("data/toy/.1.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        prepare(make_config(), CONFIG)
    assert not gone.exists()
    assert alive.exists()


def test_two_processes_make_the_same_data_as_one(monkeypatch):
    monkeypatch.setattr(process_pool, "N_HERE", 1)
    for module in (corpus, identity):
        monkeypatch.setattr(module, "CHUNK_PAIRS", 30)
    config = make_config([*PAIRS, *PAIRS[:7], ("", "x")], clean={})
    one = hashes(prepare(config, CONFIG, n_processes=1).path)
    shutil.rmtree("data")
    assert hashes(prepare(config, CONFIG, n_processes=2).path) == one
    assert leftovers() == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_a_killed_prepare_leaves_no_process_and_is_gone_on_with(tmp_path):
    words = [f"{a}{b}" for a in "bcdfghjklmnpqrstvwxz" for b in ("ato", "uni", "elos", "imar")]
    generator = random.Random(1)
    pairs = [
        (" ".join(generator.choices(words, k=12)), " ".join(generator.choices(words, k=12)))
        for _ in range(60_000)
    ]
    config = make_config(pairs)
    Path("toy.yaml").write_text(dump_config(config))
    command = mtrain_command("prepare", "toy.yaml", "--processes", "2")
    process = subprocess.Popen(
        command, env=mtrain_environment(), stderr=subprocess.PIPE, start_new_session=True
    )
    while not list(Path("data").rglob("train.source.ids")) or len(alive_in_group(process.pid)) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 10
    while alive_in_group(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    done = subprocess.run(
        command, env=mtrain_environment(), capture_output=True, text=True, check=True
    )
    assert "resuming in" in done.stderr
    assert leftovers() == []
    prepared = find_prepared(config, CONFIG)
    assert prepared is not None
    after_kill = hashes(prepared.path)
    assert hashes(prepare(config, CONFIG, force=True, n_processes=1).path) == after_kill


def alive_in_group(group: int) -> list[str]:
    """The processes of a group, but for those that have ended and wait for their parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # ended meanwhile
            continue
        if int(its_group) == group and state != "Z":
            found.append(path.parent.name)
    return found


def leftovers() -> list[Path]:
    return [
        path
        for pattern in ("*.tmp*", "*.partial", "*.old", ".*.lock")
        for path in Path("data").rglob(pattern)
    ]


# -- warnings --------------------------------------------------------------------------------


def test_suspicions_are_said(capsys):
    copies = [(f"copy {i}", f"copy {i}") for i in range(25)]
    tokenized = [(f"a {i} .", f"ein {i} .") for i in range(3)]
    prepare(make_config([*PAIRS, *copies], valid=files("tok", tokenized)), CONFIG)
    shown = capsys.readouterr().err
    assert "warning: in 20% of the training pairs the target is the source" in shown
    assert "warning: 100% of the references of `valid` end in ` .`" in shown
    prepare(make_config(), CONFIG)
    assert "the target is the source" not in capsys.readouterr().err


# -- into a run ------------------------------------------------------------------------------


def test_a_run_needs_nothing_of_the_prepared_data():
    prepared = prepare(make_config(), CONFIG)
    run = RunDir("runs/toy")
    copy_into_run(prepared, run)
    shutil.rmtree("data")
    assert run.splits() == ["valid", "toy"]
    split = run.read_split("valid")
    assert list(zip(split.sources, split.references, strict=True)) == VALID
    source, target = load_tokenizers(run.path)
    assert source is target
    assert source.decode(source.encode(["the dog"])) == ["the dog"]
