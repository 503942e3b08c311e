"""The config of the other direction: every entry, path and language with its sides exchanged."""

from __future__ import annotations

import re
from typing import Any

from mtrain.config.root import Config

_OTHER = {"source": "target", "target": "source"}


def reverse(config: Config) -> Config:
    """The same training from target to source, under the name `<name>-reverse`.

    Values that are `auto` stay so.
    """
    tree = config.model_dump(exclude_unset=True)
    tree["data"] = config.data.model_dump()  # defaults of entries name sides and columns
    tree = _exchanged(tree)
    tree["name"] = f"{config.name}-reverse"
    if config.run is not None:
        tree["run"] = f"{config.run}-reverse"
    return Config.model_validate(tree)


def _exchanged(value: Any) -> Any:
    """A tree with keys that begin with `source` and `target` exchanged, and all pairs of sides."""
    if isinstance(value, dict):
        exchanged = {_exchanged_key(key): _exchanged(item) for key, item in value.items()}
        for key in ("columns", "languages"):
            if exchanged.get(key):
                exchanged[key] = tuple(reversed(exchanged[key]))
        if "side" in exchanged:
            exchanged["side"] = _OTHER[exchanged["side"]]
        return exchanged
    return tuple(map(_exchanged, value)) if isinstance(value, tuple) else value


def _exchanged_key(key: str) -> str:
    return re.sub("^(source|target)(?=_|$)", lambda match: _OTHER[match[0]], key)
