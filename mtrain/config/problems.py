"""Problems of a config in plain sentences: found by pydantic, located and explained here.

A problem reads `configs/iwslt.yaml:14: unknown key `model.droput``, with a fix where one is known.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeGuard, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mtrain.config.entries import (
    DURATION,
    ENTRIES,
    HUB,
    OPUS,
    SHA256,
    SLUG,
    WITHOUT_SPACES,
    Section,
)
from mtrain.config.sections import PRESETS
from mtrain.config.yaml_reader import Node, Problem
from mtrain.console import shortened

# Words that YAML 1.1 reads as true or false; `no` is also the code of Norwegian.
_BARE_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false"}

# Names that other tools use.
_SYNONYMS = {"lr": "learning_rate", "gpu": "cuda", "m": "min", "hours": "h", "minutes": "min"}

# Keys of earlier versions, which configs of old runs may have, and the fix for each.
REMOVED = {"train.cuda_graphs": "remove it: mtrain no longer records CUDA graphs"}

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "`true` or `false`",
    "string_type": "text",
    "string_unicode": "text without surrogates",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le}",
    "string_too_short": "text of {min_length} or more characters",
    "string_too_long": "text of at most {max_length} characters",
    "too_long": "a list of {max_length}",
}
_PATTERNS = {
    SLUG: "made of letters, digits, `.`, `_` and `-`, the first a letter or a digit",
    HUB: "a name of the hub, such as `wmt/wmt14`",
    OPUS: "a corpus and its version, such as `Europarl/v8`",
    SHA256: "64 hexadecimal digits in lower case",
    DURATION: "a time, such as `30min` or `1h30min`",
    WITHOUT_SPACES: "text without spaces",
}


@dataclass(frozen=True)
class Conflict:
    """Values that are valid alone but not together; the message follows the name of the key."""

    key: str
    other: str
    message: str
    fix: str


def explain(tree: Node, root: type[BaseModel]) -> list[Problem]:
    """All problems of the values in a tree: those of pydantic and our own."""
    return _Explainer(tree, root).problems()


class _Explainer:
    """Translates pydantic's errors, and remembers which keys have one already."""

    def __init__(self, tree: Node, root: type[BaseModel]) -> None:
        self.tree = tree
        self.root = root
        self.bad_nodes: set[int] = set()  # the `id`s
        self.bad_keys: set[str] = set()  # paths as declared, `train.optim.beta1`

    def problems(self) -> list[Problem]:
        found = list(self._bare_words())
        errors = _errors(self.root, self.tree.plain())
        if not errors:
            return found
        if errors[0]["type"] == "conflicts":
            return found + list(self._conflicts(errors))
        unknown = [error for error in errors if _is_unknown_key(error)]
        missing = [error for error in errors if _is_missing_key(error)]
        # A mapping with wrong keys was still meant as a mapping.
        meant = {id(self._find(error["loc"][:-1])) for error in unknown + missing}
        wrong = [e for e in errors if e not in unknown + missing]
        wrong = [error for error in wrong if id(self._find(error["loc"])) not in meant]
        found += [self._unknown_key(error) for error in unknown]
        found += [problem for error in missing for problem in self._missing_key(error)]
        found += self._wrong_values(wrong)
        # Validate the rest again, to find conflicts among the valid values.
        return found + list(self._conflicts(_errors(self.root, self._mended())))

    def _find(self, loc: tuple[int | str, ...]) -> Node:
        """The node of an error; the parts of `loc` that name pydantic's types are skipped."""
        node = self.tree
        for part in loc:
            node = node.child(part) or node
        return node

    def _bare_words(self) -> Iterator[Problem]:
        for key in ("source", "target"):
            node = self.tree.child(key)
            if node is None or node.is_quoted or node.text.lower() not in _BARE_WORDS:
                continue
            self.bad_nodes.add(id(node))
            yield Problem(
                node.place,
                f"`{key}` is an unquoted `{node.text}`, which many YAML parsers read as a boolean",
                f'quote it: `{key}: "{node.text}"`',
            )

    def _unknown_key(self, error: ErrorDetails) -> Problem:
        node = self._find(error["loc"])
        self.bad_nodes.add(id(node))
        parent, _, name = node.path.rpartition(".")
        if error["type"] == "literal_error":
            accepted = _literals(error)
        else:
            accepted = list(self._section(error["loc"][:-1]).model_fields)
        prefix = f"{parent}." if parent else ""
        near = [prefix + key for key in get_close_matches(_SYNONYMS.get(name, name), accepted, 1)]
        near = near or [key for key in _all_keys(self.root) if key.rpartition(".")[2] == name]
        self.bad_keys.update(near[:1])
        keys = f"{f'`{parent}`' if parent else 'a config'} takes {', '.join(accepted)}"
        fix = f"did you mean `{near[0]}`? ({keys})" if near else keys
        fix = REMOVED.get(node.path, fix)
        return Problem(node.place, f"unknown key `{node.path}`", fix)

    def _missing_key(self, error: ErrorDetails) -> Iterator[Problem]:
        name = str(error["loc"][-1])
        parent = self._find(error["loc"][:-1])
        path = f"{parent.path}.{name}" if parent.path else name
        if path in self.bad_keys:
            return  # misspelled: said already
        what = self._section(error["loc"][:-1]).model_fields[name].description
        yield Problem(
            (parent.child(name) or parent).place, f"missing key `{path}`", f"add `{path}`: {what}"
        )

    def _wrong_values(self, errors: list[ErrorDetails]) -> Iterator[Problem]:
        """One problem per value, although pydantic reports an error per accepted type."""
        by_node: dict[int, list[ErrorDetails]] = {}
        for error in errors:
            by_node.setdefault(id(self._find(error["loc"])), []).append(error)
        for about_one in by_node.values():
            node = self._find(about_one[0]["loc"])
            if id(node) in self.bad_nodes:
                continue
            self.bad_nodes.add(id(node))
            self.bad_keys.add(node.path)
            yield _wrong_value(node, about_one)

    def _section(self, loc: tuple[int | str, ...]) -> type[BaseModel]:
        """The section at a place."""
        section = self.root
        choices: dict[str, type[BaseModel]] = {}  # sections of a union
        for part in map(str, loc):
            if found := ENTRIES.get(part) or choices.get(part):
                section = found
            elif field := section.model_fields.get(part):
                inner = _item_type(field.annotation)
                section = inner if _is_section(inner) else section
                choices = {kind.__name__: kind for kind in filter(_is_section, get_args(inner))}
        return section

    def _mended(self) -> Any:
        """The values without the invalid ones, with placeholders for required keys."""
        values = self.tree.plain(self.bad_nodes)
        if not isinstance(values, dict):
            return values
        data = values.get("data")
        kept = {"max_length": data.get("max_length")} if isinstance(data, dict) else {}
        needed = {"name": "x", "source": "xx", "target": "xx", "run": None}
        return values | needed | {"data": {"train": {"cldr": 1}} | kept}

    def _conflicts(self, errors: list[ErrorDetails]) -> Iterator[Problem]:
        """Conflicts, except those with a key that has a problem already."""
        for error in errors:
            for conflict in error.get("ctx", {}).get("all", ()):
                assert isinstance(conflict, Conflict)
                if any(
                    key == bad or key.startswith(f"{bad}.")
                    for key in (conflict.key, conflict.other)
                    for bad in self.bad_keys
                ):
                    continue
                place = self._place_of(conflict.key) or self._place_of(conflict.other)
                yield Problem(
                    (place or self.tree).place, f"`{conflict.key}` {conflict.message}", conflict.fix
                )

    def _place_of(self, key: str) -> Node | None:
        node: Node | None = self.tree
        for part in key.split("."):
            node = node.child(part) if node else None
        return node


def _errors(root: type[BaseModel], values: Any) -> list[ErrorDetails]:
    try:
        root.model_validate(values)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _is_section(annotation: Any) -> TypeGuard[type[Section]]:
    return inspect.isclass(annotation) and issubclass(annotation, Section)


def _item_type(annotation: Any) -> Any:
    """The item type of a list; any other type itself."""
    return get_args(annotation)[0] if get_origin(annotation) is tuple else annotation


def _is_unknown_key(error: ErrorDetails) -> bool:
    is_bad_key = error["type"] == "literal_error" and error["loc"][-1] == "[key]"
    return is_bad_key or error["type"] == "extra_forbidden"


def _is_missing_key(error: ErrorDetails) -> bool:
    return error["type"] == "missing" and isinstance(error["loc"][-1], str)


def _all_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys of the sections."""
    for name, field in section.model_fields.items():
        yield prefix + name
        if _is_section(field.annotation):
            yield from _all_keys(field.annotation, f"{prefix}{name}.")


def _literals(error: ErrorDetails) -> list[str]:
    return re.findall(r"'([^']*)'", error["ctx"]["expected"])


def _wrong_value(node: Node, errors: list[ErrorDetails]) -> Problem:
    own = next((error["ctx"] for error in errors if error["type"] == "complaint"), None)
    if own:
        message = own["message"].replace("{shown}", node.shown())
        return Problem(node.place, f"`{node.path}` {message}", own["fix"])
    is_key = "[key]" in errors[0]["loc"][-1:]
    shown = f"`{shortened(node.path.rpartition('.')[2])}`" if is_key else node.shown()
    expected = " or ".join(dict.fromkeys(_expected(error) for error in errors))
    what = f"the name `{node.path}`" if is_key else f"`{node.path}`" if node.path else "a config"
    return Problem(node.place, f"{what} must be {expected}, not {shown}", _fix(node, errors))


def _expected(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    if error["type"] == "literal_error":
        return re.sub(r"'([^']*)'", r"`\1`", context["expected"]).replace("False", "`false`")
    if error["type"] == "string_pattern_mismatch":
        return _PATTERNS[context["pattern"]]
    if error["type"] == "missing":  # an item of a list of fixed length, such as `columns`
        return f"a list of {len(error['input']) + 1} or more"
    return _EXPECTED[error["type"]].format(**context)


def _fix(node: Node, errors: list[ErrorDetails]) -> str | None:
    """A fix for a value with a recognisable mistake."""
    kinds = {error["type"] for error in errors}
    choices = [choice for e in errors if e["type"] == "literal_error" for choice in _literals(e)]
    text = node.text.lower()
    if near := get_close_matches(_SYNONYMS.get(text, text), choices, 1, cutoff=0.7):
        return f"did you mean `{near[0]}`?"
    if written := _fix_of_key(node.path, text):
        return f"write `{written}`"
    if isinstance(node.value, str):
        digits = re.sub(r"(?<=\d)[_, ](?=\d)", "", node.text)
        is_number = re.fullmatch(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?", digits)
        if kinds & {"int_type", "float_type"} and is_number:
            return f"write `{digits}`, without quotes"
        if "bool_type" in kinds and node.text.lower() in _BARE_WORDS:
            return f"write `{str(node.text.lower() in ('y', 'yes', 'on', 'true')).lower()}`"
    if isinstance(node.value, bool | int | float) and "string_type" in kinds:
        return f'quote it: `"{node.text}"`'
    return None


def _fix_of_key(key: str, text: str) -> str | None:
    """The expected form of a value that is often written differently."""
    if key == "model" and text in PRESETS:
        return f"model: {{preset: {text}}}"
    amount = re.fullmatch(r"([0-9.]+) *([a-z]*)", text)
    if key == "train.budget" and amount:
        return f"{amount[1]}{_SYNONYMS.get(amount[2], 'min')}"
    return None
