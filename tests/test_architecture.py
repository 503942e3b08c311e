"""The house holds: imports point downwards, and each stream and library has its one room.

Read from the source with `ast`, so that an import inside a function counts as well.
"""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "mtrain"
LAYERS = [
    *("ground", "data", "model", "decoding", "evaluation", "training", "report", "export"),
    *("commands", "cli"),
]
TOP = {"mtrain", "mtrain.__main__", "mtrain.cli"}  # `mtrain` itself offers `load`

# What starts without torch: everything before a model is needed, and `eval --hypothesis`.
WITHOUT_TORCH = [
    "mtrain",
    "mtrain.cli",
    "mtrain.config.load",
    "mtrain.console",
    "mtrain.errors",
    "mtrain.machine.process_pool",
    "mtrain.run",
    "mtrain.data.cldr",
    "mtrain.data.cleaning",
    "mtrain.data.corpus",
    "mtrain.data.encoding",
    "mtrain.data.identity",
    "mtrain.data.data_report",
    "mtrain.data.filters",
    "mtrain.data.prepare",
    "mtrain.data.sources",
    "mtrain.data.store",
    "mtrain.data.lines",
    "mtrain.data.tokenizer",
    "mtrain.evaluation.metrics",
    "mtrain.report.attention",
    "mtrain.report.page",
]


def _module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {
    _module_name(path): ast.parse(path.read_text(encoding="utf-8"), str(path))
    for path in sorted(PACKAGE.rglob("*.py"))
}


def layer(module: str) -> str:
    """The room of a module; the ground floor is single modules and the rooms config and machine."""
    if module in TOP:
        return "cli"
    room = module.split(".")[1]
    return room if room in LAYERS else "ground"


def imports(module: str) -> Iterator[tuple[str, ast.stmt]]:
    """Every import of a module: the full names that it may stand for, and the statement."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from ((name.name, node) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} line {node.lineno}: write imports in full"
            assert node.module is not None
            yield node.module, node
            yield from ((f"{node.module}.{name.name}", node) for name in node.names)


def internal_imports(module: str) -> set[str]:
    """The modules of mtrain that a module imports, anywhere in it."""
    names = {name for name, _ in imports(module) if name in TREES}
    return names - {module, "mtrain"} - _packages()


def _packages() -> set[str]:
    return {_module_name(path) for path in PACKAGE.rglob("__init__.py")}


def imported_at_start(module: str) -> Iterator[str]:
    """What importing a module imports at once: no function bodies, nothing for type checkers."""
    pending: list[ast.AST] = [TREES[module]]
    at_start: set[int] = set()
    while pending:
        node = pending.pop()
        at_start.add(id(node))
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if not is_function and not (isinstance(node, ast.If) and "TYPE_CHECKING" in _names(node)):
            pending.extend(ast.iter_child_nodes(node))
    yield from (name for name, node in imports(module) if id(node) in at_start)


def _names(node: ast.If) -> set[str]:
    """The names in a condition: of `typing.TYPE_CHECKING` and of `TYPE_CHECKING` alike."""
    parts = list(ast.walk(node.test))
    return {part.id for part in parts if isinstance(part, ast.Name)} | {
        part.attr for part in parts if isinstance(part, ast.Attribute)
    }


def uses(module: str, owner: str, names: set[str]) -> set[str]:
    """Which of `owner.name` (or `from owner import name`) occur in a module."""
    attributes = {
        node.attr
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == owner
    }
    imported = {
        name.removeprefix(f"{owner}.")
        for name, _ in imports(module)
        if name.startswith(f"{owner}.")
    }
    return (attributes | imported) & names


def libraries(module: str) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    return {name.split(".")[0] for name, _ in imports(module)}


def calls(module: str) -> set[str]:
    """The plain names that a module calls."""
    return {
        node.func.id
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


# -- layers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", TREES)
def test_imports_point_downwards(module):
    own = LAYERS.index(layer(module))
    upwards = {name for name in internal_imports(module) if LAYERS.index(layer(name)) > own}
    assert not upwards


@pytest.mark.parametrize("room", LAYERS)
def test_modules_of_a_room_import_each_other_in_some_order(room):
    graph = {
        module: {name for name in internal_imports(module) if layer(name) == room}
        for module in TREES
        if layer(module) == room
    }
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_every_folder_is_a_room():
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert folders <= (set(LAYERS) | {"config", "machine"}) - {"ground", "cli"}


# -- who may do what -------------------------------------------------------------------------


def test_only_commands_speak_typer():
    for module in TREES:
        is_command = layer(module) in ("commands", "cli")
        assert is_command or not libraries(module) & {"typer"}, module
        assert not libraries(module) & {"click", "argparse"}, module
        assert not uses(module, "sys", {"argv"}), module


def test_the_ways_to_end_and_standard_output_have_one_place_each():
    for module in set(TREES) - {"mtrain.commands.exit_codes"}:
        assert not uses(module, "sys", {"exit"}), module
        assert not uses(module, "os", {"_exit"}), module
        assert not calls(module) & {"exit", "quit", "SystemExit"}, module
    for module in set(TREES) - {"mtrain.commands.output"}:
        assert not uses(module, "sys", {"stdout", "__stdout__"}), module
        assert not calls(module) & {"print", "input"}, module


def test_commands_know_nothing_of_each_other():
    shared = {f"mtrain.commands.{name}" for name in ("options", "outcomes", "output")}
    for module in TREES:
        if layer(module) == "commands":
            others = {name for name in internal_imports(module) if layer(name) == "commands"}
            assert others <= shared, module


def test_only_console_writes_to_standard_error():
    for module in set(TREES) - {"mtrain.console"}:
        assert not uses(module, "sys", {"stderr", "__stderr__"}), module
        assert not libraries(module) & {"tqdm", "logging"}, module
        assert not uses(module, "warnings", {"warn"}), module


def test_no_module_is_a_drawer_for_odds_and_ends():
    parts = {part for module in TREES for part in module.split(".")}
    assert not parts & {"utils", "util", "common", "helpers", "helper", "constants", "misc"}


def test_nothing_is_swallowed():
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                where = f"{module} line {node.lineno}"
                assert node.type is not None, where
                assert not all(isinstance(line, ast.Pass) for line in node.body), where


# -- torch only where there is a model -------------------------------------------------------


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_no_torch_at_start(module):
    """Neither by itself nor by way of another module."""
    seen: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        seen.add(name)
        imported = set(imported_at_start(name))
        assert "torch" not in {other.split(".")[0] for other in imported}, name
        pending.extend((imported & set(TREES)) - seen)


# -- these checks can fail -------------------------------------------------------------------


def test_the_checks_see_what_they_look_for(monkeypatch):
    source = """
import typing
from mtrain.training import train
from sys import stderr
if typing.TYPE_CHECKING:
    import numpy
try:
    import torch.nn
finally:
    print("x")
def f() -> None:
    import tqdm
"""
    monkeypatch.setitem(TREES, "mtrain.data.probe", ast.parse(source))
    monkeypatch.setitem(TREES, "mtrain.training.train", ast.parse(""))
    assert internal_imports("mtrain.data.probe") == {"mtrain.training.train"}
    with pytest.raises(AssertionError):
        test_imports_point_downwards("mtrain.data.probe")
    with pytest.raises(AssertionError):
        test_no_torch_at_start("mtrain.data.probe")
    assert uses("mtrain.data.probe", "sys", {"stderr"}) == {"stderr"}
    assert "print" in calls("mtrain.data.probe")
    at_start = set(imported_at_start("mtrain.data.probe"))
    assert "torch.nn" in at_start
    assert not at_start & {"tqdm", "numpy"}
