"""YAML values with their places: `configs/iwslt.yaml:14`, `--set a.b=c`.

Scalars follow the core schema of YAML 1.2: `3e-4` is a number, `010` is ten, `1:30`, `no` and
`on` are text. Anchors, aliases and tags are refused; duplicate keys are problems.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, cast

import yaml

from mtrain.console import shortened
from mtrain.errors import UsageError

_AFTER_ANY_LINE = 1 << 40  # problems of overrides are listed after those of the file


@dataclass(frozen=True, slots=True)
class Place:
    """The location of a value, and the sort order of locations."""

    text: str
    order: int


class Problem(UsageError):
    """One problem of a config, with its location."""

    def __init__(self, place: Place, message: str, fix: str | None = None) -> None:
        line = " ".join(message.splitlines())  # keys may hold line breaks
        super().__init__(f"{place.text}: {line}", fix)
        self.place = place


@dataclass(slots=True)
class Node:
    """A value, its place, and its dotted path as the user wrote it (`data.train.0.source`)."""

    path: str
    place: Place
    value: Any = None  # None, bool, int, float, str, or the nodes of a list or of a dict
    text: str = ""  # a scalar as written
    is_quoted: bool = False

    def child(self, key: str | int) -> Node | None:
        """The node under a key or (as a number or digits) at a position, if there is one."""
        if isinstance(self.value, dict):
            return self.value.get(key)
        if isinstance(self.value, list) and re.fullmatch(r"[0-9]{1,9}", str(key)):
            return self.value[int(key)] if int(key) < len(self.value) else None
        return None

    def drop(self, path: str) -> None:
        """Remove the node at a dotted path, if there is one."""
        first, _, rest = path.partition(".")
        child = self.child(first)
        if child is not None and rest:
            child.drop(rest)
        elif isinstance(self.value, dict):
            self.value.pop(first, None)

    def plain(self, without: Collection[int] = ()) -> Any:
        """Python values alone, lists as tuples; nodes whose `id` is in `without` are left out."""
        if isinstance(self.value, dict):
            children = {k: n for k, n in self.value.items() if id(n) not in without}
            return {key: node.plain(without) for key, node in children.items()}
        if isinstance(self.value, list):
            return tuple(node.plain(without) for node in self.value if id(node) not in without)
        return self.value

    def shown(self) -> str:
        """The value as quoted in messages: one short line."""
        if isinstance(self.value, dict):
            return "a mapping"
        if isinstance(self.value, list):
            items = ", ".join(node.shown().strip("`") for node in self.value)
            return f"`{shortened(f'[{items}]')}`"
        if self.value is None:
            return "empty"
        quote = '"' if self.is_quoted else ""
        return f"`{quote}{shortened(self.text)}{quote}`"


# -- reading ---------------------------------------------------------------------------------


def read_file(text: str, name: str) -> tuple[Node, list[Problem]]:
    """The tree of a file (an empty file is a null), and its duplicate keys."""
    return _Reader(Place(name, 0), has_lines=True).read(text, path="")


@dataclass(slots=True)
class _Reader:
    """Turns PyYAML's nodes into ours."""

    source: Place
    has_lines: bool  # a file has lines, an override is one place
    problems: list[Problem] = field(default_factory=list)

    def read(self, text: str, path: str) -> tuple[Node, list[Problem]]:
        loader: Any = None
        try:
            loader = _CoreLoader(text)
            root = loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            raise self._syntax_problem(error) from error
        except yaml.reader.ReaderError as error:
            line = text[: error.position].count("\n")
            raise Problem(
                self._place(line), f"the character {error.character!r} is not allowed in YAML"
            ) from error
        except RecursionError as error:
            raise Problem(self.source, "this is nested too deeply for a config") from error
        except (ValueError, OverflowError) as error:
            line = loader.line if loader is not None else 0
            raise Problem(
                self._place(line), "this is not YAML: an escape is not a Unicode character"
            ) from error
        finally:
            if loader is not None:
                loader.dispose()
        if root is None:
            return Node(path, self.source), []
        return self._node(root, path, self.source), self.problems

    def _place(self, line: int) -> Place:
        return Place(f"{self.source.text}:{line + 1}", line + 1) if self.has_lines else self.source

    def _node(self, node: yaml.Node, path: str, place: Place) -> Node:
        if isinstance(node, yaml.MappingNode):
            return Node(path, place, self._mapping(node, path))
        if isinstance(node, yaml.SequenceNode):
            items = [
                self._node(item, _joined(path, str(i)), self._place(item.start_mark.line))
                for i, item in enumerate(node.value)
            ]
            return Node(path, place, items)
        assert isinstance(node, yaml.ScalarNode)
        self._check_characters(node.value, place)
        return Node(path, place, _scalar(node), node.value, node.style is not None)

    def _check_characters(self, text: str, place: Place) -> None:
        if wrong := _NO_TEXT.search(text):
            self.problems.append(
                Problem(place, f"the character U+{ord(wrong[0]):04X} is not allowed in a config")
            )

    def _mapping(self, mapping: yaml.MappingNode, path: str) -> dict[str, Node]:
        children: dict[str, Node] = {}
        for key, value in mapping.value:
            place = self._place(key.start_mark.line)
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(Problem(place, "a key must be a word, not a list or mapping"))
                continue
            self._check_characters(key.value, place)
            child = self._node(value, _joined(path, key.value), place)
            if key.value in children:
                first = f" (first on line {children[key.value].place.order})"
                self.problems.append(
                    Problem(
                        place,
                        f"duplicate key `{child.path}`{first if self.has_lines else ''}",
                        "keep one of the two",
                    )
                )
                continue
            children[key.value] = child
        return children

    def _syntax_problem(self, error: yaml.MarkedYAMLError) -> Problem:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        what = error.problem or "it ends too early"
        if isinstance(error, _UnsupportedYamlError):
            return Problem(self._place(line), what, "write the value out")
        if error.context and error.context_mark and error.context_mark.line != line:
            what += f" ({error.context}, which begins on line {error.context_mark.line + 1})"
        fix = "check the indentation, and that quotes and brackets are closed"
        if "'\\t'" in what:
            fix = "indent with spaces, not with tabs"
        if not self.has_lines:
            fix = 'put the value in quotes: KEY="VALUE"'
        return Problem(self._place(line), f"this is not YAML: {what}", fix)


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


class _UnsupportedYamlError(yaml.MarkedYAMLError):
    """A YAML feature that configs do not support."""


class _CoreLoader(yaml.SafeLoader):
    """Composes nodes whose plain scalars follow YAML 1.2's core schema."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        if isinstance(event, yaml.AliasEvent):
            what = f"the alias `*{event.anchor}` refers to a value written elsewhere"
        elif tag not in (None, "!"):
            what = f"the tag `{tag.replace('tag:yaml.org,2002:', '!!')}` gives a value a type"
        else:
            return super().compose_node(parent, index)
        raise _UnsupportedYamlError(
            problem=f"{what}; configs have no aliases and no tags",
            problem_mark=cast(yaml.Mark, event.start_mark),
        )


_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # from escapes such as "\\ud800"
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    word: value
    for value in (True, False)
    for word in (str(value), str(value).lower(), str(value).upper())
}


def _scalar(node: yaml.ScalarNode) -> bool | int | float | str | None:
    """A scalar's value by the core schema; quoted and block scalars are text."""
    text: str = node.value
    if node.style is not None:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text) and len(text) < 1000:  # Python refuses to read far longer ones
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


# -- overrides -------------------------------------------------------------------------------


def apply_override(root: Node, argument: str, number: int) -> list[Problem]:
    """Put the value of the number-th `--set KEY=VALUE` into the tree."""
    place = Place(f"--set {shortened(argument)}", _AFTER_ANY_LINE + number)
    key, equals, text = argument.partition("=")
    key = key.strip()
    if not equals or not key:
        return [Problem(place, "this is not of the form KEY=VALUE", "--set train.max_steps=500")]
    try:
        value, problems = _Reader(place, has_lines=False).read(text, path=key)
        _put(root, key.split("."), value)
    except Problem as problem:
        return [problem]
    return problems


def _put(node: Node, parts: list[str], value: Node) -> None:
    """Descend along the parts of a key, creating missing mappings."""
    if node.value is None:
        node.value = {}
    name, rest = _next_key(node, parts)
    if node.path == "data.train" and isinstance(node.value, dict) and name.isdigit():
        node.value = [Node(node.path, node.place, node.value)]  # one entry is a list of one
    if isinstance(node.value, list):
        if name == str(len(node.value)):
            node.value.append(Node(_joined(node.path, name), value.place))
        if node.child(name) is None:
            raise Problem(
                value.place,
                f"`{node.path}` is a list, in which `{name}` is no entry's number",
                f"count from 0; {len(node.value)} adds an entry at the end",
            )
        if not rest:
            node.value[int(name)] = value
            return
    elif not isinstance(node.value, dict):
        raise Problem(
            value.place, f"`{node.path}` is {node.shown()} ({node.place.text}) and has no keys"
        )
    elif not rest:
        node.value[name] = value
        return
    child = node.child(name) or Node(_joined(node.path, name), value.place)
    if isinstance(node.value, dict):
        node.value[name] = child
    _put(child, rest, value)


def _next_key(node: Node, parts: list[str]) -> tuple[str, list[str]]:
    """The next key and the rest; names of test sets may contain dots."""
    for n in range(len(parts), 1, -1):
        if node.child(".".join(parts[:n])) is not None:
            return ".".join(parts[:n]), parts[n:]
    return parts[0], parts[1:]


# -- writing ---------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Quotes text that a YAML 1.1 or 1.2 parser could read as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Text on one line; other styles of PyYAML's lose some of Unicode's line breaks."""
        style = '"' if text.splitlines() != [text] else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)
for _pattern, _tag in ((_INT, "int"), (_FLOAT, "float"), (_NOT_FINITE, "float")):
    _Dumper.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern.pattern})$"), list("-+.0123456789")
    )


def write_yaml(value: Any) -> str:
    """Block-style YAML, in the order given, that reads back as the same value."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 20)
    return text
