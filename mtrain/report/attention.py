"""Drawings of attention maps: a page with all layers and heads, or a PNG or SVG of some of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mtrain import console
from mtrain.config.literals import AttentionKind
from mtrain.config.sections import ModelConfig
from mtrain.decoding.alignment import SPACE
from mtrain.decoding.attention import AttentionMaps, Weights
from mtrain.errors import UsageError
from mtrain.report.charts import picture_bytes
from mtrain.report.html import render_page
from mtrain.storage import atomic_write

KINDS: tuple[AttentionKind, ...] = get_args(AttentionKind)
MISSING = "\u25a1"  # for a character that no installed font has

# Title of the block, of its rows and of its columns.
_TITLES = {
    "encoder": ("encoder self-attention", "at this piece ...", "... it looks at"),
    "decoder": ("masked decoder self-attention", "to write ...", "... it looks back at"),
    "cross": ("encoder-decoder attention", "to write ...", "... it looks at"),
}
_INK, _SOFT, _FAINT, _PAPER = "#1f2933", "#616e7c", "#9aa5b1", "#f1f3f5"
_FONT_SIZE, _LETTER = 8.5, 0.075  # in points; usual width of a letter, in inches
_CELL, _MOST_CELLS = 0.21, 40_000  # side of a cell; with more cells they are drawn as pixels
_HEADS_PER_ROW, _MOST_ACROSS = 4, 20.0  # inches
_LEFT: dict[str, Any] = {"x": 0.01, "ha": "left"}
_DPI, _MOST_PIXELS = 200, 6000  # of a PNG; pixels along its longer side


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of a model's attention maps are drawn; layers and heads are counted from 1."""

    kinds: tuple[AttentionKind, ...] = KINDS
    layer: int | None = None  # None: the last one of each kind
    heads: tuple[int, ...] | Literal["all", "mean"] = "all"

    def check(self, model: ModelConfig) -> None:
        """Raise a UsageError if a model has no such layer or head."""
        for kind in self.kinds:
            side = "encoder" if kind == "encoder" else "decoder"
            n_layers = model.n_encoder_layers if side == "encoder" else model.n_decoder_layers
            if self.layer is not None and not 1 <= self.layer <= n_layers:
                raise UsageError(
                    f"there is no layer {self.layer}: the {side} has layers 1 to {n_layers}",
                    "choose one of them with --attention-layer",
                )
        for head in self.heads if isinstance(self.heads, tuple) else ():
            if not 1 <= head <= model.n_heads:
                raise UsageError(
                    f"there is no head {head}: every layer has heads 1 to {model.n_heads}",
                    "choose among them with --attention-head, or `mean`",
                )

    def panels(self, weights: Weights) -> dict[str, Weights]:
        """The maps (rows, columns) to draw by name; weights (L, H, rows, columns) of one kind."""
        shown = weights[(self.layer or len(weights)) - 1]
        if self.heads == "mean":
            return {f"mean of {len(shown)} heads": shown.mean(0)}
        heads = range(1, len(shown) + 1) if self.heads == "all" else self.heads
        return {f"head {head}": shown[head - 1] for head in heads}


def read_heads(text: str) -> tuple[int, ...] | Literal["all", "mean"]:
    """`all`, `mean`, or numbers from 1 between commas."""
    if text == "all":
        return "all"
    if text == "mean":
        return "mean"
    if re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        return tuple(map(int, text.split(",")))
    raise UsageError(
        f"`{text}` names no attention heads", "write all, mean, or numbers from 1, such as 1,3"
    )


def check_picture(path: Path) -> None:
    """A UsageError for a kind of picture that cannot be drawn."""
    if path.suffix.lower() not in (".html", ".png", ".svg"):
        raise UsageError(
            f"{path} is neither .html, .png nor .svg", "choose the kind of picture by its ending"
        )


def draw_attention(path: Path, sentences: Sequence[AttentionMaps], selection: Selection) -> None:
    """Write one or a few sentences: .png, .svg, or .html with all layers and heads."""
    kind = path.suffix.lower().removeprefix(".")
    if kind == "html":
        atomic_write(path, attention_page(sentences, selection))
    else:
        atomic_write(path, attention_picture(sentences, selection, kind))


def attention_page(sentences: Sequence[AttentionMaps], selection: Selection = Selection()) -> str:
    """A self-contained page of all layers and heads, which shows the selection first."""
    return render_page(
        "attention.html",
        attention={
            "sentences": [maps.to_json() for maps in sentences],
            "kinds": selection.kinds,
            "kind": "all" if len(selection.kinds) > 1 else selection.kinds[0],
            "layer": selection.layer,
            "heads": selection.heads,
        },
    )


# -- PNG and SVG -----------------------------------------------------------------------------


def attention_picture(
    sentences: Sequence[AttentionMaps], selection: Selection = Selection(), format: str = "svg"
) -> bytes:
    """The attention maps of one or a few sentences, one below the other."""
    pieces = {piece for maps in sentences for piece in (*maps.source, *maps.written, maps.bos)}
    families, boxes = _fonts_for("".join(pieces) + "_\u2192")
    blocks = [
        [_Block(maps, kind, selection, boxes) for kind in selection.kinds] for maps in sentences
    ]
    width = max(block.width for part in blocks for block in part)
    heights = [sum(block.height for block in part) + 0.7 for part in blocks]
    settings: dict[Any, Any] = {
        "font.family": families,
        "font.size": _FONT_SIZE,
        "text.parse_math": False,  # a dollar sign is a dollar sign
        "text.color": _INK,
        "axes.edgecolor": _FAINT,
        "axes.labelcolor": _SOFT,
        "axes.linewidth": 0.6,
        "hatch.linewidth": 0.5,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "svg.fonttype": "path",  # shows the same letters where the fonts are missing
    }
    with rc_context(settings):
        layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)  # inches
        figure = Figure((width, sum(heights)), layout=layout, facecolor="white")
        parts = figure.subfigures(len(blocks), height_ratios=heights, squeeze=False)[:, 0]
        for part, maps, of_sentence in zip(parts, sentences, blocks, strict=True):
            source, written = ("".join(side[:-1]) for side in (maps.source, maps.written))
            heading = f"{source.strip(SPACE)}\n\u2192 {written.strip(SPACE)}".replace(SPACE, " ")
            part.suptitle(heading.translate(boxes), fontsize="large", wrap=True, **_LEFT)
            ratios = [block.height for block in of_sentence]
            rows = part.subfigures(len(ratios), height_ratios=ratios, squeeze=False)[:, 0]
            for row, block in zip(rows, of_sentence, strict=True):
                block.draw(row, width)
        resolution = min(_DPI, _MOST_PIXELS / max(figure.get_size_inches()))
        return picture_bytes(figure, format, "mtrain", dpi=resolution)


class _Block:
    """Heads of one kind and layer side by side, under one title. Sizes are in inches."""

    def __init__(
        self, maps: AttentionMaps, kind: AttentionKind, selection: Selection, boxes: dict[int, str]
    ) -> None:
        weights: Weights = getattr(maps, kind)
        rows = maps.source if kind == "encoder" else maps.written
        columns = maps.read if kind == "decoder" else maps.source
        self.kind, self.panels = kind, selection.panels(weights)
        self.rows = [piece.replace(SPACE, "_").translate(boxes) for piece in rows]
        self.columns = [piece.replace(SPACE, "_").translate(boxes) for piece in columns]
        layer = selection.layer or len(weights)
        self.title = f"{_TITLES[kind][0]}, layer {layer} of {len(weights)}"
        self.title += " (hatched: not written yet)" if kind == "decoder" else ""
        panel = _CELL * len(columns) + 0.25
        most = max(1, int(_MOST_ACROSS / panel))
        self.n_across = min(len(self.panels), _HEADS_PER_ROW, most)
        self.n_down = -(-len(self.panels) // self.n_across)
        labelled = self.n_across * panel + _width(self.rows) + 1.0  # labels before, scale behind
        self.width = max(labelled, 1.7 * _width([self.title]))
        self.height = 0.5 + self.n_down * (_CELL * len(rows) + _width(self.columns) + 0.8)

    def draw(self, figure: SubFigure, width: float) -> None:
        """Fill a part of the figure from the left; `width` is that of the figure."""
        bold: dict[str, Any] = {"fontweight": "bold", "fontfamily": "DejaVu Sans"}
        figure.suptitle(self.title, fontsize="x-large", **bold, **_LEFT)
        # A last, empty column takes up the width that only other blocks need.
        spare = (width - self.width) / (_CELL * len(self.columns)) + 0.001
        ratios = [*[1.0] * self.n_across, spare]
        grid = figure.subplots(self.n_down, len(ratios), width_ratios=ratios, squeeze=False)
        panels = grid[:, :-1].ravel()
        for axes in [*grid[:, -1], *panels[len(self.panels) :]]:
            axes.set_axis_off()
        _, rows, columns = _TITLES[self.kind]
        for number, (axes, name) in enumerate(zip(panels, self.panels, strict=False)):
            is_first = number % self.n_across == 0
            image = self._draw_panel(axes, self.panels[name], with_rows=is_first)
            axes.set_title(name, fontsize="large")
            axes.set_xlabel(columns, style="italic")
            axes.set_ylabel(rows if is_first else "", style="italic")
        scale = figure.colorbar(
            image,
            ax=grid[:1, :-1],
            ticks=[0, 0.5, 1],
            fraction=0.05 / self.n_across,
            aspect=10,
            anchor=(0, 1),
        )
        scale.outline.set_visible(False)

    def _draw_panel(self, axes: Axes, weights: Weights, with_rows: bool) -> Any:
        """One head."""
        n_rows, n_columns = weights.shape
        hidden = np.triu(np.ones(weights.shape, bool), 1) & (self.kind == "decoder")
        image = axes.pcolormesh(
            np.ma.masked_where(hidden, weights),
            cmap="Blues",
            vmin=0,
            vmax=1,
            edgecolors="white",
            linewidth=0.6,
            rasterized=weights.size * len(self.panels) > _MOST_CELLS,
        )
        if self.kind == "decoder":  # seen through the masked cells
            axes.patch.set(facecolor=_PAPER, edgecolor="#c5ccd3", hatch="////")
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.set_xticks(np.arange(n_columns) + 0.5, self.columns, rotation=90)
        axes.set_yticks(np.arange(n_rows) + 0.5, self.rows if with_rows else [""] * n_rows)
        return image


def _width(labels: Sequence[str]) -> float:
    """The width of the longest label, roughly, in inches; an ideograph counts as two letters."""
    wide = [sum(unicodedata.east_asian_width(letter) in "WF" for letter in text) for text in labels]
    return _LETTER * max(len(text) + n for text, n in zip(labels, wide, strict=True))


def _fonts_for(text: str) -> tuple[list[str], dict[int, str]]:
    """Installed font families that together show a text, and boxes for missing characters.

    matplotlib takes each letter from the first family that has it.
    """

    def rank(name: str) -> tuple[bool, bool, bool, str]:
        return name != "DejaVu Sans", not name.startswith("Noto Sans"), "Sans" not in name, name

    files = {
        font.name: font.fname
        for font in fontManager.ttflist
        if font.style == "normal"
        and font.weight in (400, "normal", "regular")
        and not font.name.startswith("Last Resort")  # has a box for everything
    }
    families, missing = [], set(map(ord, text))
    for name in sorted(files, key=rank):
        if missing and (found := missing & get_font(files[name]).get_charmap().keys()):
            families.append(name)
            missing -= found
    if missing:
        _warn_of_missing(" ".join(map(chr, sorted(missing)[:5])))
    return families, dict.fromkeys(missing, MISSING)


@cache
def _warn_of_missing(characters: str) -> None:
    """Warn once for the same characters."""
    console.warn(
        f"no installed font shows {characters}: the picture has {MISSING} there; draw an .html, or "
        "install a font that has them, such as Noto"
    )
