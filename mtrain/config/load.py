"""A config is read from YAML with `--set` overrides into a frozen, typed tree, and written back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mtrain.config.problems import REMOVED, explain
from mtrain.config.recipe import unchosen_as_auto
from mtrain.config.root import Config
from mtrain.config.yaml_reader import Problem, apply_override, read_file, write_yaml
from mtrain.errors import ConfigError, UsageError
from mtrain.run import RunDir
from mtrain.storage import read_bytes


def load_config(path: Path, overrides: Sequence[str] = (), ignored: Collection[str] = ()) -> Config:
    """Read and check a config; `overrides` are the KEY=VALUE of `--set`, the last one wins.

    `ignored` are dotted keys that are left out where the file has them. Raises a ConfigError with
    all problems, in the order of their locations.
    """
    try:
        tree, problems = read_file(_read_text(path), str(path))
    except UsageError as problem:
        raise ConfigError([problem]) from problem
    if tree.value is None and not overrides:
        raise ConfigError(
            [Problem(tree.place, "this config is empty", "copy a shipped one: mtrain new DIR")]
        )
    for key in ignored:
        tree.drop(key)
    for number, override in enumerate(overrides):
        problems += apply_override(tree, override, number)
    problems += explain(tree, Config)
    if problems:
        problems.sort(key=lambda problem: problem.place.order)
        raise ConfigError([*problems])
    return Config.model_validate(tree.plain())


def read_run_config(run: RunDir) -> Config:
    """The resolved config of a run, also of an earlier version."""
    fix = "restore the file, or train again with --fresh"
    try:
        read_bytes(run.config)  # a user's config may be a pipe, that of a run may not
        return load_config(run.config, ignored=REMOVED)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"cannot read {run.config}: {reason}", fix) from error
    except ConfigError as error:
        raise UsageError(
            f"the config of this run is damaged or of another version of mtrain: {error.message}",
            fix,
        ) from error


def dump_config(config: Config) -> str:
    """The whole config as YAML, defaults included; it loads back to an equal config.

    Keys whose value is still to be chosen are `auto`, and sizes of such a model are left out.
    """
    return write_yaml(_lists(unchosen_as_auto(config)))


def json_schema() -> dict[str, Any]:
    """The JSON schema by which editors complete and check a config."""
    schema = Config.model_json_schema()
    del schema["$defs"]["ModelConfig"]["required"]  # the preset fills the sizes
    for section in (schema, *schema["$defs"].values()):
        for field in section["properties"].values():
            if {"const": "auto"} in field.get("anyOf", ()):
                field["default"] = "auto"
        required = section.get("required", ())
        for key, field in section["properties"].items():
            if key not in required:
                section["properties"][key] = _or_null(field)
    test_sets = schema["$defs"]["DataConfig"]["properties"]["test"]["anyOf"][1]
    for name, entry in test_sets["patternProperties"].items():
        test_sets["patternProperties"][name] = _or_null(entry)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    """The schema of a key that may have no value, which means its default."""
    about = {"title", "description", "default"}
    value = {key: item for key, item in field.items() if key not in about}
    choices = value["anyOf"] if value.keys() == {"anyOf"} else [value]
    if {"type": "null"} not in choices:
        choices = [*choices, {"type": "null"}]
    return {"anyOf": choices} | {key: item for key, item in field.items() if key in about}


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        siblings = sorted(str(file) for file in path.parent.glob("*.yaml"))
        near = get_close_matches(str(path), siblings, 1) or siblings[:5]
        if isinstance(error, FileNotFoundError):
            raise UsageError(
                f"there is no config file {path}",
                f"did you mean {' or '.join(near)}?" if near else "give the path of a YAML file",
            ) from error
        raise UsageError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path}:{line}: this line is not UTF-8", "save the file as UTF-8"
        ) from error
