"""A model of several target languages: entries have tags and languages of their own."""

import random
import re
from pathlib import Path

import pytest

import mtrain
from mtrain.config.load import load_config
from mtrain.data.identity import split_languages, split_tags
from mtrain.errors import ConfigError, UsageError
from mtrain.evaluation.evaluate import evaluate_hypotheses, evaluate_run
from mtrain.evaluation.given import GivenFiles
from mtrain.run import RunDir
from mtrain.training.train import train

CYRILLIC = str.maketrans("abcdefghij", "абвгдежзик")
CONFIG = """\
name: many
source: en
target: de
data:
  train:
    - {source: train.en, target: train.de, tag: de}
    - {source: train.en, target: train.ru, tag: ru, languages: [en, rus_Cyrl]}
  valid: {source: valid.en, target: valid.de, tag: de}
  test:
    latin: {source: valid.en, target: valid.de, tag: de}
    cyrillic: {source: valid.en, target: valid.ru, tag: ru, languages: [en, ru]}
tokenizer: {vocab_size: 320}
model: {preset: tiny, d_model: 16, d_ff: 16, n_heads: 2, n_encoder_layers: 1, n_decoder_layers: 1}
train: {max_steps: 2, validate_every: 2, batch_tokens: 200, threads: 1, device: cpu}
train.optim: null
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    directory = tmp_path_factory.mktemp("many")
    rng = random.Random(3)
    for split, n_lines in (("train", 60), ("valid", 8)):
        rows = []
        for _ in range(n_lines):
            words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 6))) for _ in range(4)]
            rows.append((" ".join(words), " ".join(word[::-1] for word in words)))
        for suffix, lines in (
            ("en", [source for source, _ in rows]),
            ("de", [target for _, target in rows]),
            ("ru", [target.translate(CYRILLIC) for _, target in rows]),
        ):
            (directory / f"{split}.{suffix}").write_text("".join(f"{line}\n" for line in lines))
    (directory / "many.yaml").write_text(CONFIG.replace("train.optim: null\n", ""))
    return directory


@pytest.fixture(scope="module")
def run(workspace):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        path = Path("many.yaml")
        config = load_config(path, ["train.optim.warmup_steps=1"])
        train(config, path)
        return RunDir(workspace / "runs" / "many")


def test_the_filters_follow_the_entry(run):
    report = run.read_data_report()
    assert report is not None
    assert [(entry["n_read"], entry["n_kept"]) for entry in report["entries"]] == [(60, 60)] * 2


def test_splits_know_their_languages_and_tags(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    config = load_config(Path("many.yaml"), ["train.optim.warmup_steps=1"])
    assert split_languages(config) == {"cyrillic": ("en", "ru")}
    assert split_tags(config) == {"valid": "de", "latin": "de", "cyrillic": "ru"}


def test_each_test_set_is_judged_in_its_language(run):
    assert run.read_split("cyrillic").languages == ("en", "ru")
    assert run.read_split("latin").languages is None
    results = evaluate_run(run.path, ["latin", "cyrillic"])
    assert all(result.facts["sentences"] == 8 for result in results.values())


def test_text_without_a_tag_is_refused(run, workspace):
    translator = mtrain.load(run.path)
    with pytest.raises(
        UsageError, match=r"it needs one to translate \(it knows: de, ru\)"
    ) as found:
        translator.translate(["abc"])
    assert "--tag" in str(found.value)
    assert len(translator.tagged("ru").translate(["abc def", ""])) == 2
    files = [GivenFiles((workspace / "valid.ru",), workspace / "valid.en")]
    with pytest.raises(UsageError, match="it knows: de, ru"):
        evaluate_run(run.path, files=files)
    hypothesis = [GivenFiles((workspace / "valid.ru",), None, workspace / "valid.ru")]
    [result] = evaluate_hypotheses(run.path, hypothesis).values()
    assert result.scores["bleu"].score == pytest.approx(100)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.valid.tag=", r"`data.valid` has no `tag`.*\n.*one of de, ru"),
        ("data.test.latin.tag=", r"`data.test.latin` has no `tag`"),
        ("data.valid=", r"has several tags \(de, ru\)"),
    ],
)
def test_sets_without_the_tag_that_all_training_text_has(workspace, monkeypatch, override, message):
    monkeypatch.chdir(workspace)
    with pytest.raises(ConfigError) as found:
        load_config(Path("many.yaml"), [override, "train.optim.warmup_steps=1"])
    assert re.search(message, str(found.value)), str(found.value)
