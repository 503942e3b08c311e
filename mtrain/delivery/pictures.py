"""Pictures as SVG or PNG, by matplotlib: attention maps, and speed against quality.

Figures are built as objects and never shown; nothing here keeps any state in matplotlib. Sizes are
in inches, and laid out from the labels, so that no label is cut off or printed over another.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from mtrain import console
from mtrain.config.literals import AttentionKind
from mtrain.config.sections import ModelConfig
from mtrain.decoding.alignment import SPACE
from mtrain.decoding.attention import AttentionMaps, Weights
from mtrain.delivery.policy import with_policy
from mtrain.errors import UsageError
from mtrain.storage import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mtrain.evaluation.sweep import Point

KINDS: tuple[AttentionKind, ...] = get_args(AttentionKind)

TITLES = {
    "encoder": "encoder self-attention",
    "decoder": "masked decoder self-attention",
    "cross": "encoder-decoder attention",
}
ROW_LABELS = {"encoder": "at this piece ...", "decoder": "to write ...", "cross": "to write ..."}
COLUMN_LABELS = {
    "encoder": "... it looks at",
    "decoder": "... it looks back at",
    "cross": "... it looks at",
}

INK, CAPTIONS, FAINT, PAPER = "#1f2933", "#616e7c", "#9aa5b1", "#f1f3f5"
COLOURS = "Blues"
CELL, MOST_CELLS = 0.21, 40_000  # a cell's side; beyond so many cells, pixels instead of shapes
FONT_SIZE, CHARACTER = 8.5, 0.07  # points; the width of a character at that size
GAP, MARGIN, CAPTION = 0.22, 0.25, 0.24
LINE, TITLE, NAME = 0.24, 0.3, 0.3  # heights: of a sentence, of a block's title, of a head's
HEADING = 2 * LINE + 0.16
HEADS_A_ROW, MOST_ACROSS = 4, 20.0  # and how wide a row of them may be
RESOLUTION, MOST_PIXELS = 200, 6000  # pixels an inch, of a PNG, and along its longer side
MISSING = "\u25a1"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of a model's heat maps are drawn; layers and heads are counted from 1."""

    kinds: tuple[AttentionKind, ...] = KINDS
    layer: int | None = None  # None: the last one of each kind
    heads: tuple[int, ...] | Literal["all", "mean"] = "all"

    def check(self, model: ModelConfig) -> None:
        """A UsageError where a model has no such layer or head."""
        for kind in self.kinds:
            is_encoder = kind == "encoder"
            n_layers = model.n_encoder_layers if is_encoder else model.n_decoder_layers
            self._check(kind, n_layers, model.n_heads)

    def _check(self, kind: AttentionKind, n_layers: int, n_heads: int) -> None:
        if self.layer is not None and not 1 <= self.layer <= n_layers:
            raise UsageError(
                f"there is no layer {self.layer}: the "
                f"{'encoder' if kind == 'encoder' else 'decoder'} has layers 1 to {n_layers}",
                "choose one of them with --attention-layer",
            )
        heads = self.heads if isinstance(self.heads, tuple) else ()
        if wrong := [head for head in heads if not 1 <= head <= n_heads]:
            raise UsageError(
                f"there is no head {wrong[0]}: every layer has heads 1 to {n_heads}",
                "choose among them with --attention-head, or `mean`",
            )

    def panels(
        self, maps: AttentionMaps, kind: AttentionKind
    ) -> tuple[int, list[tuple[str, Weights]]]:
        """The layer's number, and the name and the weights (rows, columns) of each head."""
        weights: Weights = getattr(maps, kind)
        n_layers, n_heads = weights.shape[:2]
        self._check(kind, n_layers, n_heads)
        layer = n_layers if self.layer is None else self.layer
        shown = weights[layer - 1]
        if self.heads == "mean":
            return layer, [(f"mean of {n_heads} heads", shown.mean(0))]
        heads = range(1, n_heads + 1) if self.heads == "all" else self.heads
        return layer, [(f"head {head}", shown[head - 1]) for head in heads]


def read_kinds(name: str) -> tuple[AttentionKind, ...]:
    """`all`, or one of the three by its name."""
    return KINDS if name == "all" else tuple(kind for kind in KINDS if kind == name)


def read_heads(text: str) -> tuple[int, ...] | Literal["all", "mean"]:
    """`all`, `mean`, or numbers from 1 between commas."""
    if text == "all":
        return "all"
    if text == "mean":
        return "mean"
    if re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        return tuple(map(int, text.split(",")))
    raise UsageError(
        f"`{text}` names no attention heads", "say all, mean, or numbers from 1, such as 1,3"
    )


class AttentionPicture:
    """A file to draw one or a few sentences into: .png, .svg, or .html with all layers and heads"""

    def __init__(self, path: Path, selection: Selection) -> None:
        self.path, self.selection = path, selection
        if path.suffix.lower() not in (".html", ".png", ".svg"):
            raise UsageError(
                f"{path} is neither .html, .png nor .svg",
                "choose the kind of picture by its ending",
            )

    def draw(self, sentences: Sequence[AttentionMaps]) -> None:
        """A UsageError where the selected layer or head is not there; nothing is written then."""
        for kind in self.selection.kinds:
            self.selection.panels(sentences[0], kind)
        suffix = self.path.suffix.lower()
        if suffix == ".html":
            atomic_write(self.path, attention_page(sentences, self.selection))
        else:
            format: Literal["png", "svg"] = "png" if suffix == ".png" else "svg"
            atomic_write(self.path, attention_picture(sentences, self.selection, format))


def attention_page(sentences: Sequence[AttentionMaps], selection: Selection | None = None) -> str:
    """One self-contained page to look through all layers and heads; the selection comes first."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    selection = selection or Selection()
    n_layers = max(getattr(sentences[0], kind).shape[0] for kind in selection.kinds)
    data = {
        "sentences": [maps.to_json() for maps in sentences],
        "kinds": selection.kinds,
        "layer": selection.layer or n_layers,
        "heads": selection.heads,
    }
    pages = Environment(
        loader=PackageLoader("mtrain.delivery"), autoescape=select_autoescape(), auto_reload=False
    )
    template = pages.get_template("attention.html")
    return with_policy(template.render(title="What it pays attention to", data=data))


def attention_picture(
    sentences: Sequence[AttentionMaps],
    selection: Selection | None = None,
    format: Literal["png", "svg"] = "svg",
) -> bytes:
    """The heat maps of one or a few sentences, one below the other, as the bytes of a picture."""
    selection = selection or Selection()
    blocks = [[_Block.of(maps, kind, selection) for kind in selection.kinds] for maps in sentences]
    left = max(block.left for part in blocks for block in part)
    width = max(left + block.width for part in blocks for block in part)
    height = sum(HEADING + sum(block.height for block in part) for part in blocks) + MARGIN
    figure = _figure(width, height)
    top = height - MARGIN / 2
    for maps, part in zip(sentences, blocks, strict=True):
        _write_heading(figure, top, maps)
        top -= HEADING
        for block in part:
            block.draw(figure, left, top)
            top -= block.height
    return _bytes(figure, format)


def _write_heading(figure: Figure, top: float, maps: AttentionMaps) -> None:
    """The sentence and, below it, its translation, each cut to what fits."""
    width, height = figure.get_size_inches()
    for line, pieces in enumerate((maps.source, maps.written)):
        (text,) = printable(["".join(pieces[:-1]).replace(SPACE, " ").strip()])
        text = text if line == 0 else f"\u2192 {text}"
        while _width(text) * 1.3 > width - 2 * MARGIN:
            text = text[: int(len(text) * 0.95) - 1].removesuffix("\u2026") + "\u2026"
        figure.text(
            MARGIN / width,
            (top - (line + 0.5) * LINE) / height,
            text,
            fontsize=FONT_SIZE + 2,
            fontfamily=font_families(text),
            parse_math=False,
            color=INK,
            va="center",
        )


@dataclass(frozen=True, slots=True)
class _Block:
    """Heads of one kind and layer side by side, under one title."""

    kind: AttentionKind
    title: str
    rows: list[str]
    columns: list[str]
    panels: list[tuple[str, Weights]]

    @classmethod
    def of(cls, maps: AttentionMaps, kind: AttentionKind, selection: Selection) -> _Block:
        layer, panels = selection.panels(maps, kind)
        rows = maps.source if kind == "encoder" else maps.written
        columns = maps.read if kind == "decoder" else maps.source
        title = f"{TITLES[kind]}, layer {layer} of {getattr(maps, kind).shape[0]}"
        return cls(kind, title, _labels(rows), _labels(columns), panels)

    @property
    def left(self) -> float:
        """What stands before the first panel: the labels of the rows, and what they are."""
        return MARGIN + CAPTION + _label_width(self.rows)

    @property
    def panel_size(self) -> tuple[float, float]:
        return CELL * len(self.columns), CELL * len(self.rows)

    @property
    def n_across(self) -> int:
        """Heads side by side: four, but fewer of a long sentence."""
        return min(len(self.panels), HEADS_A_ROW, max(1, int(MOST_ACROSS / self.pitch[0])))

    @property
    def pitch(self) -> tuple[float, float]:
        """From one panel to the next: to the right, and down."""
        width, height = self.panel_size
        return width + GAP, NAME + height + _label_width(self.columns) + CAPTION + GAP

    @property
    def width(self) -> float:
        """From the left edge of the first panel to the right edge of the scale's numbers."""
        return max(self.n_across * self.pitch[0] + 0.6, 0.1 * len(self.title))

    @property
    def height(self) -> float:
        return TITLE + -(-len(self.panels) // self.n_across) * self.pitch[1] + GAP

    def draw(self, figure: Figure, left: float, top: float) -> None:
        """Onto a figure: panels from `left`, all from `top` (inches above its lower edge) down."""
        width, height = figure.get_size_inches()
        figure.text(
            MARGIN / width,
            (top - TITLE / 2) / height,
            self.title,
            fontsize=FONT_SIZE + 4,
            fontweight="bold",
            color=INK,
            va="center",
        )
        top -= TITLE + NAME
        for number, (name, weights) in enumerate(self.panels):
            down, across = divmod(number, self.n_across)
            bottom = top - down * self.pitch[1] - self.panel_size[1]
            axes = _axes(figure, left + across * self.pitch[0], bottom, *self.panel_size)
            image = self._draw_panel(axes, name, weights, with_rows=across == 0)
        right = left + self.n_across * self.pitch[0] - GAP / 2
        length = min(self.panel_size[1], 1.5)
        bar = _axes(figure, right, top - length, 0.1, length)
        figure.colorbar(image, cax=bar, ticks=[0, 0.5, 1])
        bar.spines[:].set_visible(False)
        bar.tick_params(labelsize=FONT_SIZE - 1, length=0, colors=INK)

    def _draw_panel(self, axes: Axes, name: str, weights: Weights, with_rows: bool) -> Any:
        n_rows, n_columns = weights.shape
        is_masked = self.kind == "decoder"
        hidden = np.triu(np.ones_like(weights), 1) > 0
        image = axes.pcolormesh(
            np.ma.masked_where(hidden, weights) if is_masked else weights,
            cmap=COLOURS,
            vmin=0,
            vmax=1,
            edgecolors="white",
            linewidth=0.6,
            rasterized=weights.size * len(self.panels) > MOST_CELLS,
        )
        if is_masked:
            _hatch_above_diagonal(axes, n_rows)
        axes.set_xlim(0, n_columns)
        axes.set_ylim(n_rows, 0)
        axes.set_title(name, fontsize=FONT_SIZE + 1, color=INK, pad=5)
        label: dict[str, Any] = {
            "parse_math": False,  # a dollar is a dollar
            "fontsize": FONT_SIZE,
            "fontfamily": font_families("".join(self.rows + self.columns)),
            "color": INK,
        }
        upright: dict[str, Any] = {"rotation": 90, "rotation_mode": "anchor", "ha": "right"}
        axes.set_xticks(
            np.arange(n_columns) + 0.5, self.columns, va="center_baseline", **upright, **label
        )
        axes.set_yticks(
            np.arange(n_rows) + 0.5,
            self.rows if with_rows else [""] * n_rows,
            va="center_baseline",
            **label,
        )
        axes.tick_params(length=0, pad=4)
        self._caption(axes, with_rows)
        for spine in axes.spines.values():
            spine.set_color(FAINT)
            spine.set_linewidth(0.6)
        return image

    def _caption(self, axes: Axes, with_rows: bool) -> None:
        """What rows and columns stand for, beyond their labels."""
        width, height = self.panel_size
        style: dict[str, Any] = {"fontsize": FONT_SIZE, "color": CAPTIONS, "style": "italic"}
        below = -(_label_width(self.columns) + CAPTION / 2) / height
        axes.text(
            0.5,
            below,
            COLUMN_LABELS[self.kind],
            transform=axes.transAxes,
            ha="center",
            va="center",
            **style,
        )
        if with_rows:
            before = -(_label_width(self.rows) + CAPTION / 2) / width
            axes.text(
                before,
                0.5,
                ROW_LABELS[self.kind],
                transform=axes.transAxes,
                ha="center",
                va="center",
                rotation=90,
                **style,
            )


def _labels(pieces: Sequence[str]) -> list[str]:
    """Pieces as they are, but with a space as a line of the height of letters."""
    return printable([piece.replace(SPACE, "_") for piece in pieces])


def _hatch_above_diagonal(axes: Axes, n: int) -> None:
    """The mask: a staircase of what is not written yet, hatched."""
    from matplotlib.patches import Polygon

    corners = [(1.0, 0.0)]
    for i in range(1, n):
        corners += [(float(i), float(i)), (float(i + 1), float(i))]
    corners += [(float(n), 0.0)]
    axes.add_patch(
        Polygon(corners, closed=True, facecolor=PAPER, edgecolor="#c5ccd3", hatch="////", lw=0)
    )
    if n >= 8:
        axes.text(
            n - 0.4,
            0.6,
            "masked",
            ha="right",
            va="top",
            fontsize=FONT_SIZE - 0.5,
            color="#616e7c",
            style="italic",
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
        )


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="white")


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """A part of the figure, all in inches."""
    across, up = figure.get_size_inches()
    axes: Axes = figure.add_axes((left / across, bottom / up, width / across, height / up))
    return axes


def _bytes(figure: Figure, format: Literal["png", "svg"]) -> bytes:
    """The same figure gives the same bytes, and text of an SVG needs no fonts to be seen."""
    from matplotlib import rc_context

    picture = io.BytesIO()
    settings: dict[Any, Any] = {
        "svg.fonttype": "path",
        "svg.hashsalt": "mtrain",
        "hatch.linewidth": 0.5,
    }
    metadata = {"Date": None} if format == "svg" else {"Software": None}
    resolution = min(RESOLUTION, MOST_PIXELS / max(figure.get_size_inches()))
    with rc_context(settings):
        figure.savefig(picture, format=format, dpi=resolution, metadata=metadata)
    return picture.getvalue()


def _label_width(labels: Iterable[str]) -> float:
    return max((_width(label) for label in labels), default=0.0) + 0.08


def _width(text: str) -> float:
    """Of a label, in inches, roughly: ideographs are wide, marks stand above or below letters."""
    marks = sum(unicodedata.category(character) == "Mn" for character in text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return CHARACTER * (len(text) - marks + 0.8 * wide)


# -- quality against speed -------------------------------------------------------------------

OTHER_PENALTIES = "other length penalties"
SYSTEM_COLOURS = ("#0b5394", "#6aa5d8", "#c2410c", "#e8a33d", "#3f7d3f", "#7a4fa3")


def save_speeds(points: Sequence[Point], path: Path) -> None:
    """Draw what `evaluation.sweep` measured: BLEU and chrF2 over sentences a second, as SVG."""
    figure = _figure(10.5, 4.6)
    panels = [_axes(figure, 0.7 + 4.95 * i, 0.85, 4.3, 3.2) for i in range(2)]
    for axes, metric, name in zip(panels, ("bleu", "chrf"), ("BLEU", "chrF2"), strict=True):
        _draw_speeds(axes, points, metric)
        axes.set_ylabel(name, color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i] == OTHER_PENALTIES)
    figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=FONT_SIZE,
    )
    figure.text(
        0.7 / 10.5,
        4.3 / 4.6,
        "Quality and speed on valid, by beam (the numbers): better is up, faster is right",
        fontsize=FONT_SIZE + 2,
        fontweight="bold",
        color=INK,
    )
    atomic_write(path, _bytes(figure, "svg"))


def _draw_speeds(axes: Axes, points: Sequence[Point], metric: str) -> None:
    """A line a system through its beams; other length penalties as small crosses."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    own_penalty = points[0].length_penalty  # the first system is measured with the run's own first
    systems = list(dict.fromkeys(point.system for point in points))
    for colour, system in zip(cycle(SYSTEM_COLOURS), systems, strict=False):
        own = [p for p in points if p.system == system and p.length_penalty == own_penalty]
        others = [p for p in points if p.system == system and p.length_penalty != own_penalty]
        x, y = [p.sentences_per_s for p in own], [getattr(p, metric) for p in own]
        axes.plot(x, y, "o-", color=colour, markersize=4, linewidth=1.2, label=system, zorder=3)
        for point, across, up in zip(own, x, y, strict=True):
            if point.beam in (1, 2, 4, 8):
                axes.annotate(
                    str(point.beam),
                    (across, up),
                    xytext=(0, 5),
                    textcoords="offset points",
                    ha="center",
                    fontsize=FONT_SIZE - 1.5,
                    color=colour,
                )
        axes.plot(
            [p.sentences_per_s for p in others],
            [getattr(p, metric) for p in others],
            "x",
            color=colour,
            alpha=0.45,
            markersize=4,
            label=OTHER_PENALTIES if others else None,
        )
    (chosen,) = (point for point in points if point.recommended)
    axes.plot(
        chosen.sentences_per_s,
        getattr(chosen, metric),
        "o",
        markersize=12,
        fillstyle="none",
        markeredgewidth=1.8,
        color=INK,
        zorder=4,
        label=f"recommended: beam {chosen.beam}, penalty {chosen.length_penalty:g}",
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("sentences/s", color=INK)
    axes.grid(color="#e4e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=FONT_SIZE, colors=INK, length=0, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)


# -- letters of all scripts ------------------------------------------------------------------


def printable(labels: Sequence[str]) -> list[str]:
    """The labels, with an empty box for whatever no installed font can show, and a warning."""
    lacking = {character for character in set("".join(labels)) if not _families_with(character)}
    if not lacking:
        return list(labels)
    _warn_of(" ".join(sorted(lacking)[:5]))
    unseen = re.compile(f"[{re.escape(''.join(sorted(lacking)))}]+")
    return [unseen.sub(MISSING, label) for label in labels]


@cache
def _warn_of(characters: str) -> None:
    """Once for the same ones, however many labels they are in."""
    console.warn(
        f"no installed font shows {characters}: the picture has {MISSING} there; draw an .html, or "
        "install a font that does, such as Noto"
    )


def font_families(text: str) -> list[str]:
    """Installed families that together show a text; matplotlib takes the first that can."""
    families = ["DejaVu Sans"]
    for character in sorted(set(text)):
        able = _families_with(character)
        if able and not set(able) & set(families):
            families.append(able[0])
    return families


@cache
def _families_with(character: str) -> list[str]:
    """Families that have a letter, DejaVu Sans alone where it has it, else Noto's first."""
    found = [name for name, font in _fonts() if font.get_char_index(ord(character))]
    return found[:1] if found[:1] == ["DejaVu Sans"] else found


@cache
def _fonts() -> list[tuple[str, Any]]:
    """The regular faces that are installed: DejaVu Sans, Noto's sans, other sans, the rest."""
    from matplotlib.font_manager import fontManager, get_font

    def rank(name: str) -> tuple[bool, bool, bool, str]:
        return name != "DejaVu Sans", not name.startswith("Noto Sans"), "Sans" not in name, name

    files = {
        entry.name: entry.fname
        for entry in fontManager.ttflist
        if entry.style == "normal"
        and entry.weight in (400, "normal", "regular")
        and not entry.name.startswith("Last Resort")  # has a box for everything
    }
    return [(name, get_font(files[name])) for name in sorted(files, key=rank)]
