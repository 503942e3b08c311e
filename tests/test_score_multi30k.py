"""Multi30k as the papers score it: our three steps give their tokenised references."""

import gzip
import importlib.util
import os
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "score_multi30k.py"
RAW = ["Ein Hund (schwarz) läuft schnell.", 'Auf dem Schild steht: „Come on."', "Er sagt: It's me."]
TOKENIZED = [
    "ein hund ( schwarz ) läuft schnell .",
    "auf dem schild steht : &quot; come on &quot; .",
    "er sagt : it &apos; s me .",
]


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("score_multi30k", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path):
    """A directory like multi30k's, of three sentences."""
    (tmp_path / "tok").mkdir()
    write_gz(tmp_path / "toy.de.gz", RAW)
    write_gz(tmp_path / "tok" / "toy.lc.norm.tok.de.gz", TOKENIZED)
    return tmp_path


def write_gz(path: Path, lines: list[str]) -> None:
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))


def write_hypothesis(directory: Path, lines: list[str]) -> Path:
    path = directory / "hypothesis"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def arguments(hypothesis: Path, data: Path) -> list[str]:
    options = {"--hypothesis": hypothesis, "--data": data, "--lang": "de", "--split": "toy"}
    return [str(part) for option in options.items() for part in option]


def test_the_three_steps(script):
    pytest.importorskip("sacremoses")
    assert script.as_papers(RAW, "de") == TOKENIZED


def test_both_scores_are_printed(script, data, capsys):
    pytest.importorskip("sacremoses")
    lowered = write_hypothesis(data, [line.lower() for line in RAW])
    assert script.main(arguments(lowered, data)) == 0
    check, papers, plain = capsys.readouterr().out.splitlines()
    assert "0 of 3 lines differ" in check
    assert "BLEU 100.00 [100.00, 100.00]" in papers  # which disregards case
    assert "|tok:none|" in papers
    assert "BLEU 100.00" not in plain
    assert "|tok:13a|" in plain


def test_differing_lines_are_counted(script, data, capsys):
    pytest.importorskip("sacremoses")
    write_gz(data / "tok" / "toy.lc.norm.tok.de.gz", ["etwas anderes .", *TOKENIZED[1:]])
    assert script.main(arguments(write_hypothesis(data, RAW), data)) == 0
    assert "1 of 3 lines differ" in capsys.readouterr().out


def test_unequal_line_counts(script, data, capsys):
    assert script.main(arguments(write_hypothesis(data, RAW[:2]), data)) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "has 2 lines, but toy.de has 3, and 3 tokenised ones" in captured.err


def test_without_sacremoses(script, data, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    assert script.main(arguments(write_hypothesis(data, RAW), data)) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert error.startswith("error: scoring Multi30k as the papers do needs sacremoses")
    assert fix == "  fix: pip install sacremoses"


@pytest.mark.parametrize("split", ["test_2016_flickr", "test_2017_flickr", "val"])
@pytest.mark.parametrize("lang", ["de", "fr"])
def test_the_published_references_are_made_anew(script, split, lang):
    pytest.importorskip("sacremoses")
    name = f"{split}.lc.norm.tok.{lang}.gz"
    found = sorted(Path(os.environ.get("MTRAIN_MIRROR", os.devnull)).rglob(name))
    if not found:
        pytest.skip("Multi30k is not below MTRAIN_MIRROR")
    raw = script.read_lines(found[0].parents[1] / f"{split}.{lang}.gz")
    differing = [
        (ours, theirs)
        for ours, theirs in zip(
            script.as_papers(raw, lang), script.read_lines(found[0]), strict=True
        )
        if ours != theirs
    ]
    assert differing == []
