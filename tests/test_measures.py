"""The scripts that measure the filters run, on sentences of two languages."""

from __future__ import annotations

import gzip
import runpy
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
GERMAN = [f"Die Größe von Übung {i} wächst über das Maß hinaus." for i in range(30)]
ENGLISH = [f"The size of exercise {i} grows beyond measure." for i in range(30)]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("measure_garbled.py", "| decoded as cp1252 | 1.000 |"),
        ("measure_languages.py", "1 of 1 languages keep all 30 pairs."),
    ],
)
def test_a_table_is_printed(
    script: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for code, lines in (("deu", GERMAN), ("eng", ENGLISH)):
        text = "".join(f"{line}\n" for line in lines)
        (tmp_path / f"devtest.{code}.gz").write_bytes(gzip.compress(text.encode()))
    namespace = runpy.run_path(str(SCRIPTS / script))
    if script == "measure_garbled.py":
        # A division by zero has no meaning: each column needs a sentence.
        for code, line in (("rus", "Привет"), ("hin", "नमस्ते")):
            content = gzip.compress(f"{line}\n".encode())
            (tmp_path / f"devtest.{code}.gz").write_bytes(content)
    namespace["main"](["--data", str(tmp_path)])
    assert said in capsys.readouterr().out
