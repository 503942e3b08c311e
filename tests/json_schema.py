"""Checks a value against the part of JSON Schema that the config's schema is made of."""

from __future__ import annotations

import re
from typing import Any

_TYPES: dict[str, Any] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_SAID_ELSEWHERE = {"$schema", "$defs", "title", "description", "default"}
_OF_OBJECTS = {"properties", "patternProperties", "additionalProperties", "propertyNames"}


def is_valid(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether a schema accepts a value; `root` is the schema that holds `$defs`."""
    objects = {key: rule for key, rule in schema.items() if key in _OF_OBJECTS}
    if isinstance(value, dict) and not _is_valid_object(value, objects, root):
        return False
    others = schema.keys() - _SAID_ELSEWHERE - _OF_OBJECTS
    return all(_holds(key, schema[key], value, schema, root) for key in others)


def _is_valid_object(value: dict[str, Any], rules: dict[str, Any], root: dict[str, Any]) -> bool:
    names = rules.get("propertyNames", {})
    if not all(is_valid(name, names, root) for name in value):
        return False
    for name, item in value.items():
        schemas = [rules["properties"][name]] if name in rules.get("properties", {}) else []
        for pattern, schema in rules.get("patternProperties", {}).items():
            schemas += [schema] if re.search(pattern, name) else []
        rest = rules.get("additionalProperties", True)
        if not schemas and isinstance(rest, bool):
            if not rest:
                return False
            continue
        if not all(is_valid(item, schema, root) for schema in schemas or [rest]):
            return False
    return True


def _holds(key: str, rule: Any, value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """One keyword of a schema; those that are not about values of this type hold."""
    match key:
        case "$ref":
            return is_valid(value, root["$defs"][rule.rpartition("/")[2]], root)
        case "type":
            return bool(_TYPES[rule](value))
        case "const":
            return type(value) is type(rule) and value == rule
        case "enum":
            return value in rule
        case "anyOf":
            return any(is_valid(value, choice, root) for choice in rule)
        case "oneOf":
            return sum(is_valid(value, choice, root) for choice in rule) == 1
        case "required":
            return not isinstance(value, dict) or all(name in value for name in rule)
        case "pattern":
            return not isinstance(value, str) or re.search(rule, value) is not None
        case "minLength" | "maxLength":
            return not isinstance(value, str) or _is_within(key, len(value), rule)
        case "minItems" | "maxItems":
            return not isinstance(value, list) or _is_within(key, len(value), rule)
        case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
            return not _TYPES["number"](value) or _is_within(key, value, rule)
        case "items":
            known = len(schema.get("prefixItems", ()))
            rest = value[known:] if isinstance(value, list) else []
            return all(is_valid(item, rule, root) for item in rest)
        case "prefixItems":
            items = value if isinstance(value, list) else []
            return all(is_valid(*both, root) for both in zip(items, rule, strict=False))
    raise AssertionError(f"a keyword of JSON Schema that is not known here: {key}")


def _is_within(key: str, value: float, bound: float) -> bool:
    if key.startswith("exclusive"):
        return value > bound if key.endswith("Minimum") else value < bound
    return value >= bound if key.startswith("min") else value <= bound
