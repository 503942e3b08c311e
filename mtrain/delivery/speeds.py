"""The chapter of the report about quality and speed: what `eval --sweep` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtrain.delivery.curves import Series, speed_chart
from mtrain.delivery.facts import RunFacts


@dataclass(frozen=True)
class SpeedRow:
    """One way of decoding, as text."""

    run: int
    name: str
    bleu: str
    chrf: str
    speed: str
    is_recommended: bool


@dataclass(frozen=True)
class SpeedChapter:
    """All ways, the recommended ones among them, and a picture of those with usual penalties."""

    rows: list[SpeedRow]
    names: list[str]  # of the series in the picture, in the order of their colours
    svg: str  # empty where nothing was measured

    @property
    def recommended(self) -> list[SpeedRow]:
        """At most one a run."""
        return [row for row in self.rows if row.is_recommended]


def speed_chapter(runs: Sequence[RunFacts]) -> SpeedChapter:
    """What the runs hold of it."""
    rows: list[SpeedRow] = []
    series: dict[str, Series] = {}
    for number, run in enumerate(runs):
        for point in run.run.read_sweep():
            rows.append(_row(number, point))
            if point["length_penalty"] == run.config.decode.length_penalty:
                system = f"{point['engine']} {point['precision']}"
                name = f"{run.label}: {system}" if len(runs) > 1 else system
                series.setdefault(name, []).append(
                    (point["sentences_per_s"], point["bleu"], point["beam"], point["recommended"])
                )
    svg = speed_chart("Quality and speed", list(series.values())) if series else ""
    return SpeedChapter(rows, list(series), svg)


def _row(run: int, point: Mapping[str, Any]) -> SpeedRow:
    return SpeedRow(
        run,
        f"beam {point['beam']}, length penalty {point['length_penalty']}, "
        f"{point['engine']} {point['precision']}",
        f"{point['bleu']:.2f}",
        f"{point['chrf']:.2f}",
        f"{point['sentences_per_s']:,.1f}",
        point["recommended"],
    )
