"""Hostile configs and `--set`: trees that are altered, or grown from the schema of configs."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from fuzz_bench import Bench, Given, Random
from mutations import (
    NUMBERS,
    TEXTS,
    altered,
    damaged,
    hostile,
    yaml_bytes,
)

from mtrain.config.load import dump_config, json_schema, load_config
from mtrain.errors import ConfigError

# -- configs ---------------------------------------------------------------------------------

_CONFIGS: list[dict[str, Any]] = [
    {"name": "x", "source": "en", "target": "de", "data": {"train": {"cldr": 9}}},
    {
        "name": "my-model",
        "source": "no",
        "target": "zh_Hant",
        "data": {
            "train": [
                {"source": "a.en", "target": "https://x.org/a.tgz!b/a.de", "weight": 2, "tag": "a"},
                {"tsv": "a.tsv", "columns": [1, 0], "sha256": {"tsv": "0" * 64}},
                {"hub": "wmt/wmt14", "config": "de-en", "languages": ["en", "de"]},
            ],
            "valid": {"opus": "Europarl/v8"},
            "test": {"one": {"sacrebleu": "wmt14/full"}, "two": {"jsonl": "b.jsonl", "tag": "a"}},
            "mono": {"mono": "c.de", "side": "target"},
            "clean": {"script": False, "length_ratio": 3.5},
        },
        "tokenizer": {"vocab_size": 400, "user_defined_symbols": ["<x>", "y"]},
    },
    {
        "name": "z",
        "source": "en",
        "target": "de",
        "data": {"train": {"parquet": "x"}, "max_length": 9},
        "model": {"preset": "tiny", "d_model": 16, "n_heads": 2, "tied": "output"},
        "train": {"budget": "1h30min", "optim": {"schedule": "cosine", "learning_rate": 3e-4}},
        "decode": {"beam_size": 2},
        "evaluate": {"lowercase": True},
    },
]


@cache
def _schema() -> dict[str, Any]:
    return json_schema()


def _grown(random: Random, schema: dict[str, Any], depth: int = 0) -> Any:
    """A value that a part of the schema of configs allows, or now and then one that it does not."""
    if random.random() < 0.03:
        return hostile(random)
    if "$ref" in schema:
        return _grown(random, _schema()["$defs"][schema["$ref"].rpartition("/")[2]], depth)
    if "anyOf" in schema or "oneOf" in schema:
        return _grown(random, random.choice(schema.get("anyOf") or schema["oneOf"]), depth)
    if "const" in schema or "enum" in schema:
        return random.choice(schema.get("enum") or [schema["const"]])
    kind = schema.get("type")
    if kind == "object":
        share = 0.5 if depth == 0 else 0.25
        needed = schema.get("required", ())
        properties = schema.get("properties", {})
        chosen = [key for key in properties if key in needed or random.random() < share]
        grown = {key: _grown(random, properties[key], depth + 1) for key in chosen}
        for name in schema.get("patternProperties", {}).values():
            grown |= {random.choice(("a", "b")): _grown(random, name, depth + 1)}
        return grown
    if kind == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})] * random.randint(0, 2)
        return [_grown(random, item, depth + 1) for item in items]
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 1000))
        between = low + random.random() * (high - low)
        number = random.choice((low, high, between, between, random.choice(NUMBERS)))
        return int(number) if kind == "integer" else number
    if kind == "string":
        return random.choice(("x", "en", "1h", "a/b", "f" * 64, random.choice(TEXTS)))
    return {"boolean": random.random() < 0.5}.get(kind or "")


def make_config(random: Random, bench: Bench) -> Given:
    what = random.randrange(8)
    if what == 0:
        tree = _grown(random, _schema())
    elif what <= 5:
        tree = altered(random, random.choice(_CONFIGS))
    else:
        tree = random.choice(_CONFIGS)
    text = yaml_bytes(random, tree)
    if what >= 5:
        text = damaged(random, text)
    return {"c.yaml": text}


def check_config(given: Given, bench: Bench) -> None:
    bench.write({"c.yaml": given["c.yaml"]})
    try:
        config = load_config(Path("c.yaml"), given.get("set", ()))
    except ConfigError as error:
        for problem in error.problems:
            assert re.match(r"--set |c\.yaml", problem.message), "a problem has no place"
            assert "\n" not in problem.message, "a problem has several lines"
        raise
    Path("again.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(Path("again.yaml")) == config, "a config that is written is another"


@cache
def _keys() -> list[tuple[str, dict[str, Any]]]:
    """Every dotted key of a config, with its schema."""
    found = []
    waiting = [("", _schema())]
    while waiting:
        prefix, schema = waiting.pop()
        for name, field in schema.get("properties", {}).items():
            key = f"{prefix}{name}"
            found.append((key, field))
            for choice in [field, *field.get("anyOf", ())]:
                if "$ref" in choice:
                    section = _schema()["$defs"][choice["$ref"].rpartition("/")[2]]
                    if not section["title"].endswith("Entry"):
                        waiting.append((f"{key}.", section))
    return found


def make_override(random: Random, bench: Bench) -> Given:
    overrides = []
    for _ in range(random.choice((1, 1, 2, 4))):
        key, schema = random.choice(_keys())
        what = random.randrange(6)
        value = _grown(random, schema) if what <= 2 else hostile(random)
        text = yaml_bytes(random, value).decode("utf-8", "surrogatepass").removesuffix("\n")
        if what == 3:
            text = random.choice(TEXTS)
        elif what == 4:
            key = random.choice(
                (f"{key}.0", f"{key}.a.b", random.choice(TEXTS), f"data.train.{key}")
            )
        overrides.append(f"{key}={text}" if random.random() < 0.97 else text)
    return {"c.yaml": yaml_bytes(Random(1), _CONFIGS[0]), "set": overrides}
