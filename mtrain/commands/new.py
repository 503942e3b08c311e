"""`mtrain new`: copy a shipped config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtrain.commands.output import print_line
from mtrain.console import command
from mtrain.errors import UsageError
from mtrain.storage import atomic_write

EXAMPLES = ("mtrain new my-project", "mtrain new . --from my-corpus")
PACKAGE = Path(__file__).parent.parent

Directory = Annotated[
    Path, typer.Argument(metavar="DIR", help="Target directory; created if missing.")
]
Name = Annotated[
    str,
    typer.Option("--from", metavar="CONFIG", help="Name of a shipped config, such as my-corpus."),
]


def new(directory: Directory, name: Name = "quickstart") -> None:
    """Copy a shipped, commented config into a directory."""
    shipped = _shipped_configs()
    if name not in shipped:
        raise UsageError(
            f"there is no shipped config named `{name}`", f"choose one of {', '.join(shipped)}"
        )
    copy = directory / f"{name}.yaml"
    if copy.exists():
        raise UsageError(f"{copy} already exists", "choose another directory, or move the file")
    atomic_write(copy, shipped[name].read_bytes())
    schema = shipped[name].with_name("schema.json")  # for editors
    if not (directory / schema.name).exists():
        atomic_write(directory / schema.name, schema.read_bytes())
    first = "name your files in it, then: " if name == "my-corpus" else "next: "
    print_line(f"wrote {copy}; {first}{command('mtrain', 'train', copy)}")


def _shipped_configs() -> dict[str, Path]:
    """Name -> path, in the installed package or at the top of a checkout."""
    for folder in (PACKAGE / "configs", PACKAGE.parent / "configs"):
        if (folder / "quickstart.yaml").is_file():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    raise AssertionError("mtrain was installed without its configs")
