"""How good files are damaged: as bytes, and as trees of JSON or YAML.

All functions draw from the generator that they are given, and from nothing else.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

# What a tree cannot hold, or only by way of much memory: put into the text once it is written.
_WRITTEN = {
    "@deep-list@": "[" * 1100 + "]" * 1100,
    "@deep-mapping@": '{"a":' * 1100 + "1" + "}" * 1100,
    "@deep@": "[" * 350 + "]" * 350,
    "@digits@": "9" * 5000,
    "@infinite@": "1e999",
    "@not-a-number@": "NaN",
    "@half-a-character@": '"\\ud800"',
    "@no-escape@": '"\\x"',
}
PATHS = [
    *("../up", "../../up", "../../../../up", "/", ".", "..", "", "a/../../../up", "~nobody/x"),
    *("//etc/passwd", "/dev/null", "/proc/self/mem", "x" * 300, "a\0b", "~", "-", "a" * 5000),
    *("a!b", "!", "a.tgz!../up", "con", "file:///etc/passwd", "..\\up", "\u202eup", "a\nb"),
    *("up/", "sub/up", "manifest.json/up", "\udcff", "*", "config.yaml", "tokenizer.model"),
]
URLS = [
    *("http://[", "http://[::1", "http://[::1]:x/a", "http://a:99999/b", "http://", "https:///a"),
    *(
        "http://a..b/c",
        f"http://{'a' * 70}.de/",
        "http://\u2100.de/",
        "http://a b/c",
        "HTTP://\ud800",
    ),
    *(
        "http://a/\r\nb",
        "http://a\tb/",
        "http://user:pass@host:port/",
        "http://xn--/",
        "https://%zz/",
    ),
    *("http://1.2.3.4.5/", "http://0x7f.1:0/", "http://a:-1/b", "http://a/%", "hf://datasets/x"),
]
TEXTS = [
    *("", " ", "a", "\0", "\ufeff", "\ud800", "\udcff", "\u2028", "\x85", "\x1b[31mred\x1b[0m"),
    *("a\nb", "a\r\nb", "a\tb", "%s{}{0}", "😀", "e" + "\u0301" * 40, "</s>", "<script>x</script>"),
    *("NaN", "1e999", "no", "null", "~", "010", "1:30", "!!python/name:os.system", "*a", "&a b"),
    *("\\ud800", "\\U00110000", "'", '"', "`x`", "$(x)", "#", ": ", "- ", "? ", "---", "...", "|"),
    *("<s>", "<unk>", "<pad>", "▁", "\ue000", "0" * 400, "x" * 70_000, "true", "0x" + "f" * 2000),
    *("1.0", "2", "2h", "-1", "1e400", "a" * 64, "f" * 64, "en", "de", "valid", "train", "test"),
]
NUMBERS = [
    *(0, 1, -1, 2, 7, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63),
    *(-(2**63) - 1, 2**64, 10**30, 10**400, 0.0, -0.0, 0.5, 1.0, 1.5, -0.1, 1e-320, 1e308, 1e-9),
]
OTHERS = [None, True, False, [], {}, [[]], {"": None}, [None], {"a": {"b": {}}}, [1, "a", []]]
_SELDOM = {"@deep-list@", "@deep-mapping@"}  # YAML takes some 0.1 s for each
_TOKENS = [
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"\r", b"\r\n"),
    *(b"\n", b"\t", b"{", b"}", b"[", b"]", b'"', b":", b"\\ud800", b"\\u0000", b"\x1b[2J", b"- "),
    *(b"&a ", b"*a", b"!!x ", b"%", b"|\n", b">\n", b"? ", b"---\n", b"...\n", b"\xf4\x90\x80\x80"),
    *(b"NaN", b"-Infinity", b"9" * 400, b"[" * 90, b"a: " * 90, b"\xe2\x80\xa8", b"\xc2\x85"),
]
_INTEGERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]


# -- bytes -----------------------------------------------------------------------------------


def damaged(random: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Bytes that are flipped, cut, doubled, put in; or joined with another file's."""
    result = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        start = random.randint(0, len(result))
        end = min(len(result), start + random.choice((1, 2, 4, 8, 30, 400)))
        what = random.randrange(10)
        if what <= 2 and start < len(result):
            result[start] ^= 1 << random.randrange(8)
        elif what == 3 and start < len(result):
            result[start] = random.choice((0, 0xFF, 0x80, random.randrange(256)))
        elif what == 4:
            del result[start:end]
        elif what == 5:
            result[start:start] = result[start:end] * random.choice((1, 2, 50))
        elif what == 6:
            result[start:start] = random.choice(_TOKENS)
        elif what == 7:
            size = random.choice((1, 2, 4, 8))
            number = random.choice(_INTEGERS) % (1 << (8 * size))
            result[start : start + size] = number.to_bytes(size, random.choice(("little", "big")))
        elif what == 8:
            del result[start:]
        elif others:
            other = random.choice(others)
            at = random.randint(0, len(other))
            result[start:] = other[at:]
    return bytes(result)


def maybe_damaged(random: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """The same, or as often the bytes as they are."""
    return damaged(random, data, others) if random.random() < 0.5 else data


# -- trees -----------------------------------------------------------------------------------


def hostile(random: random.Random) -> Any:
    """A value that nobody expects."""
    kind = random.randrange(8)
    if kind == 0:
        name = random.choice(list(_WRITTEN))
        return "@deep@" if name in _SELDOM and random.random() < 0.9 else name
    if kind <= 2:
        return random.choice(NUMBERS)
    if kind == 3:
        return copy.deepcopy(random.choice(OTHERS))
    return random.choice(random.choice((PATHS, URLS, TEXTS)))


def altered(random: random.Random, tree: Any) -> Any:
    """A copy of a tree in which some nodes are replaced, renamed, left out or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        places = list(_places(tree))
        if not places:
            return hostile(random)
        parent, key = random.choice(places)
        what = random.randrange(8)
        if what <= 3:
            parent[key] = hostile(random)
        elif what == 4:
            del parent[key]
        elif what == 5 and isinstance(parent, dict):
            name = random.choice((*PATHS, *TEXTS, *parent))
            parent[name] = parent.pop(key)
        elif what == 6:
            other, other_key = random.choice(places)
            parent[key] = copy.deepcopy(other[other_key])
        else:
            parent[key] = random.choice(([parent[key]], {"a": parent[key]}, str(parent[key])))
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key or position) of every node but the root."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        items = node.items() if isinstance(node, dict) else ()
        items = enumerate(node) if isinstance(node, list) else items
        for key, value in items:
            found.append((node, key))
            if isinstance(value, dict | list):
                waiting.append(value)
    return found


def json_bytes(random: random.Random, tree: Any, indent: int | None = None) -> bytes:
    """A tree as JSON, with what no tree can hold: endless numbers and nesting, a key twice."""
    text = json.dumps(tree, indent=indent, ensure_ascii=random.random() < 0.5)
    return _written(random, text).encode("utf-8", "surrogatepass")


def _written(random: random.Random, text: str) -> str:
    if "@" in text:
        for name, written in _WRITTEN.items():
            text = text.replace(f'"{name}"', written)
    if random.random() < 0.05 and text.startswith("{") and (n := text.find(",")) > 0:
        return "{" + text[1:n] + "," + text[1:]  # the first key twice
    return text


def yaml_bytes(random: random.Random, tree: Any) -> bytes:
    """A tree as YAML in block style, its text quoted or plain; or as JSON, which is YAML too."""
    if random.random() < 0.25:
        return json_bytes(random, tree)
    style = random.choice((0.0, 0.1, 0.5))
    text = "\n".join(_yaml_lines(random, tree, style)) + "\n"
    return _written(random, text).encode("utf-8", "surrogatepass")


def _yaml_lines(random: random.Random, tree: Any, quoted: float) -> list[str]:
    if isinstance(tree, dict) and tree:
        lines = []
        for key, value in tree.items():
            name = _yaml_scalar(random, key, quoted)
            below = _yaml_lines(random, value, quoted)
            if isinstance(value, dict | list) and value:
                lines += [f"{name}:", *(f"  {line}" for line in below)]
            else:
                lines.append(f"{name}: {below[0]}")
        return lines
    if isinstance(tree, list) and tree:
        lines = []
        for value in tree:
            first, *rest = _yaml_lines(random, value, quoted)
            lines += [f"- {first}", *(f"  {line}" for line in rest)]
        return lines
    return [_yaml_scalar(random, tree, quoted)]


def _yaml_scalar(random: random.Random, value: Any, quoted: float) -> str:
    if isinstance(value, str) and value not in _WRITTEN:
        return json.dumps(value) if random.random() < quoted or value == "" else value
    return json.dumps(value)
