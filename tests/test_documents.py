"""The README, the scripts and the package say what is true."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from typer.main import get_command

import mtrain
from mtrain.cli import app
from mtrain.errors import MtrainError

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
REFERENCE = (REPOSITORY / "configs" / "README.md").read_text(encoding="utf-8")
COMMANDS: dict[str, Any] = get_command(app).commands
SHELL_SCRIPTS = [*sorted((REPOSITORY / "scripts").glob("*.sh")), REPOSITORY / ".ci" / "run"]


def shown_commands() -> list[str]:
    """Every `mtrain ...` that a reader could copy: from blocks of code, configs and scripts."""
    blocks = re.findall(r"^```(?:bash)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    texts = [*blocks]
    for path in [
        *(REPOSITORY / "configs").glob("*.yaml"),
        REPOSITORY / "scripts" / "quickstart.sh",
    ]:
        text = path.read_text(encoding="utf-8").replace('"$mtrain"', "mtrain")
        texts.append(re.sub(r"^# {1,3}", "", text, flags=re.MULTILINE))
    found = re.findall(r"^(?:.*\| )?(mtrain [^\n>]*)", "\n".join(texts), re.MULTILINE)
    assert len(found) >= 12
    return found


@pytest.mark.parametrize("line", sorted(set(shown_commands())))
def test_commands_that_are_shown_exist(line: str) -> None:
    _, name, *words = shlex.split(line, comments=True)
    params = COMMANDS[name].params
    options = {spelling: param for param in params for spelling in param.opts if "-" in spelling}
    n_arguments = 0
    while words:
        word = words.pop(0)
        if word.startswith("-"):
            assert word in options, line
            if not options[word].is_flag:
                words.pop(0)
        else:
            n_arguments += 1
    arguments = [param for param in params if param.param_type_name == "argument"]
    n_required = sum(param.required for param in arguments)
    most = float("inf") if any(param.nargs == -1 for param in arguments) else len(arguments)
    assert n_required <= n_arguments <= most, line


def test_every_command_is_in_the_readme_and_every_option_has_help() -> None:
    for name, command in COMMANDS.items():
        assert f"mtrain {name} " in README
        assert command.help
        for param in command.params:
            assert param.param_type_name == "argument" or param.help, (name, param.name)


def test_the_readme_is_short_and_shows_the_house() -> None:
    assert README.count("\n") <= 200
    picture = README.split("## The code")[1].split("```")[1]
    rooms = {path.parent.name for path in (REPOSITORY / "mtrain").glob("*/__init__.py")}
    assert rooms <= set(re.findall(r"\w+", picture))


def test_the_readme_shows_small_images_with_alternative_text() -> None:
    images = dict(re.findall(r"!\[([^]]{20,})\]\(([^)]+)\)", README))
    made = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "scripts/images").iterdir()}
    assert set(images.values()) == made
    assert all((REPOSITORY / image).stat().st_size < 200_000 for image in made)


@pytest.mark.parametrize("document", ["README.md", "configs/README.md", "scripts/README.md"])
def test_files_that_documents_refer_to_exist(document: str) -> None:
    path = REPOSITORY / document
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (path.parent / link).exists(), link
    for name in re.findall(r"`((?:mtrain|tests|scripts|configs)/[\w./-]+)`", text):
        assert (REPOSITORY / name).exists(), name


@pytest.mark.parametrize("script", ["write_reference.py", "write_schema.py"])
def test_what_is_generated_is_up_to_date(script: str) -> None:
    done = subprocess.run(
        [sys.executable, REPOSITORY / "scripts" / script, "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_key_of_the_config_has_a_meaning() -> None:
    table = REFERENCE.split("<!-- generated: config -->")[1].split("<!-- end of config -->")[0]
    rows = [line for line in table.split("\n") if line.startswith("| `")]
    assert len(rows) > 40
    for row in rows:
        assert row.rstrip("| ").count(" | ") >= 1
        assert not row.endswith("|  |"), row


def test_the_exit_codes_of_all_errors_are_in_the_readme() -> None:
    codes = re.findall(r"^\| ([0-9, ]+) \|", README, re.MULTILINE)
    documented = {int(code) for cell in codes for code in cell.split(",")}
    pending: list[type[MtrainError]] = [MtrainError]
    while pending:
        kind = pending.pop()
        assert kind.exit_code in documented
        pending += kind.__subclasses__()
    assert documented == {0, 1, 2, 3, 4, 129, 130, 141, 143}


@pytest.mark.parametrize("path", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_parse_and_can_be_run(path: Path) -> None:
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if path.name != "environment.sh":  # which is sourced
        assert os.access(path, os.X_OK)
        goes_on = path.name == "first_hour_on_gpu.sh"  # notes a failed step, then does the next
        wanted = "set -uo pipefail" if goes_on else "set -euo pipefail"
        assert wanted in path.read_text(encoding="utf-8").splitlines()


def test_nothing_names_a_machine_or_a_package_index() -> None:
    forbidden = re.compile(
        r"pypi\.|/simple\b|index-url|/home/|/root/|/usr/local|/work/|/tmp/", re.IGNORECASE
    )
    paths = [REPOSITORY / "README.md", REPOSITORY / "pyproject.toml", *SHELL_SCRIPTS]
    paths += [REPOSITORY / "scripts" / "constraints.txt", *(REPOSITORY / "configs").iterdir()]
    for path in paths:
        assert not forbidden.search(path.read_text(encoding="utf-8")), path


def test_all_packages_are_installed() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(settings["tool"]["setuptools"]["packages"])
    found = {
        ".".join(path.parent.relative_to(REPOSITORY).parts)
        for path in (REPOSITORY / "mtrain").rglob("__init__.py")
    }
    assert listed == found | {"mtrain.configs"}


def test_the_tested_versions_cover_what_is_needed() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = settings["dependencies"] + settings["optional-dependencies"]["dev"]
    names = {re.split(r"[^\w-]", line)[0].lower() for line in needed}
    text = (REPOSITORY / "scripts" / "constraints.txt").read_text(encoding="utf-8")
    pins = {line.split("==")[0].lower() for line in text.split("\n") if "==" in line}
    assert names <= pins


def test_public_names_are_documented() -> None:
    assert mtrain.__all__ == ["__version__", "load"]
    assert mtrain.load.__doc__
    assert "mtrain.load(" in README
