"""Every key of the config changes what it names: weights, data, files, translations or scores.

The tests use the command line alone, and know no names inside the program. A key that is in none of
the tables fails `test_every_key_is_tried`.
"""

import json
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, invoke, write_lines
from safetensors.numpy import load_file

CONFIG = """\
name: toy
source: en
target: de
data:
  train: {source: train.src, target: train.tgt}
  valid: {source: valid.src, target: valid.tgt}
  test: {set: {source: valid.src, target: valid.tgt}}
  clean: false
tokenizer: {vocab_size: 300}
model: {d_model: 16, d_ff: 24, n_heads: 2, n_encoder_layers: 1, n_decoder_layers: 1, dropout: 0.1}
train:
  max_steps: 3
  batch_tokens: 200
  validate_every: 3
  save_every: 3
  threads: 1
  device: cpu
  precision: fp32
  both_directions: 0
  optim:
    optimizer: adamw
    learning_rate: 0.01
    schedule: inverse_sqrt
    warmup_steps: 2
    weight_decay: 0.01
    ema_decay: 0
decode: {beam_size: 2, precision: fp32}
"""
OPTIM = "train.optim."
TWO_ENTRIES = (
    "data.train=[{source: train.src, target: train.tgt}, {source: valid.tgt, target: valid.src}]",
    "data.valid={source: other.src, target: other.tgt}",
)

# The setting that is tried, and the settings that both runs have beside it.
WEIGHTS: list[tuple[str, ...]] = [
    ("train.seed=2",),
    ("train.batch_tokens=100",),
    ("train.both_directions=1",),
    ("train.init_from=runs/base", "tokenizer.model=runs/base/tokenizer.model"),
    ("train.precision=bf16",),
    ("train.max_steps=2",),
    (f"{OPTIM}optimizer=muon",),
    (f"{OPTIM}learning_rate=0.02",),
    (f"{OPTIM}schedule=constant",),
    (f"{OPTIM}warmup_steps=1",),
    (f"{OPTIM}beta1=0.5",),
    (f"{OPTIM}beta2=0.5",),
    (f"{OPTIM}epsilon=0.1",),
    (f"{OPTIM}momentum=0.5", f"{OPTIM}optimizer=muon"),
    (f"{OPTIM}weight_decay=5",),
    (f"{OPTIM}clip_norm=0.0001", f"{OPTIM}epsilon=0.1"),
    (f"{OPTIM}label_smoothing=0.5",),
    (f"{OPTIM}consistency=rdrop",),
    (f"{OPTIM}consistency_weight=1", f"{OPTIM}consistency=rdrop"),
    (f"{OPTIM}cut=0.5", f"{OPTIM}consistency=simcut"),
    ("model.n_heads=4",),
    ("model.norm=post",),
    ("model.norm_type=rmsnorm",),
    ("model.activation=gelu",),
    ("model.dropout=0.5",),
    ("model.attention_dropout=0.5",),
    ("model.activation_dropout=0.5",),
    ("tokenizer.sampling=0.5", "tokenizer.type=bpe"),
    ("data.temperature=5", *TWO_ENTRIES),
]
SHAPES = [
    *("model.d_model=32", "model.d_ff=32", "model.n_encoder_layers=2", "model.n_decoder_layers=2"),
    *("model.tied=none", "model.preset=tiny"),
]
DATA: list[tuple[str, ...]] = [
    ("tokenizer.vocab_size=310",),
    ("tokenizer.type=bpe",),
    ("tokenizer.user_defined_symbols=[ab]",),
    ("tokenizer.model=runs/base/tokenizer.model", "tokenizer.vocab_size=310"),
    ("tokenizer.shared=false",),
    ("tokenizer.split_digits=true",),
    ("tokenizer.character_coverage=0.98",),
    ("tokenizer.max_sentences=20",),
    ("data.max_length=8",),
    ("data.deduplicate=false",),
    ("data.decontaminate=false",),
    ("data.seed=2", "data.valid="),
    ("data.mono={mono: mono.txt, side: source}",),
    ("data.train={source: train.tgt, target: train.src}",),
    ("data.valid={source: other.src, target: other.tgt}",),
    ("data.test={source: other.src, target: other.tgt}",),
]
# A pair that each filter drops, and its setting where it is off by default.
LINE = "the cat sees a dog in the garden of the old house"
FILTERS: dict[str, tuple[str, str]] = {
    "max_characters=30": (LINE, LINE.upper()),
    "max_words=5": (LINE, LINE.upper()),
    "max_word_characters=20": ("a cat", "x" * 30),
    "min_letters=0.3": ("1 2 3 4 5 a", "1 2 3 4 5 a"),
    "max_digits=0.5": ("12345678 a", "12345678 a"),
    "max_punctuation=0.5": ("a ... !!! ???", "a ... !!! ???"),
    "garbled=true": ("a fine café here", "ein schÃ¶nes CafÃ© hier fÃ¼r dich"),
    "script=0.5": (LINE, "кот видит собаку в саду старого дома"),
    "copies=0.95": (LINE, LINE),
    "length_ratio=4.0": ("a", "wort " * 40),
    "numbers=true": ("they paid 17 euros", "sie zahlten 45 euro"),
    "repetition=0.25": ("cat " * 20 + "dog", "hund " * 20 + "katze"),
    "markup=true": ("a <b>cat</b>", "eine katze"),
    "urls=0.5": ("https://example.org/some/long/path a", "https://example.org/some/long/path b"),
    "normalized_duplicates=true": ("A cat, a dog!", "Eine Katze, ein Hund!"),
    "max_target_repeats=1": ("a third cat", "eine katze ein hund"),
}
RUN_FILES: list[tuple[str, ...]] = [
    ("train.validate_every=1",),
    ("train.save_every=1",),
    ("train.log_every=1",),
    ("train.keep=1", "train.save_every=1"),
    ("train.keep_best=3", "train.validate_every=1", "train.best_metric=loss"),
    ("train.best_metric=loss",),
    (
        "train.patience=1",
        "train.validate_every=1",
        "train.max_steps=9",
        f"{OPTIM}learning_rate=1e-12",
    ),
    (f"{OPTIM}ema_decay=0.9",),
]
TRANSLATIONS = ["decode.beam_size=1", "decode.length_penalty=3", "decode.length_penalty_form=gnmt"]
SIGNATURES = ["evaluate.tokenize=char", "evaluate.lowercase=true"]
ELSEWHERE = {
    "name": "the directories of data and runs",
    "source": "the language, in test_target_languages",
    "target": "the language, in test_target_languages",
    "run": "used by every test here",
    "data.max_unreadable": "an error, in test_prepare",
    "data.clean.language": "needs a language identifier, in test_filters",
    "data.clean.wrong_side": "learns from a corpus, in test_filters",
    "train.budget": "time, in test_train",
    "train.micro_batch_tokens": "memory and speed alone",
    "train.device": "needs a GPU",
    "train.compile": "speed alone, in test_compile",
    "train.threads": "the order of sums, in test_workers",
    "train.tensorboard": "needs an extra, in test_train",
    "decode.batch_tokens": "memory and speed alone",
    "decode.precision": "the last digits, in test_translate",
    "evaluate.comet": "a message, in test_hostile",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Texts, a config, and a run of it that was trained and evaluated: runs/base."""
    directory = tmp_path_factory.mktemp("wiring")
    generator = random.Random(3)

    def sentence() -> str:
        letters = "abcdef" * 12 + "0123456789"
        words = ("".join(generator.choices(letters, k=generator.randint(1, 4))) for _ in range(9))
        return " ".join(list(words)[: generator.randint(1, 9)])

    for name, n in (("train", 120), ("valid", 8), ("other", 8)):
        lines = [sentence() for _ in range(n)]
        if name == "train":
            lines += ["é ü a", *lines[:3]]
        else:
            known = (directory / "train.src").read_text(encoding="utf-8").split("\n")
            lines[0] = known[5 if name == "valid" else 9]
        write_lines(directory / f"{name}.src", lines)
        write_lines(directory / f"{name}.tgt", [" ".join(line.split()[::-1]) for line in lines])
    write_lines(directory / "mono.txt", ["abcabcabc defdefdef"] * 50)
    (directory / "toy.yaml").write_text(CONFIG, encoding="utf-8")
    train(directory, "runs/base")
    done = invoke("eval", "runs/base", "--json", cwd=directory)
    (directory / "scores.json").write_text(done.stdout, encoding="utf-8")
    return directory


def train(directory: Path, run: str, *settings: str) -> Path:
    sets = [word for setting in settings for word in ("--set", setting)]
    done = invoke("train", "toy.yaml", *sets, "--set", f"run={run}", cwd=directory)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    (directory / run / "said.txt").write_text(said.replace(run, "RUN"), encoding="utf-8")
    return directory / run


def two_runs(directory: Path, settings: Sequence[str]) -> tuple[Path, Path]:
    """A run without the first of the settings, and one with it."""
    setting, *context = settings
    without = directory / "runs" / ("base" if not context else f"without-{slug(setting)}")
    if not without.exists():
        train(directory, f"runs/{without.name}", *context)
    return without, train(directory, f"runs/{slug(setting)}", setting, *context)


def slug(text: str) -> str:
    return re.sub(r"\W+", "-", text)[:40]


def weights(run: Path) -> dict[str, Any]:
    return load_file(run / "model.safetensors")


@pytest.mark.parametrize("settings", WEIGHTS, ids=lambda settings: settings[0])
def test_weights(directory, settings):
    before, after = map(weights, two_runs(directory, settings))
    assert any((before[key] != after[key]).any() for key in before.keys() & after.keys())


@pytest.mark.parametrize("setting", SHAPES)
def test_shapes_of_weights(directory, setting):
    context = ["model={dropout: 0.1}"] if "preset" in setting else []
    run = train(directory, f"runs/{slug(setting)}", *context, setting)
    assert shapes(run) != shapes(directory / "runs" / "base")


def shapes(run: Path) -> dict[str, tuple[int, ...]]:
    return {key: value.shape for key, value in weights(run).items()}


@pytest.mark.parametrize("settings", DATA, ids=lambda settings: settings[0])
def test_prepared_data(directory, settings):
    before, after = map(texts_and_ids, two_runs(directory, settings))
    assert before != after


def texts_and_ids(run: Path) -> dict[str, bytes]:
    manifest = json.loads((run / "data" / "manifest.json").read_text(encoding="utf-8"))
    prepared = run.parent.parent / manifest["path"]
    files = [*prepared.glob("train.*"), *prepared.glob("tokenizer*"), *(run / "data").glob("*.src")]
    files += [*(run / "data").glob("*.source")]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize("setting", FILTERS)
def test_filters(directory, setting):
    """A pair that nothing else is wrong with is dropped by the filter, and stays without it."""
    key = setting.partition("=")[0]
    names = [*(setting.partition("=")[0] for setting in FILTERS), "wrong_side"]
    off = f"data.clean={{{', '.join(f'{name}: false' for name in names)}}}"
    source, target = FILTERS[setting]
    lines = [f"a cat and {word} dogs" for word in ("two", "three", "four", "five", "six")]
    write_lines(directory / "bad.src", [*lines, "a cat a dog", source, "a Cat a dog"])
    targets = [f"katze und {word} hunde" for word in ("zwei", "drei", "vier", "fünf", "sechs")]
    write_lines(directory / "bad.tgt", [*targets, "eine katze ein hund", target, "eine katze"])
    n_pairs = [
        n_kept(directory, off, *extra)
        for extra in ((), (f"data.clean.{key}={setting.partition('=')[2]}",))
    ]
    assert n_pairs[1] < n_pairs[0] == 8


def n_kept(directory: Path, *settings: str) -> int:
    train_on = "data.train={source: bad.src, target: bad.tgt}"
    sets = [word for setting in (train_on, *settings) for word in ("--set", setting)]
    done = invoke("prepare", "toy.yaml", *sets, "--set", "name=bad", cwd=directory)
    found = re.search(r"data/bad/\w+", done.stdout + done.stderr)
    assert found, done.stderr
    manifest = json.loads((directory / found[0] / "manifest.json").read_text(encoding="utf-8"))
    return int(manifest["n_train_pairs"])


@pytest.mark.parametrize("settings", RUN_FILES, ids=lambda settings: settings[0])
def test_files_of_a_run(directory, settings):
    before, after = map(checkpoints_and_log, two_runs(directory, settings))
    assert before != after


def checkpoints_and_log(run: Path) -> list[Any]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    kinds = [(record["kind"], record["step"]) for record in map(json.loads, lines)]
    files = sorted(str(p.relative_to(run)) for p in (run / "checkpoints").rglob("*"))
    said = (run / "said.txt").read_text(encoding="utf-8")
    return [kinds, files, re.findall("with (chrF|BLEU|loss)|done: .*?([a-zA-Z]+) [0-9]", said)]


@pytest.fixture
def copied(directory, tmp_path):
    return Path(shutil.copytree(directory / "runs" / "base", tmp_path / "run"))


def change(run: Path, setting: str) -> None:
    """Change a key in the config that the run keeps."""
    key, _, value = setting.partition("=")
    section, name = key.split(".")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config[section][name] = yaml.safe_load(value)
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


@pytest.mark.parametrize("setting", TRANSLATIONS)
def test_translations(directory, copied, setting):
    options = (directory / "valid.src", "--format", "jsonl", "--device", "cpu")
    before = invoke("translate", copied, *options, cwd=directory).stdout
    change(copied, setting)
    after = invoke("translate", copied, *options, cwd=directory).stdout
    assert before.count("\n") == after.count("\n") == 8
    assert before != after


@pytest.mark.parametrize("setting", SIGNATURES)
def test_scores(directory, copied, setting):
    before = json.loads((directory / "scores.json").read_text(encoding="utf-8"))
    change(copied, setting)
    after = json.loads(invoke("eval", copied, "--json", cwd=directory).stdout)
    assert before["set"]["bleu"]["signature"] != after["set"]["bleu"]["signature"]


def test_every_key_is_tried():
    """All keys of the schema that editors use, entries of data aside."""
    schema = json.loads((REPOSITORY / "configs" / "schema.json").read_text(encoding="utf-8"))

    def keys(section: dict[str, Any], prefix: str) -> Iterator[str]:
        for name, field in section["properties"].items():
            inner = re.search(r"#/\$defs/(\w+Config)\b", json.dumps(field))
            if inner:
                yield from keys(schema["$defs"][inner[1]], f"{prefix}{name}.")
            else:
                yield prefix + name

    tried = {settings[0] for settings in (*WEIGHTS, *DATA, *RUN_FILES)}
    tried |= {*SHAPES, *TRANSLATIONS, *SIGNATURES, *(f"data.clean.{key}" for key in FILTERS)}
    names = {setting.partition("=")[0] for setting in tried}
    assert set(keys(schema, "")) == names | ELSEWHERE.keys()
