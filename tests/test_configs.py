"""The shipped configs: each loads, is whole, is explained, and the editors' schema is current."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from mtrain.config.entries import CldrEntry, FilesEntry
from mtrain.config.load import dump_config, json_schema, load_config
from mtrain.config.root import Config
from mtrain.config.yaml_reader import read_file

REPOSITORY = Path(__file__).parent.parent
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
MULTI30K = (
    "https://raw.githubusercontent.com/multi30k/dataset/"
    "a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/"
)
each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def test_these_are_shipped():
    expected = {"quickstart", "multi30k-en-de", "multi30k-en-fr", "my-corpus"}
    expected |= {"wmt14-en-de-base", "wmt14-en-de-big"}
    assert {path.stem for path in CONFIGS} >= expected


@each_config
def test_it_loads_and_is_named_after_its_file(path, tmp_path):
    config = load_config(path)
    assert config.name == path.stem
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(dump_config(config), encoding="utf-8")
    assert load_config(dumped) == config


@each_config
def test_it_is_whole(path):
    """There is something to validate and test on; a recipe has every section."""
    keys = set(re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), re.MULTILINE))
    if path.stem != "my-corpus":  # whose settings are chosen
        assert keys == set(Config.model_fields) - {"run"}
    config = load_config(path)
    assert config.data.valid is not None
    assert config.data.test


@each_config
def test_it_is_explained_with_the_score_and_the_time_that_were_measured(path):
    text = path.read_text(encoding="utf-8")
    head, _, body = text.partition("\nname: ")
    assert head.startswith("# yaml-language-server: $schema=schema.json\n")
    assert re.search(rf"mtrain train (configs/)?{re.escape(path.name)}\n", head)
    assert body.count("# ") >= 10
    if path.stem == "my-corpus":
        return
    assert "Expected" in head
    assert "EXPECTED-" not in text, "measure, then put the numbers in the place of EXPECTED-..."
    assert re.search(r"[0-9.]+ BLEU", text)
    assert re.search(r"\b(minutes?|min|hours?|seconds)\b", text)


def test_quickstart_needs_no_download():
    data = load_config(REPOSITORY / "configs" / "quickstart.yaml").data
    entries = [*data.train, data.valid, *data.test.values()]
    assert all(isinstance(entry, CldrEntry) for entry in entries)


@pytest.mark.parametrize("target", ["de", "fr"])
def test_multi30k_is_pinned(target):
    """Every file is that of one commit, and its content is known beforehand."""
    data = load_config(REPOSITORY / "configs" / f"multi30k-en-{target}.yaml").data
    (train,) = data.train
    assert list(data.test) == ["test_2016_flickr", "test_2017_flickr"]
    for stem, entry in {"train": train, "val": data.valid, **data.test}.items():
        assert isinstance(entry, FilesEntry)
        assert entry.source == f"{MULTI30K}{stem}.en.gz"
        assert entry.target == f"{MULTI30K}{stem}.{target}.gz"
        assert set(entry.sha256) == {"source", "target"}
        assert len(set(entry.sha256.values())) == 2


@pytest.mark.parametrize(("size", "n_steps"), [("base", 100_000), ("big", 300_000)])
def test_wmt14_follows_the_paper(size, n_steps):
    """Sections 5 and 6.1, and table 3; reading its data is tested in test_hub.py."""
    config = load_config(REPOSITORY / "configs" / f"wmt14-en-de-{size}.yaml")
    model, train, optim = config.model, config.train, config.train.optim
    assert (model.preset, model.norm, model.tied) == (size, "post", "all")
    assert model.dropout == {"base": 0.1, "big": 0.3}[size]
    assert (train.max_steps, train.batch_tokens) == (n_steps, 25_000)
    assert optim.learning_rate == pytest.approx((model.d_model * optim.warmup_steps) ** -0.5, 0.03)
    assert (optim.beta1, optim.beta2, optim.epsilon) == (0.9, 0.98, 1e-9)
    assert (config.decode.beam_size, config.decode.length_penalty) == (4, 0.6)
    assert config.decode.length_penalty_form == "gnmt"


@each_config
def test_the_schema_accepts_it(path, tmp_path):
    """As it is written, and with all its defaults."""
    dumped = dump_config(load_config(path))
    for text in (path.read_text(encoding="utf-8"), dumped):
        tree = json.loads(json.dumps(read_file(text, str(path))[0].plain()))
        assert Draft202012Validator(json_schema()).is_valid(tree)


def test_the_schema_is_current():
    """Mended by `python scripts/write_schema.py`."""
    stored = (REPOSITORY / "configs" / "schema.json").read_text(encoding="utf-8")
    assert json.loads(stored) == json_schema()
    check = [sys.executable, "scripts/write_schema.py", "--check"]
    assert subprocess.run(check, cwd=REPOSITORY, check=False).returncode == 0
