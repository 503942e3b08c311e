"""`--reverse`: the other direction, every entry exchanged."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import invoke, write_reverse_task

from mtrain.config.entries import ENTRIES
from mtrain.config.reverse import reverse
from mtrain.config.root import Config

PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "<files>": (
        {"source": "a", "target": "b", "sha256": {"source": "0" * 64}, "languages": ("en", "ru")},
        {"source": "b", "target": "a", "sha256": {"target": "0" * 64}, "languages": ("ru", "en")},
    ),
    "<tsv>": ({"tsv": "x"}, {"tsv": "x", "columns": (1, 0)}),
    "<jsonl>": (
        {"jsonl": "x", "source_field": "de"},
        {"jsonl": "x", "source_field": "target", "target_field": "de"},
    ),
    "<parquet>": ({"parquet": "x", "source_column": "t"}, {"parquet": "x", "target_column": "t"}),
    "<hub>": ({"hub": "a/b", "target_column": "t"}, {"hub": "a/b", "source_column": "t"}),
    "<opus>": ({"opus": "E/v8"}, {"opus": "E/v8"}),
    "<sacrebleu>": ({"sacrebleu": "wmt14"}, {"sacrebleu": "wmt14"}),
    "<cldr>": ({"cldr": 9}, {"cldr": 9}),
}


def config(entry: dict[str, Any], name: str, languages: tuple[str, str], **more: Any) -> Config:
    source, target = languages
    data = {"train": (entry,), "valid": entry, "test": {"set": entry}}
    return Config.model_validate(
        {"name": name, "source": source, "target": target, "data": data | more}
    )


@pytest.mark.parametrize("kind", ENTRIES)
def test_every_kind_of_entry_is_exchanged(kind):
    given, expected = PAIRS[kind]
    found = reverse(config(given, "x", ("en", "de")))
    assert found == config(expected, "x-reverse", ("de", "en"))
    assert reverse(found).data == config(given, "x", ("en", "de")).data


def test_plain_text_and_tokenizers_change_sides():
    mono = {"mono": "m", "side": "source"}
    tree = config({"cldr": 9}, "x", ("en", "de"), mono=(mono,)).model_dump(exclude_unset=True)
    tree["tokenizer"] = {"shared": False, "model": {"source": "a", "target": "b"}}
    tree["run"] = "runs/y"
    found = reverse(Config.model_validate(tree))
    assert found.data.mono[0].side == "target"
    assert found.tokenizer.model.source == "b"
    assert str(found.run_dir) == "runs/y-reverse"
    assert not found.train.model_fields_set


def test_the_other_direction_is_trained_beside_the_first(tmp_path):
    write_reverse_task(tmp_path, n_train=300)
    settings = ("reverse.yaml", "--set", "train.max_steps=2", "--reverse")
    done = invoke("train", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/reverse-reverse"
    assert (run / "data/valid.source").read_bytes() == (tmp_path / "valid.tgt").read_bytes()
    assert "source: de" in (run / "config.yaml").read_text(encoding="utf-8")
