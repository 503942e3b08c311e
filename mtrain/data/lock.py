"""The lock of a config: `<config stem>.lock` beside it records the content of its data.

If the content of a URL changes later, that is an error; for a local file, the new state is
recorded.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from mtrain import console
from mtrain.errors import StorageError
from mtrain.run_shapes import LOCK
from mtrain.storage import atomic_write, read_json

FORMAT = 1
Records = dict[str, dict[str, Any]]


class Lock:
    """The recorded files and sources of a config.

    files    URL or path -> sha256, size_bytes and, for text, lines
    sources  label of an entry -> name, pairs and, where they exist, files, revision and licence
    """

    def __init__(
        self, path: Path, files: Records | None = None, sources: Records | None = None
    ) -> None:
        self.path = path
        self.files = files or {}
        self.sources = sources or {}
        self._as_stored = self._text()

    @classmethod
    def open(cls, config_path: Path, fallback_dir: Path | None = None) -> Lock:
        """Read the lock beside the config, or the one that `save` put into `fallback_dir`."""
        path = config_path.with_suffix(".lock")
        places = [path] if fallback_dir is None else [path, fallback_dir / path.name]
        for place in places:
            if place.is_file():
                fix = "restore it, or delete it: the current files are then recorded"
                content = read_json(place, LOCK, fix)
                return cls(path, content["files"], content.get("sources"))
        return cls(path)

    def expect(self, url: str) -> str | None:
        """Return the recorded sha256 of a URL, if any."""
        return self.files.get(url, {}).get("sha256")

    def record(self, location: str, sha256: str, size_bytes: int) -> None:
        """Record the content of a URL or path; the line count of the same bytes is kept."""
        before = self.files.get(location, {})
        entry = {"sha256": sha256, "size_bytes": size_bytes}
        if "lines" in before and before["sha256"] == sha256:
            entry["lines"] = before["lines"]
        self.files[location] = entry

    def record_lines(self, location: str, n_lines: int) -> None:
        """Record the number of lines of a recorded file."""
        self.files[location]["lines"] = n_lines

    def describe(self, label: str, **facts: Any) -> None:
        """Add facts about a source; those that are None are unknown and left out."""
        known = {key: value for key, value in facts.items() if value is not None}
        self.sources[label] = self.sources.get(label, {}) | known

    def _text(self) -> str:
        content = {"format": FORMAT, "files": self.files, "sources": self.sources}
        return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def save(self, fallback_dir: Path) -> Path:
        """Write the lock if it changed; returns its path."""
        text, path = self._text(), self.path
        if text == self._as_stored:
            return path
        try:
            atomic_write(path, text)
        except StorageError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENOSPC:
                raise
            path = fallback_dir / self.path.name
            atomic_write(path, text)
            console.message(f"note: {self.path.parent} cannot be written; the lock is {path}")
        self._as_stored = text
        return path
