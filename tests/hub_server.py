"""A hub of data sets on loopback that speaks what `datasets` and `huggingface_hub` ask for."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow
import pytest
from loopback import Handler, serving
from pyarrow import parquet


@dataclass
class Repository:
    """A data set: its files at one commit, and who may read it."""

    files: dict[str, bytes]
    revision: str = "a" * 40
    licence: str = "cc-by-4.0"
    is_gated: bool = False


@dataclass
class Hub:
    """The data sets by name, and the paths that were asked for."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def downloads(self) -> list[str]:
        """The parquet files that were asked for, by base name."""
        return [p.rsplit("/", 1)[1] for p in self.requests if re.match(r"GET .*parquet$", p)]


def translations(rows: Sequence[tuple[str, str]], languages: tuple[str, str]) -> bytes:
    """A parquet file with a `translation` column, as the hub's WMT sets have it."""
    kind = pyarrow.struct([(language, pyarrow.string()) for language in sorted(languages)])
    values = [dict(zip(languages, row, strict=True)) for row in rows]
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table({"translation": pyarrow.array(values, kind)}), stream)
    return stream.getvalue()


def card(configs: dict[str, dict[str, str]], licence: str = "cc-by-4.0") -> bytes:
    """The README of a data set: configuration -> split -> pattern of its files."""
    lines = ["---", f"license: {licence}", "configs:"]
    for name, splits in configs.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, pattern in splits.items():
            lines += [f"  - split: {split}", f"    path: {pattern}"]
    return "\n".join([*lines, "---", ""]).encode()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers until the block ends."""
    hub = Hub()
    with serving(hub, _Handler):
        yield hub


def environment(hub: Hub, directory: Path) -> dict[str, str]:
    """The environment of a user of this hub, all of whose caches lie in a directory."""
    return {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(directory / "hf"),
        "MTRAIN_CACHE": str(directory / "cache"),
        "no_proxy": "*",
    }


def use_hub(hub: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment, and what the libraries take from it when they are imported."""
    import datasets
    from huggingface_hub import constants

    for name, value in environment(hub, directory).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MTRAIN_MIRROR", raising=False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(directory / "hf"))


class _Handler(Handler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b"")

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        hub: Hub = self.server.told  # type: ignore[attr-defined]
        url = urlsplit(self.path)
        path = unquote(url.path)
        hub.requests.append(f"{self.command} {path}")
        match = re.fullmatch(
            r"/(?:api/)?datasets/(?P<name>[^/]+/[^/]+)(?:/(?P<verb>[a-z-]+)/(?P<revision>[^/]+))?"
            r"(?:/(?P<path>.*))?",
            path,
        )
        repository = hub.repositories.get(match["name"]) if match else None
        if match is None or repository is None:
            self._refuse(401, "RepoNotFound")  # what the hub says to strangers
        elif repository.is_gated:
            self._refuse(401, "GatedRepo")
        elif match["revision"] not in (None, "main", repository.revision):
            self._refuse(404, "RevisionNotFound")
        elif match["verb"] in (None, "revision"):
            self._send(_info(match["name"], repository))
        elif match["verb"] == "tree":
            self._send(_tree(repository, match["path"] or ""))
        elif match["verb"] == "paths-info":
            paths = parse_qs(body.decode())["paths"]
            self._send([_file(p, repository.files[p]) for p in paths if p in repository.files])
        elif match["path"] in repository.files:
            self._send_file(repository, repository.files[match["path"]])
        else:
            self._refuse(404, "EntryNotFound")

    def _refuse(self, status: int, code: str) -> None:
        self._send({"error": code}, status, {"X-Error-Code": code})

    def _send_file(self, repository: Repository, content: bytes) -> None:
        headers = {
            "X-Repo-Commit": repository.revision,
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        if self.command == "GET" and (wanted := self.headers["Range"]):
            first, last = wanted.removeprefix("bytes=").split("-")
            end = min(int(last) + 1, len(content)) if last else len(content)
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
            self._send(content[int(first) : end], 206, headers)
        else:
            self._send(content, 200, headers)

    def _send(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _info(name: str, repository: Repository) -> dict[str, Any]:
    return {
        "_id": "1",
        "id": name,
        "sha": repository.revision,
        "private": False,
        "gated": False,
        "disabled": False,
        "tags": [],
        "cardData": {"license": repository.licence},
        "lastModified": "2024-01-01T00:00:00.000Z",
        "createdAt": "2024-01-01T00:00:00.000Z",
        "siblings": [{"rfilename": path} for path in repository.files],
    }


def _tree(repository: Repository, folder: str) -> list[dict[str, Any]]:
    """What lies directly in a folder."""
    prefix = f"{folder}/" if folder else ""
    inside = [path.removeprefix(prefix) for path in repository.files if path.startswith(prefix)]
    folders = dict.fromkeys(path.split("/")[0] for path in inside if "/" in path)
    listed = [
        {"type": "directory", "path": prefix + name, "oid": "d" * 40, "size": 0} for name in folders
    ]
    files = [prefix + path for path in inside if "/" not in path]
    return listed + [_file(path, repository.files[path]) for path in files]


def _file(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content)}
    entry["oid"] = hashlib.sha1(content).hexdigest()
    if path.endswith(".parquet"):  # large files, whose sha256 the hub knows
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return entry
