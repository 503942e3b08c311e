"""Configs: what loads, what is refused and in which words, and that a dump loads back."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from mtrain.config.entries import (
    CldrEntry,
    FilesEntry,
    MonoEntry,
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
    assert load(MINIMAL, "data.test={cldr: 5}").data.test == {"test": CldrEntry(cldr=5)}
    assert load(MINIMAL.replace("de\ndata", '"no"\ndata')).target == "no"
    assert load("\ufeff" + MINIMAL.replace("\n", "\r\n")) == config
    assert load(MINIMAL + "decode: {beam_size: many}\n", "decode.beam_size=2").decode.beam_size == 2


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


# -- what is refused -------------------------------------------------------------------------

FORMS = (
    "`{source, target}`, `{tsv}`, `{jsonl}`, `{parquet}`, `{hub}`, `{opus}`, `{sacrebleu}` "
    "or `{cldr}`"
)
LINES = [  # after the five lines of the smallest config
    ("train: {max_steps: many}", "`train.max_steps` must be a whole number, not `many`"),
    ("train: {max_steps: 1.5}", "`train.max_steps` must be a whole number, not `1.5`"),
    ("train: {max_steps: true}", "`train.max_steps` must be a whole number, not `true`"),
    ("train: {max_steps: 0}", "`train.max_steps` must be at least 1, not `0`"),
    ("train: {max_steps: '500'}", 'not `"500"` | write `500`, without quotes'),
    ("train: {max_steps: 20_000}", "not `20_000` | write `20000`, without quotes"),
    ("train: [1]", "`train` must be a mapping, not `[1]`"),
    ("train: {threads: 0}", "`train.threads` must be at least 1 or `auto`, not `0`"),
    ("train: {threads: all}", "`train.threads` must be a whole number or `auto`, not `all`"),
    ("train: {best_metric: chrff}", "must be `chrf`, `bleu` or `loss`, not `chrff` | did you mean"),
    ("train: {learning_rate: 1}", "did you mean `train.optim.learning_rate`?"),
    ("train: {cuda_graphs: false}", "| remove it: mtrain no longer records CUDA graphs"),
    ("model: {dropout: 1}", "`model.dropout` must be less than 1, not `1`"),
    ("model: {dropout: .nan}", "`model.dropout` must be a finite number, not `.nan`"),
    ("model: {dropout: true}", "`model.dropout` must be a number, not `true`"),
    ("model: {droput: 0.3}", "did you mean `model.dropout`? (`model` takes preset, d_model, "),
    ("model: {d_model: wide, n_heads: 3}", "`model.d_model` must be a whole number"),
    ("evaluate: {lowercase: yes}", "must be `true` or `false`, not `yes` | write `true`"),
    ("evaluate: {tokenize: 13}", "`flores200` or `spBLEU-1K`, not `13` | did you mean `13a`?"),
    ("evaluate: {zzz: 1}", "`evaluate.zzz` | `evaluate` takes tokenize, lowercase, comet"),
    ('"a\\nb": 1', "unknown key `a b`"),
    ("run: [a]", "`run` must be text, not `[a]`"),
    ("run: {a: b}", "`run` must be text, not a mapping"),
    ("name: other", "duplicate key `name` (first on line 1) | keep one of the two"),
    ("  mono: [{mono: x.en, sid: source}]", "`data.mono.0.sid` | did you mean `data.mono.0.side`?"),
    ("  test: {source: a, target: 3}", "`data.test.target` must be text"),  # as it was written
    ("  test: {valid: {cldr: 5}}", "`data.test.valid` is reserved"),
    ("  test: {Train: {cldr: 5}}", "`data.test.Train` is reserved"),
    ("  test: {tsv: {cldr: 5}}", "`data.test.tsv` is a key of entries, so it cannot name a test"),
    ("  test: {a/b: {cldr: 5}}", "the name `data.test.a/b` must be made of letters"),
    ("  valid: {sourc: a}", f"must be an entry ({FORMS}) | did you mean `source`?"),
    ("  valid: train.tsv", f"must be an entry ({FORMS}), not `train.tsv`"),
    ("  valid: {source: a, tsv: b}", f"(it has `source` and `tsv`) | an entry is one of {FORMS}"),
    ("  valid: {source: a}", "missing key `data.valid.target`"),
    ("  valid: {hub: a b}", "`data.valid.hub` must be a name of the hub, such as `wmt/wmt14`, not"),
    ("  valid: {opus: Europarl}", "`data.valid.opus` must be a corpus and its version, such as"),
    ("  valid: {hub: a/b, splitt: x}", "`data.valid.splitt` | did you mean `data.valid.split`?"),
    ("  valid: {cldr: 5, name: a b}", "`data.valid.name` must be made of letters"),
    ("  valid: {cldr: 0}", "`data.valid.cldr` must be at least 1, not `0`"),
    (
        "  valid: {jsonl: a, columns: [0, 1]}",
        "unknown key `data.valid.columns` | `data.valid` takes",
    ),
    ("  valid: {tsv: a, columns: [0]}", "`data.valid.columns` must be a list of 2 or more, not `["),
    ("  valid: {tsv: a, columns: [0, 1, 2]}", "`data.valid.columns` must be a list of 2, not `[0,"),
    ("  valid: {tsv: a, columns: 1}", "`data.valid.columns` must be a list, not `1`"),
    ("  valid: {tsv: a, columns: [0, -1]}", "`data.valid.columns.1` must be at least 0, not `-1`"),
    ("  valid: {tsv: a, sha256: {tsv: abc}}", "`data.valid.sha256.tsv` must be 64 hexadecimal"),
    ("  valid: {tsv: a, sha256: {tvs: abc}}", "did you mean `data.valid.sha256.tsv`?"),
]


@pytest.mark.parametrize(("line", "said"), LINES)
def test_a_line_that_is_refused_is_located_and_explained(line, said):
    """One problem each, and none that is only its consequence."""
    found = problem(MINIMAL + line)
    assert found.startswith("c.yaml:6: ")
    assert said in found


OVERRIDES = [
    ("data.trian=x.en", "unknown key `data.trian` | did you mean `data.train`? ("),
    ("train.max_steps", "this is not of the form KEY=VALUE | --set train.max_steps=500"),
    ("=5", "this is not of the form KEY=VALUE"),
    ("name.x=5", "`name` is `toy` (c.yaml:1) and has no keys"),
    ("name=", "missing key `name`"),
    *((f"name={name}", "`name` must be made of letters, digits") for name in ("a/b", "-a", ".a")),
    ("name='a b'", "`name` must be made of letters, digits"),
    ('name="a\\n"', "`name` must be made of letters, digits"),
    ("data.train=[]", "`data.train` is empt"),
    ("data.train.7.source=x", "`data.train` is a list, in which `7` is no entry's number"),
    ("data.train=[{cldr: 5}, {cldr: many}]", "`data.train.1.cldr` must be a whole number"),
    ("decode={beam_size: 1, beam_size: 2}", "duplicate key `decode.beam_size` | keep one"),
    ("run=[a", "this is not YAML: "),
    ("source=no", "`source` is an unquoted `no`"),
    ("no_such_key=", "unknown key `no_such_key`"),
    ("tokenizer={shared: false, model: {source: a}}", "missing key `tokenizer.model.target` | add"),
    (
        "tokenizer={shared: false, model: {source: a, target: b, tagret: c}}",
        "unknown key `tokenizer.model.tagret` | did you",
    ),
    # what other tools call it
    ("train.budget=30", "`30min`"),
    ("train.budget=90m", "`90min`"),
    ("train.budget=2 hours", "`2h`"),
    ("model=small", "`model: {preset: small}`"),
    ("train.device=gpu", "`cuda`"),
    ("train.optim.lr=0.1", "`train.optim.learning_rate`"),
    # keys that must fit together
    (
        "model={d_model: 30, n_heads: 4}",
        "which does not divide `model.d_model: 30` | choose `1`, `2`",
    ),
    ("model={d_model: 33, n_heads: 3}", "positions are pairs of sine and cosine | set `model.d_mo"),
    ("model.n_heads=3", "`model.n_heads` is `3`, which does not divide `model.d_model: 256`"),
    ("train.micro_batch_tokens=256", "and its end | set it to 257 or more"),
    (
        "train={max_steps: 9, optim: {schedule: linear, warmup_steps: 9}}",
        "`train.optim.warmup_steps` is `9`, but a linear schedule ends at `train.max_steps: 9`",
    ),
    *(
        (f"{key}={10**22}", "at most")
        for key in (
            *("train.micro_batch_tokens", "train.batch_tokens", "train.threads", "train.keep"),
            *("train.max_steps", "decode.batch_tokens", "decode.length_penalty", "train.patience"),
            *("train.save_every", "data.clean.max_words", "tokenizer.max_sentences"),
        )
    ),
]


@pytest.mark.parametrize(("override", "said"), OVERRIDES)
def test_an_override_that_is_refused_is_shown_and_explained(override, said):
    found = problem(MINIMAL, override)
    assert found.startswith(f"--set {override}: ")
    assert said in found


TOGETHER = [  # several settings that do not fit together
    ("train.both_directions=0.4 tokenizer.shared=false", "`tokenizer.shared: true`"),
    ("train.both_directions=0.4 data.train.0.tag=bt", "does not support tags"),
    ("tokenizer.shared=false model.tied=all", "needs one vocabulary for both sides"),
    ("tokenizer.model=x.model tokenizer.shared=false", "one model, which needs `tokenizer.shared:"),
    ("tokenizer.type=char tokenizer.sampling=0.1", "no choice"),
    ("data.train.0.weight=2 data.temperature=2", "either the temperature or the weights"),
    ("data.train.0.tag=unk", "special symbol"),
    (
        "data.train.0.tag=bt data.valid={source: v, target: v, tag: fr}",
        "`fr`, which no training entry has | choose one of bt",
    ),
]


@pytest.mark.parametrize(("overrides", "said"), TOGETHER)
def test_settings_that_do_not_fit_together(overrides, said):
    assert said in problem(MINIMAL, *re.split(r" (?=\w+\.)", overrides))


def test_what_is_missing_or_misspelled_is_one_problem_where_it_stands():
    found = problem(MINIMAL.replace("source: en", "sorce: en"))
    assert found.startswith("c.yaml:2: unknown key `sorce` | did you mean `source`?")
    assert problem(MINIMAL.replace("name: toy", "name:")).startswith("c.yaml:1: missing key `name`")


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


def test_text_in_one_language():
    config = load(MINIMAL + "  mono: {mono: x.en, side: source}")
    assert config.data.mono == (MonoEntry(mono="x.en", side="source"),)


def test_names_of_test_sets_are_text():
    config = load(MINIMAL + "  test: {2016: {cldr: 5}, no: {cldr: 6}, none:}")
    assert list(config.data.test) == ["2016", "no"]


# -- keys that must fit together -------------------------------------------------------------


def test_values_at_the_edge_of_a_conflict_load():
    load(MINIMAL, "train.micro_batch_tokens=257")
    load(MINIMAL, "train={max_steps: 10, optim: {schedule: linear, warmup_steps: 9}}")
    load(MINIMAL, "train={max_steps: 9, optim: {warmup_steps: 9}}")


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


# -- files that are no configs ---------------------------------------------------------------


def test_no_such_file():
    Path("quickstart.yaml").write_text(MINIMAL)
    Path("d").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read d: is a directory"):
        load_config(Path("d"))
    with pytest.raises(ConfigError) as caught:
        load_config(Path("quikstart.yaml"))
    assert str(caught.value) == (
        "error: there is no config file quikstart.yaml\n  fix: did you mean quickstart.yaml?"
    )


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "~"])
def test_an_empty_file(text):
    assert "this config is empty" in problem(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n", "c.yaml: a config must be a mapping, not `[a]`"),
        ("name: [1\nb: 2\n", "c.yaml:2: this is not YAML: "),
        ("a: 1\n\tb: 2\n", "c.yaml:2: this is not YAML: "),
        ("a: &x 1\nb: *x\n", "c.yaml:2: the alias `*x` refers to a value written elsewhere"),
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


# -- writing ---------------------------------------------------------------------------------

ODD_TEXTS = [
    *("no", "null", "x~", "3e-4", "010", "1:30", "true", "a: b", "- x", "# c", " x ", "'"),
    *("\u2028", "\x85", "x\ny", '"', "*x", "&x", "!x", "%", "`x`", "0x1f", "0o17", ".inf"),
    *("1_0", "<<", "="),
]


def test_text_survives_dump_and_load():
    """Whole configs are drawn and written in the fuzz suite."""
    for text in ODD_TEXTS:
        config = load(MINIMAL).model_copy(update={"run": text})
        assert load(dump_config(config)) == config, text


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


SCHEMA = json_schema()
EDITOR = Draft202012Validator(SCHEMA)  # what editors check a config with


def test_the_schema_knows_the_short_forms():
    definitions = SCHEMA["$defs"]
    assert set(SCHEMA["required"]) == {"name", "source", "target", "data"}
    assert "required" not in definitions["ModelConfig"]
    assert definitions["ModelConfig"]["additionalProperties"] is False
    assert definitions["OptimConfig"]["properties"]["learning_rate"]["default"] == "auto"


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
    assert EDITOR.is_valid(written(override))


@pytest.mark.parametrize("override", WRONG_FORMS.splitlines())
def test_the_schema_refuses_what_a_config_may_not_say(override):
    with pytest.raises(ConfigError):
        load(MINIMAL, override)
    assert not EDITOR.is_valid(written(override))


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
