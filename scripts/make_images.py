"""Makes the pictures in README.md from a finished run of the quickstart.

    pip install playwright  # and Chromium, such as Debian's package `chromium`
    python scripts/make_images.py runs/quickstart

scripts/images/attention.png   mtrain translate RUN --attention
scripts/images/report.png      the top of the page of `mtrain report RUN`, in headless Chromium
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
SENTENCE = "Tuesday, May 7, 2024"
WIDTH, HEIGHT = 900, 900  # of the browser window, in CSS pixels
SCALE = 1.5  # device pixels per CSS pixel, so that the text stays sharp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--sentence", default=SENTENCE)
    arguments = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    draw_attention(arguments.run, arguments.sentence)
    photograph_report(arguments.run)


def draw_attention(run: Path, sentence: str) -> None:
    """The cross-attention of the last layer, mean of all heads, for one sentence."""
    options = ("--attention-kind", "cross", "--attention-head", "mean", "--force")
    picture = IMAGES / "attention.png"
    command = [sys.executable, "-m", "mtrain", "translate", run, "--attention", picture, *options]
    subprocess.run(command, input=sentence, text=True, check=True)


def photograph_report(run: Path) -> None:
    """The report down to the list of its chapters."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        page = Path(directory) / "report.html"
        subprocess.run([sys.executable, "-m", "mtrain", "report", run, "-o", page], check=True)
        # In a container, Chromium's own sandbox is not available; the page is ours.
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        window = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=SCALE
        )
        window.goto(page.as_uri())
        chapters = window.locator("nav").bounding_box()
        assert chapters is not None
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": chapters["y"] + chapters["height"]}
        window.screenshot(path=IMAGES / "report.png", clip=clip, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
