"""Write the reference of config keys into configs/README.md, from the program itself.

python scripts/write_reference.py            writes it
python scripts/write_reference.py --check    exits with 1 where it is out of date
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from inspect import isclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "configs" / "README.md"
sys.path.insert(0, str(REPOSITORY))


def config_reference() -> str:
    """A table of keys for each part of the config, from its JSON schema."""
    from mtrain.config.entries import ENTRIES, PATHS, MonoEntry, NamedEntry
    from mtrain.config.load import json_schema
    from mtrain.config.root import Config

    schema = json_schema()
    parts = []
    for prefix, model in _sections(Config, ""):
        section = schema["$defs"].get(model.__name__, schema)
        required = section.get("required", [])
        inner = dict(_inner_sections(model))
        rows = [
            (f"`{prefix}{key}`", _values(field), _default(field, key in required), _meaning(field))
            for key, field in section["properties"].items()
            if key not in inner
        ]
        title = prefix.rstrip(".") or "top level"
        parts.append(f"**{title}** {section['description']}\n")
        parts.append(_table(("key", "values", "default", "meaning"), rows))
    common = NamedEntry.model_json_schema()["properties"]
    parts.append(
        "**Entries** of `data.train`, `data.valid` and `data.test`. "
        f"{PATHS} Every entry may have:\n"
    )
    parts.append(_table(("key", "values", "default", "meaning"), _entry_rows(common, [])))
    for kind in (*ENTRIES.values(), MonoEntry):
        entry = schema["$defs"][kind.__name__]
        parts.append(f"**`{_entry_form(entry)}`** {entry['description']}\n")
        inherited = common if issubclass(kind, NamedEntry) else {}
        own = {
            key: field
            for key, field in entry["properties"].items()
            if _meaning(field) != _meaning(inherited.get(key, {}))
        }
        rows = _entry_rows(own, entry["required"])
        parts.append(_table(("key", "values", "default", "meaning"), rows))
    return "\n".join(parts)


def _entry_rows(fields: dict[str, Any], required: Sequence[str]) -> list[tuple[str, ...]]:
    """A row for each key of an entry, those that it must have first."""
    return [
        (f"`{key}`", _values(field), _default(field, key in required), _meaning(field))
        for key, field in sorted(fields.items(), key=lambda item: item[0] not in required)
    ]


def _sections(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted prefix of its keys, section), depth first."""
    yield prefix, model
    for key, inner in _inner_sections(model):
        yield from _sections(inner, f"{prefix}{key}.")


def _inner_sections(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """The keys of a section that are sections themselves."""
    for key, field in model.model_fields.items():
        if isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            yield key, field.annotation


def _values(field: dict[str, Any]) -> str:
    """What may stand there: choices, or a type and its bounds."""
    if "enum" in field or "const" in field:
        choices = field.get("enum", [field.get("const")])
        return ", ".join(f"`{'false' if choice is False else choice}`" for choice in choices)
    if "anyOf" in field:
        kinds = [_values(choice) for choice in field["anyOf"]]
        return " or ".join(dict.fromkeys(kind for kind in kinds if kind))
    if "oneOf" in field:
        return "entry"
    if "$ref" in field:
        return "mapping"
    bounds = [
        f"{sign} {field[name]}"
        for name, sign in _BOUNDS.items()
        if name in field and field[name] < 1 << 31
    ]
    return " ".join([_TYPES[field["type"]], ", ".join(bounds)]).strip()


_TYPES = {
    "integer": "integer",
    "number": "number",
    "string": "text",
    "boolean": "true, false",
    "array": "list",
    "object": "mapping",
    "null": "",
}
_BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


def _default(field: dict[str, Any], is_required: bool) -> str:
    if is_required:
        return "required"
    default = field.get("default")
    return "" if default in (None, {}) else f"`{json.dumps(default).strip(chr(34))}`"


def _meaning(field: dict[str, Any]) -> str:
    return str(field.get("description", ""))


def _entry_form(entry: dict[str, Any]) -> str:
    """The keys that make it an entry of its kind."""
    return "{" + ", ".join(entry["required"]) + "}"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    cells = [[_escape(cell) for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _escape(cell: str) -> str:
    """Markdown takes | for the next cell and, outside of code, <name> for HTML."""
    cell = cell.replace("|", "\\|")
    return cell if cell.startswith("`") else re.sub(r"<(?=\w)", "&lt;", cell)


def with_reference(text: str) -> str:
    """The text with its marked section generated from the program."""
    begin, end = "<!-- generated: config -->", "<!-- end of config -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{config_reference()}\n{end}{rest.split(end)[1]}"


def main(arguments: list[str]) -> int:
    """0 if the file is (now) up to date."""
    text = README.read_text(encoding="utf-8")
    wanted = with_reference(text)
    if arguments == ["--check"]:
        if wanted != text:
            print(f"{README} is out of date: run scripts/write_reference.py", file=sys.stderr)
        return int(wanted != text)
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
