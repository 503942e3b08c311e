"""Configs: what loads, what is refused and in which words, and that a dump loads back."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from json_schema import is_valid

from mtrain.config.entries import (
    ENTRIES,
    CldrEntry,
    FilesEntry,
    HubEntry,
    JsonlEntry,
    MonoEntry,
    OpusEntry,
    ParquetEntry,
    SacrebleuEntry,
    TsvEntry,
)
from mtrain.config.load import dump_config, json_schema, load_config, read_run_config
from mtrain.config.root import Config
from mtrain.config.sections import ModelConfig
from mtrain.config.yaml_reader import apply_override, read_file
from mtrain.errors import ConfigError, UsageError
from mtrain.run import RunDir

MINIMAL = """\
name: toy
source: en
target: de
data:
  train: {source: train.en, target: train.de}
"""


@pytest.fixture(autouse=True)
def _in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load(text: str, *overrides: str) -> Config:
    path = Path("c.yaml")
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def problems(text: str, *overrides: str) -> list[str]:
    """Each problem as `message | fix`."""
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    assert caught.value.exit_code == 2
    return [
        f"{problem.message} | {problem.fix}" if problem.fix else problem.message
        for problem in caught.value.problems
    ]


def problem(text: str, *overrides: str) -> str:
    found = problems(text, *overrides)
    assert len(found) == 1, found
    return found[0]


# -- what loads ------------------------------------------------------------------------------


def test_defaults():
    config = load(MINIMAL)
    assert config.data.train == (FilesEntry(source="train.en", target="train.de"),)
    assert config.data.valid is None
    assert config.data.test == {}
    assert config.model == ModelConfig.model_validate({"preset": "small"})
    assert (config.model.d_model, config.model.n_encoder_layers, config.model.tied) == (
        256,
        3,
        "all",
    )
    assert config.train.optim.epsilon == 1e-9
    assert config.run_dir == Path("runs/toy")
    assert load(MINIMAL + "run: elsewhere/x\n").run_dir == Path("elsewhere/x")


def test_mixing_tags_and_tokenizers_that_do_not_fit_together():
    text = MINIMAL.replace("train.de}", "train.de, tag: bt, weight: 2}")
    assert load(text).data.train[0].tag == "bt"
    assert "either the temperature or the weights" in problem(text, "data.temperature=2")
    valid = "data.valid={source: v.en, target: v.de, tag: fr}"
    assert "`fr`, which no training entry has | choose one of bt" in problem(text, valid)
    assert "special symbol" in problem(text.replace("tag: bt", "tag: unk"))
    assert load(MINIMAL, "tokenizer.model=x.model").tokenizer.model == "x.model"
    assert "one model, which needs `tokenizer.shared: true`" in problem(
        MINIMAL, "tokenizer.model=x.model", "tokenizer.shared=false"
    )
    assert "no choice" in problem(MINIMAL, "tokenizer={type: char, sampling: 0.1}")


def test_both_directions_need_the_same_ids_on_both_sides():
    both = "train.both_directions=0.4"
    assert load(MINIMAL, both).train.both_directions == 0.4
    assert "`tokenizer.shared: true`" in problem(MINIMAL, both, "tokenizer.shared=false")
    tagged = MINIMAL.replace("train.de}", "train.de, tag: bt}")
    assert "does not support tags" in problem(tagged, both)


def test_the_config_of_the_contract():
    config = load(
        """
        name: my-model
        source: en
        target: de
        data:
          train: [{source: train.en, target: train.de}]
          valid: {source: valid.en, target: valid.de}
          test: {flickr: {source: test.en, target: test.de}}
        tokenizer: {vocab_size: 8000}
        model: {preset: small}
        train: {max_steps: 20000, batch_tokens: 4096, validate_every: 1000, save_every: 1000}
        decode: {beam_size: 5, length_penalty: 1.0}
        """
    )
    assert config.data.test == {"flickr": FilesEntry(source="test.en", target="test.de")}
    assert config.train.max_steps == 20000


def test_every_kind_of_entry():
    config = load(
        MINIMAL.split("data:")[0]
        + """\
data:
  train:
    - {source: a, target: b, sha256: {source: "%s"}}
    - {tsv: c, columns: [2, 1]}
    - {jsonl: d, source_field: en}
    - {cldr: 7}
  test: {cldr: 5}
"""
        % ("ab" * 32)
    )
    assert config.data.train == (
        FilesEntry(source="a", target="b", sha256={"source": "ab" * 32}),
        TsvEntry(tsv="c", columns=(2, 1)),
        JsonlEntry(jsonl="d", source_field="en"),
        CldrEntry(cldr=7),
    )
    assert config.data.test == {"test": CldrEntry(cldr=5)}


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [
        ("tiny", (128, 256, 4, 4, 4)),
        ("small", (256, 1024, 4, 3, 3)),
        ("base", (512, 2048, 8, 6, 6)),
        ("big", (1024, 4096, 16, 6, 6)),
    ],
)
def test_presets(preset, sizes):
    model = load(MINIMAL + f"model: {{preset: {preset}}}").model
    assert (
        model.d_model,
        model.d_ff,
        model.n_heads,
        model.n_encoder_layers,
        model.n_decoder_layers,
    ) == sizes
    assert model.norm == "pre"


def test_sizes_beside_a_preset():
    model = load(MINIMAL + "model: {preset: tiny, n_encoder_layers: 2, d_ff: null}").model
    assert (model.d_model, model.n_encoder_layers, model.n_decoder_layers) == (128, 2, 4)
    assert model.d_ff == 256


def test_tied_is_output_where_each_side_has_its_vocabulary():
    assert load(MINIMAL + "tokenizer: {shared: false}").model.tied == "output"
    assert load(MINIMAL + "tokenizer: {shared: false}\nmodel: {tied: none}").model.tied == "none"


@pytest.mark.parametrize(
    ("written", "value"),
    [("3e-4", 3e-4), ("1e-9", 1e-9), ("1", 1.0), (".5", 0.5), ("+2.", 2.0), ("010", 10.0)],
)
def test_numbers_of_yaml_1_2(written, value):
    config = load(MINIMAL, f"train.optim.learning_rate={written}")
    assert config.train.optim.learning_rate == value
    assert isinstance(config.train.optim.learning_rate, float)


@pytest.mark.parametrize("word", ["1:30", "yes", "0b1", "1_000", "2024-01-01", "<<", "="])
def test_text_of_yaml_1_2(word):
    assert load(MINIMAL, f"run={word}").run == word


def test_integers_of_yaml_1_2():
    assert load(MINIMAL, "train.seed=010").train.seed == 10
    assert load(MINIMAL, "train.seed=0o10").train.seed == 8
    assert load(MINIMAL, "train.seed=0x10").train.seed == 16


@pytest.mark.parametrize("section", ["model:", "model: {}", "model: ~", "train: {threads: null}"])
def test_null_is_the_default(section):
    assert load(MINIMAL + section) == load(MINIMAL)


def test_a_byte_order_mark_and_windows_lines_are_no_surprise():
    assert load("\ufeff" + MINIMAL.replace("\n", "\r\n")) == load(MINIMAL)


def test_quoted_norwegian():
    assert load(MINIMAL.replace("de\ndata", '"no"\ndata')).target == "no"


# -- what is refused -------------------------------------------------------------------------


def test_unknown_key():
    found = problem(MINIMAL + "model:\n  preset: tiny\n  droput: 0.3\n")
    assert found.startswith(
        "c.yaml:8: unknown key `model.droput` | "
        "did you mean `model.dropout`? (`model` takes preset, d_model, "
    )


def test_unknown_key_that_stands_elsewhere():
    assert "did you mean `train.optim.learning_rate`?" in problem(
        MINIMAL + "train: {learning_rate: 1}"
    )


def test_a_key_of_an_earlier_version_is_to_be_removed():
    assert problem(MINIMAL + "train: {cuda_graphs: false}") == (
        "c.yaml:6: unknown key `train.cuda_graphs` | "
        "remove it: mtrain no longer records CUDA graphs"
    )


def test_unknown_key_without_a_likeness_lists_the_keys():
    assert problem(MINIMAL + "evaluate: {zzz: 1}") == (
        "c.yaml:6: unknown key `evaluate.zzz` | `evaluate` takes tokenize, lowercase, comet"
    )


def test_misspelled_required_key_is_one_problem():
    found = problem(MINIMAL.replace("source: en", "sorce: en"))
    assert found.startswith("c.yaml:2: unknown key `sorce` | did you mean `source`?")


def test_duplicate_key_names_both_lines():
    assert problem(MINIMAL + "name: other\n") == (
        "c.yaml:6: duplicate key `name` (first on line 1) | keep one of the two"
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train: {max_steps: many}", "`train.max_steps` must be a whole number, not `many`"),
        ("train: {max_steps: 1.5}", "`train.max_steps` must be a whole number, not `1.5`"),
        ("train: {max_steps: true}", "`train.max_steps` must be a whole number, not `true`"),
        ("train: {max_steps: 0}", "`train.max_steps` must be at least 1, not `0`"),
        (
            "train: {max_steps: '500'}",
            '`train.max_steps` must be a whole number, not `"500"` | write `500`, without quotes',
        ),
        (
            "train: {max_steps: 20_000}",
            "`train.max_steps` must be a whole number, not `20_000` | "
            "write `20000`, without quotes",
        ),
        ("train: [1]", "`train` must be a mapping, not `[1]`"),
        ("train: {threads: 0}", "`train.threads` must be at least 1 or `auto`, not `0`"),
        (
            "train: {threads: all}",
            "`train.threads` must be a whole number or `auto`, not `all`",
        ),
        (
            "train: {best_metric: chrff}",
            "`train.best_metric` must be `chrf`, `bleu` or `loss`, not `chrff` | "
            "did you mean `chrf`?",
        ),
        ("model: {dropout: 1}", "`model.dropout` must be less than 1, not `1`"),
        ("model: {dropout: .nan}", "`model.dropout` must be a finite number, not `.nan`"),
        ("model: {dropout: true}", "`model.dropout` must be a number, not `true`"),
        (
            "evaluate: {lowercase: yes}",
            "`evaluate.lowercase` must be `true` or `false`, not `yes` | write `true`",
        ),
        (
            "evaluate: {tokenize: 13}",
            "`evaluate.tokenize` must be `auto`, `13a`, `intl`, `zh`, `ja-mecab`, `ko-mecab`, "
            "`char`, `none`, `spm`, `flores101`, `flores200` or `spBLEU-1K`, not `13` | "
            "did you mean `13a`?",
        ),
        ("run: [a]", "`run` must be text, not `[a]`"),
        ("run: {a: b}", "`run` must be text, not a mapping"),
    ],
)
def test_wrong_values(line, expected):
    assert problem(MINIMAL + line) == f"c.yaml:6: {expected}"


def test_a_name_is_a_slug():
    for name in ("a/b", "-a", ".a", "'a b'", '"a\\n"'):
        assert "`name` must be made of letters, digits" in problem(MINIMAL, f"name={name}")


@pytest.mark.parametrize("word", ["no", "NO", "on", "off", "yes", "y", "true", "False"])
def test_a_bare_word_is_no_language(word):
    assert problem(MINIMAL.replace("target: de", f"target: {word}")) == (
        f"c.yaml:3: `target` is an unquoted `{word}`, which many YAML parsers read "
        f'as a boolean | quote it: `target: "{word}"`'
    )


def test_missing_keys():
    assert problems("source: en\ndata: {valid: {cldr: 5}}\n") == [
        "c.yaml: missing key `name` | add `name`: name of the run and its data",
        "c.yaml: missing key `target` | add `target`: language code of the target, such as de",
        "c.yaml:2: missing key `data.train` | add `data.train`: an entry or a list of entries",
    ]


def test_a_required_key_without_a_value_is_missing_where_it_stands():
    assert problem(MINIMAL.replace("name: toy", "name:")).startswith("c.yaml:1: missing key `name`")
    assert problem(MINIMAL, "name=").startswith("--set name=: missing key `name`")


def test_all_problems_at_once_in_the_order_of_lines():
    found = problems(
        """\
name: toy
source: no
target: de
data:
  train:
    - {source: a, target: b}
    - {source: a, tsv: b}
  seed: -1
tokenizer: {shared: false}
model:
  droput: 1
  tied: all
  norm: pro
  d_model: 30
  norm: pre
train: {max_steps: 10, optim: {schedule: linear, warmup_steps: 10}}
""",
        "decode.beam_size=0",
        "x=1",
    )
    assert [re.split(r" \||: ", line)[0] for line in found] == [
        "c.yaml:2",
        "c.yaml:7",
        "c.yaml:8",
        "c.yaml:11",
        "c.yaml:12",
        "c.yaml:13",
        "c.yaml:14",
        "c.yaml:15",
        "c.yaml:16",
        "--set decode.beam_size=0",
        "--set x=1",
    ]


def test_a_consequence_of_another_problem_is_not_reported():
    assert problem(MINIMAL + "model: {d_model: wide, n_heads: 3}").startswith(
        "c.yaml:6: `model.d_model` must be a whole number"
    )


# -- entries ---------------------------------------------------------------------------------

FORMS = (
    "`{source, target}`, `{tsv}`, `{jsonl}`, `{parquet}`, `{hub}`, `{opus}`, `{sacrebleu}` "
    "or `{cldr}`"
)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            "{source: a, tsv: b}",
            f"mixes two kinds of entry (it has `source` and `tsv`) | an entry is one of {FORMS}",
        ),
        (
            "{sourc: a}",
            f"must be an entry ({FORMS}) | did you mean `source`?",
        ),
        (
            "train.tsv",
            f"must be an entry ({FORMS}), not `train.tsv`",
        ),
    ],
)
def test_no_entry(entry, expected):
    assert problem(MINIMAL + f"  valid: {entry}") == f"c.yaml:6: `data.valid` {expected}"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("{source: a}", "missing key `data.valid.target`"),
        ("{hub: a b}", "`data.valid.hub` must be a name of the hub, such as `wmt/wmt14`, not"),
        ("{opus: Europarl}", "`data.valid.opus` must be a corpus and its version, such as `Eur"),
        ("{hub: a/b, splitt: x}", "unknown key `data.valid.splitt` | did you mean `data.valid.sp"),
        ("{cldr: 5, name: a b}", "`data.valid.name` must be made of letters"),
        ("{cldr: 0}", "`data.valid.cldr` must be at least 1, not `0`"),
        ("{jsonl: a, columns: [0, 1]}", "unknown key `data.valid.columns` | `data.valid` takes "),
        ("{tsv: a, columns: [0]}", "`data.valid.columns` must be a list of 2 or more, not `[0]`"),
        ("{tsv: a, columns: [0, 1, 2]}", "`data.valid.columns` must be a list of 2, not `[0, 1, 2"),
        ("{tsv: a, columns: 1}", "`data.valid.columns` must be a list, not `1`"),
        ("{tsv: a, columns: [0, -1]}", "`data.valid.columns.1` must be at least 0, not `-1`"),
        ("{tsv: a, sha256: {tsv: abc}}", "`data.valid.sha256.tsv` must be 64 hexadecimal digits"),
        (
            "{tsv: a, sha256: {tvs: abc}}",
            "unknown key `data.valid.sha256.tvs` | did you mean `data.valid.sha256.tsv`?",
        ),
    ],
)
def test_wrong_entries(entry, expected):
    found = problems(MINIMAL + f"  valid: {entry}")
    assert any(line.startswith(f"c.yaml:6: {expected}") for line in found), found


def test_text_in_one_language():
    config = load(MINIMAL + "  mono: {mono: x.en, side: source}")
    assert config.data.mono == (MonoEntry(mono="x.en", side="source"),)
    assert problem(MINIMAL + "  mono: [{mono: x.en, sid: source}]").startswith(
        "c.yaml:6: unknown key `data.mono.0.sid` | did you mean `data.mono.0.side`?"
    )


def test_places_in_lists_of_entries():
    text = MINIMAL.split("  train")[0] + "  train:\n    - {cldr: 5}\n    - cldr: many\n"
    assert problem(text) == "c.yaml:7: `data.train.1.cldr` must be a whole number, not `many`"


def test_no_entries():
    assert problem(MINIMAL, "data.train=[]").startswith("--set data.train=[]: `data.train` is empt")


def test_problems_of_a_single_test_entry_show_the_path_as_written():
    assert problem(MINIMAL + "  test: {source: a, target: 3}").startswith(
        "c.yaml:6: `data.test.target` must be text"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("valid", "`data.test.valid` is the name of a set of its own"),
        ("Train", "`data.test.Train` is the name of a set of its own"),
        ("tsv", "`data.test.tsv` is a key of entries, so it cannot name a test set"),
        ("a/b", "the name `data.test.a/b` must be made of letters"),
    ],
)
def test_names_of_test_sets(name, expected):
    found = problem(MINIMAL + f"  test: {{{name}: {{cldr: 5}}}}")
    assert found.startswith(f"c.yaml:6: {expected}")


def test_names_of_test_sets_are_text():
    config = load(MINIMAL + "  test: {2016: {cldr: 5}, no: {cldr: 6}, none:}")
    assert list(config.data.test) == ["2016", "no"]


# -- keys that must fit together -------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "model={d_model: 30, n_heads: 4}",
            "`model.n_heads` is `4`, which does not divide `model.d_model: 30` | "
            "choose `1`, `2`, `3`, `5`, `6`, `10`, `15`",
        ),
        (
            "model={d_model: 33, n_heads: 3}",
            "`model.d_model` must be even, not `33`: positions are pairs of sine and cosine | "
            "set `model.d_model: 34`",
        ),
        ("model.n_heads=3", "`model.n_heads` is `3`, which does not divide `model.d_model: 256`"),
        (
            "train.micro_batch_tokens=256",
            "`train.micro_batch_tokens` is `256`, too few for one sentence of "
            "`data.max_length: 256` and its end | set it to 257 or more",
        ),
        (
            "train={max_steps: 9, optim: {schedule: linear, warmup_steps: 9}}",
            "`train.optim.warmup_steps` is `9`, but a linear schedule ends at `train.max_steps: 9`",
        ),
    ],
)
def test_conflicts(override, expected):
    assert problem(MINIMAL, override).startswith(f"--set {override}: {expected}")


def test_values_at_the_edge_of_a_conflict_load():
    load(MINIMAL, "train.micro_batch_tokens=257")
    load(MINIMAL, "train={max_steps: 10, optim: {schedule: linear, warmup_steps: 9}}")
    load(MINIMAL, "train={max_steps: 9, optim: {warmup_steps: 9}}")


def test_tied_needs_a_shared_vocabulary():
    assert problem(MINIMAL + "tokenizer: {shared: false}\nmodel: {tied: all}") == (
        "c.yaml:7: `model.tied` is `all`, which needs one vocabulary for both sides "
        "(`tokenizer.shared: true`) | set `model.tied: output`, or share the vocabulary"
    )


# -- overrides -------------------------------------------------------------------------------


def test_overrides():
    config = load(
        MINIMAL + "decode: {beam_size: 4}\n",
        "data.train.0.source=x.en",
        "data.train.1={cldr: 5}",
        "data.test={news.13: {source: a, target: b}}",
        "data.test.news.13.target=c",
        "decode.beam_size=8",
        "decode.beam_size=9",
        "train.optim.learning_rate=3e-4",
        "run=some: 1",
        "run=a=b",
    )
    assert config.data.train == (
        FilesEntry(source="x.en", target="train.de"),
        CldrEntry(cldr=5),
    )
    assert config.data.test == {"news.13": FilesEntry(source="a", target="c")}
    assert config.decode.beam_size == 9
    assert config.train.optim.learning_rate == 3e-4
    assert config.run == "a=b"


def test_an_empty_override_is_the_default():
    text = MINIMAL + "  test: {a: {cldr: 1}, b: {cldr: 2}}\ndecode: {beam_size: 4}\n"
    config = load(text, "decode.beam_size=", "data.test.a=")
    assert config.decode.beam_size == 5
    assert list(config.data.test) == ["b"]


def test_an_override_mends_the_file():
    assert load(MINIMAL + "decode: {beam_size: many}\n", "decode.beam_size=2").decode.beam_size == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.trian=x.en", "unknown key `data.trian` | did you mean `data.train`? ("),
        ("train.max_steps", "this is not of the form KEY=VALUE | --set train.max_steps=500"),
        ("=5", "this is not of the form KEY=VALUE"),
        ("name.x=5", "`name` is `toy` (c.yaml:1) and has no keys"),
        ("data.train.7.source=x", "`data.train` is a list, in which `7` is no entry's number"),
        ("decode={beam_size: 1, beam_size: 2}", "duplicate key `decode.beam_size` | keep one"),
        ("run=[a", "this is not YAML: "),
        ("source=no", "`source` is an unquoted `no`"),
        ("no_such_key=", "unknown key `no_such_key`"),
    ],
)
def test_problems_of_overrides(override, expected):
    assert problem(MINIMAL, override).startswith(f"--set {override}: {expected}")


# -- files that are no configs ---------------------------------------------------------------


def test_no_such_file():
    Path("quickstart.yaml").write_text(MINIMAL)
    with pytest.raises(ConfigError) as caught:
        load_config(Path("quikstart.yaml"))
    assert str(caught.value) == (
        "error: there is no config file quikstart.yaml\n  fix: did you mean quickstart.yaml?"
    )


def test_a_directory_is_no_config():
    Path("d").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read d: is a directory"):
        load_config(Path("d"))


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "~"])
def test_an_empty_file(text):
    assert "this config is empty" in problem(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n", "c.yaml: a config must be a mapping, not `[a]`"),
        ("name: [1\nb: 2\n", "c.yaml:2: this is not YAML: "),
        ("a: 1\n\tb: 2\n", "c.yaml:2: this is not YAML: "),
        ("a: &x 1\nb: *x\n", "c.yaml:2: the alias `*x` stands for a value written elsewhere"),
        ("a: !!python/object:os.system 1\n", "c.yaml:1: the tag `!!python/object:os.system` gives"),
        ("a: 1\n---\nb: 2\n", "c.yaml:2: this is not YAML: "),
        ("a: 1\nb: \x01\n", "c.yaml:2: the character "),
        ("a: " + "[" * 3000, "c.yaml: this is nested too deeply for a config"),
        ("a: 1\n[b]: 2\n", "c.yaml:2: a key must be a word, not a list or mapping"),
    ],
)
def test_no_config(text, expected):
    assert any(line.startswith(expected) for line in problems(text)), problems(text)


def test_a_file_that_is_not_utf_8():
    Path("c.yaml").write_bytes(b"name: a\nsource: \xff\n")
    with pytest.raises(ConfigError, match=r"c.yaml:2: this line is not UTF-8"):
        load_config(Path("c.yaml"))


ODD_VALUES = [
    *("5", "-1", "1.5", "true", "no", "x", '""', ".inf", "9" * 5000, "1" + "0" * 400, "1e999"),
    *("[]", "[1, [2]]", "{}", "{a: 1}", "{source: {}}", "{tsv: 1, cldr: []}", "[{cldr: 1}, ~]"),
    *("[a", "*a", "!x y", "\x00", "\ud800", "? {a: b}\n: c", "&a [*a]", "\t"),
]
KEYS = [
    *("", "name", "run", "data", "data.train", "data.train.0", "data.train.0.source", "data.valid"),
    *(
        "data.train.0.sha256",
        "data.train.0.sha256.x",
        "data.test",
        "data.test.a",
        "data.max_length",
    ),
    *(
        "data.train.1.columns",
        "tokenizer",
        "tokenizer.shared",
        "model",
        "model.preset",
        "model.tied",
    ),
    *("model.d_model", "model.n_heads", "train", "train.threads", "train.micro_batch_tokens"),
    *("train.optim", "train.optim.schedule", "train.optim.learning_rate", "evaluate.tokenize"),
]


@settings(max_examples=200)
@given(changes=st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(ODD_VALUES)), max_size=4))
def test_odd_values_load_or_are_explained(changes):
    try:
        load(MINIMAL, *(f"{key}={value}" for key, value in changes))
    except ConfigError as error:
        for found in error.problems:
            assert re.match(r"--set |c\.yaml", found.message)
            assert "\n" not in found.message
            assert len(found.message) < 400


# -- writing ---------------------------------------------------------------------------------

characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.text(characters, min_size=1, max_size=20).filter(
    lambda text: text[0] != "~"
) | st.sampled_from(
    ["no", "null", "~", "3e-4", "010", "1:30", "true", "a: b", "- x", "# c", " x ", "'", "\u2028"]
)
sha256s = st.text("0123456789abcdef", min_size=64, max_size=64) | st.just("1" * 64)
entries = st.one_of(
    st.builds(
        FilesEntry,
        source=texts,
        target=texts,
        sha256=st.dictionaries(st.sampled_from(["source", "target"]), sha256s),
    ),
    st.builds(TsvEntry, tsv=texts, columns=st.tuples(st.integers(0, 9), st.integers(0, 9))),
    st.builds(JsonlEntry, jsonl=texts, source_field=texts, target_field=texts),
    st.builds(CldrEntry, cldr=st.integers(1, 10**7)),
    st.builds(ParquetEntry, parquet=texts, languages=st.none() | st.tuples(texts, texts)),
    st.builds(HubEntry, hub=st.just("wmt/wmt14"), config=st.none() | texts, split=texts),
    st.builds(OpusEntry, opus=st.just("Europarl/v8"), name=st.none() | st.just("a.b")),
    st.builds(SacrebleuEntry, sacrebleu=texts),
)
ENTRY_KEYS = {key for entry in ENTRIES.values() for key in entry.model_fields}
slugs = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True).filter(
    lambda name: name.lower() not in ("valid", "train") and name not in ENTRY_KEYS
)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Any config that is valid, built without YAML."""
    shared = draw(st.booleans())
    rates = st.floats(0, 1, exclude_max=True)
    n_heads = draw(st.integers(1, 8))
    return Config.model_validate(
        {
            "name": draw(slugs),
            "source": draw(st.text(characters, min_size=2, max_size=9)),
            "target": draw(st.sampled_from(["no", "de", "zh-Hans", "12", "1e5"])),
            "run": draw(st.none() | texts),
            "data": {
                "train": tuple(draw(st.lists(entries, min_size=1, max_size=3))),
                "valid": draw(st.none() | entries),
                "test": draw(st.dictionaries(slugs, entries, max_size=3)),
                "deduplicate": draw(st.booleans()),
            },
            "tokenizer": {"shared": shared, "character_coverage": draw(st.floats(0.98, 1))},
            "model": {
                "preset": draw(st.sampled_from(["tiny", "small", "base", "big"])),
                "d_model": n_heads * 2 * draw(st.integers(4, 64)),
                "n_heads": n_heads,
                "dropout": draw(rates),
            },
            "train": {
                "threads": draw(st.just("auto") | st.integers(1, 99)),
                "optim": {
                    "learning_rate": draw(st.floats(0, exclude_min=True, allow_infinity=False)),
                    "ema_decay": draw(rates),
                    "clip_norm": draw(st.integers(0, 9)),
                },
            },
            "evaluate": {"tokenize": draw(st.sampled_from(["auto", "13a"])), "comet": draw(texts)},
        }
    )


@settings(max_examples=50)
@given(config=configs())
def test_any_config_survives_dump_and_load(config):
    text = dump_config(config)
    assert load(text) == config
    assert dump_config(load(text)) == text


def test_a_dump_is_complete_and_in_order():
    dumped = yaml.safe_load(dump_config(load(MINIMAL)))
    assert list(dumped) == list(Config.model_fields)
    assert list(dumped["train"]["optim"]) == list(type(load(MINIMAL).train.optim).model_fields)


def test_configs_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        load(MINIMAL).name = "other"


def test_the_config_of_a_run(tmp_path):
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.config.write_text(dump_config(load(MINIMAL)))
    assert read_run_config(run) == load(MINIMAL)
    run.config.write_text("name: [")
    with pytest.raises(UsageError, match=r"config of this run is damaged .*config.yaml:1: this is"):
        read_run_config(run)


def test_the_schema_knows_the_short_forms():
    schema = json_schema()
    assert set(schema["required"]) == {"name", "source", "target", "data"}
    assert "required" not in schema["$defs"]["ModelConfig"]
    assert schema["$defs"]["ModelConfig"]["additionalProperties"] is False
    assert schema["$defs"]["OptimConfig"]["properties"]["learning_rate"]["default"] == 7e-4


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (
            "{source: a}",
            "missing key `tokenizer.model.target` | add `tokenizer.model.target`: path",
        ),
        ("{source: a, target: b, tagret: c}", "unknown key `tokenizer.model.tagret` | did you"),
    ],
)
def test_a_mapping_that_might_have_been_text(models, said):
    [problem] = problems(MINIMAL, f"tokenizer={{shared: false, model: {models}}}")
    assert said in problem


SHORT_FORMS = """\
data.clean=false
data.clean=true
data.clean={max_words: false, copies: 0}
data.clean=
data.train={cldr: 5, clean: true}
data.train=[{cldr: 5}, {source: a, target: b, clean: false, sha256: }]
data.train={tsv: a.tsv, columns: [1, 0]}
data.train={hub: wmt/wmt14, stream_above_gib: 0, languages: [en, zh_CN]}
data.valid=
data.test={opus: Europarl/v8}
data.test={news: {sacrebleu: wmt14/full}, none: }
data.test=
data.mono={mono: a.en, side: source}
data.mono=[{mono: a.en, side: source, name: }]
data.temperature=5
data.max_unreadable=1
tokenizer=
tokenizer={shared: false, model: {source: a.model, target: b.model}}
tokenizer={model: a.model, user_defined_symbols: [<a>]}
model={preset: base, d_ff: }
model=
train={max_steps: 5000, optim: }
train={budget: 1h30min, micro_batch_tokens: auto}
train.validate_every=auto
train.optim.learning_rate=1
decode=
evaluate={comet: }
run="""
WRONG_FORMS = """\
data.clean=none
data.clean={max_words: true}
data.train=
data.train=a.en
data.train={source: a}
data.train={cldr: 5, clean: 1}
data.train={cldr: 0}
data.train={tsv: a.tsv, columns: [0, 1, 2]}
data.train={source: a, target: b, sha256: {source: x}}
data.test={news: a.en}
data.mono={mono: a.en}
data.temperature=0
tokenizer=a.model
tokenizer.model={source: a.model}
model=base
model.droput=0.1
train.budget=soon
tokenizer.user_defined_symbols=['a b']
tokenizer.user_defined_symbols=[seventeen_letters]
train.optim.schedule=fast
decode.beam_size=5.5
evaluate.tokenize=14a
name=
"""


@pytest.mark.parametrize("override", SHORT_FORMS.splitlines())
def test_the_schema_takes_what_a_config_may_say(override):
    load(MINIMAL, override)
    assert is_valid(written(override), json_schema(), json_schema())


@pytest.mark.parametrize("override", WRONG_FORMS.splitlines())
def test_the_schema_refuses_what_a_config_may_not_say(override):
    with pytest.raises(ConfigError):
        load(MINIMAL, override)
    assert not is_valid(written(override), json_schema(), json_schema())


def written(override: str) -> Any:
    """The minimal config with one value set, as an editor sees it."""
    tree, _ = read_file(MINIMAL, "-")
    apply_override(tree, override, 0)
    return json.loads(json.dumps(tree.plain()))  # lists, where Python has tuples


@pytest.mark.parametrize(
    ("settings", "model"),
    [
        (["train.init_from=runs/a"], "runs/a/tokenizer.model"),
        (["train.init_from=runs/a", "tokenizer.model=b.model"], "b.model"),
        (
            ["train.init_from=runs/a", "tokenizer.shared=false"],
            {"source": "runs/a/tokenizer.source.model", "target": "runs/a/tokenizer.target.model"},
        ),
        ([], None),
    ],
)
def test_another_runs_weights_come_with_its_tokenizer(settings, model):
    found = load(MINIMAL, *settings).tokenizer.model
    assert (found.model_dump() if hasattr(found, "model_dump") else found) == model


@pytest.mark.parametrize(
    ("setting", "fix"),
    [
        ("train.budget=30", "`30min`"),
        ("train.budget=90m", "`90min`"),
        ("train.budget=2 hours", "`2h`"),
        ("model=small", "`model: {preset: small}`"),
        ("train.device=gpu", "`cuda`"),
        ("train.optim.lr=0.1", "`train.optim.learning_rate`"),
    ],
)
def test_what_other_tools_call_it(setting, fix):
    assert fix in problem(MINIMAL, setting)


@pytest.mark.parametrize(
    "key",
    [
        *("train.micro_batch_tokens", "train.batch_tokens", "train.threads", "train.keep"),
        *("train.max_steps", "decode.batch_tokens", "decode.length_penalty", "train.save_every"),
        *("train.patience", "data.clean.max_words", "tokenizer.max_sentences"),
    ],
)
def test_numbers_have_an_upper_limit(key):
    assert "at most" in problem(MINIMAL, f"{key}={10**22}")
