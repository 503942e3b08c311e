"""Quality against speed: one checkpoint decoded in many ways, and which one to use.

The valid set (its first 1,000 sentences) is translated with beams 1 to 8 in every engine and
precision that this machine has, and with other length penalties in the run's own precision. Speed
is measured on one translation of all sentences, after a short warm-up, without loading the model.
It holds for this machine at this moment, and for batches, not for one sentence at a time. The
recommendation is our fastest way within `TOLERANCE` points of our best, both in BLEU and in chrF.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from mtrain import console
from mtrain.config.literals import Engine
from mtrain.config.load import dump_config, read_run_config
from mtrain.decoding.engine import Search
from mtrain.decoding.translate import Translator
from mtrain.errors import UsageError
from mtrain.evaluation.metrics import score_all, scoring_of
from mtrain.machine import runtime
from mtrain.run import RunDir, Split
from mtrain.storage import atomic_write, check_writable, write_json

N_SENTENCES = 1000
N_WARM_UP = 64
BEAMS = tuple(range(1, 9))
PENALTIES = (0.0, 0.6, 1.4)  # besides the run's own
TOLERANCE = 0.3  # points of BLEU and of chrF2


@dataclass(frozen=True, slots=True)
class Point:
    """One way to decode, and its results."""

    beam: int
    length_penalty: float
    precision: str  # fp32 or bf16; of CTranslate2, its name of the type: float32, int8, ...
    engine: Engine
    bleu: float = 0.0
    chrf: float = 0.0
    sentences_per_s: float = 0.0
    recommended: bool = False

    @property
    def system(self) -> str:
        return f"{self.engine} {self.precision}"


def sweep(path: str | Path, checkpoint: str | None = None, device: str = "auto") -> list[Point]:
    """Measure all ways on a run's valid set, and write the run's sweep.json."""
    run = RunDir.open(path)
    config = read_run_config(run)
    valid = run.read_split("valid")
    check_writable(run.files)  # before some fifty passes
    first = Translator.from_run(path, checkpoint, device)
    systems = list(_systems(first, path, checkpoint, device))
    ways = {
        precision: _ways(precision == first.engine.precision, config.decode.length_penalty)
        for precision, _ in systems
    }
    n_points = sum(map(len, ways.values()))
    console.message(
        f"translating {min(N_SENTENCES, len(valid.sources)):,} sentences of valid in "
        f"{n_points} ways"
    )
    points: list[Point] = []
    with console.bar(n_points, "decoding", " ways") as bar:
        for precision, open_translator in systems:
            translator = open_translator()
            for beam, penalty in ways[precision]:
                way = Point(beam, penalty, precision, translator.engine.program)
                points.append(_measure(way, translator, valid))
                bar.update(1)
    points = recommend(points)
    write_json(run.sweep, [asdict(point) for point in points])
    return points


def _ways(is_own_precision: bool, own_penalty: float) -> list[tuple[int, float]]:
    """(beam, length penalty): greedy search has no length penalty."""
    others = [p for p in PENALTIES if p != own_penalty] if is_own_precision else []
    return [(beam, own_penalty) for beam in BEAMS] + [
        (beam, penalty) for penalty in others for beam in BEAMS[1:]
    ]


def _systems(
    first: Translator, path: str | Path, checkpoint: str | None, device: str
) -> Iterator[tuple[str, Callable[[], Translator]]]:
    """Name and opener of each precision that is fast on this machine; CTranslate2's last."""
    yield first.engine.precision, lambda: first
    if first.engine.precision == "bf16":
        yield "fp32", lambda: Translator.from_run(path, checkpoint, device, "fp32")
    if find_spec("ctranslate2") is None:
        console.message(
            "CTranslate2 is not installed and left out: pip install 'mtrain[ctranslate2]'"
        )
        return
    types = ("float16", "int8_float16") if first.device.type == "cuda" else ("float32", "int8")
    for quantization in types:
        yield quantization, partial(first.with_ctranslate2, quantization)


def _measure(way: Point, translator: Translator, valid: Split) -> Point:
    """Translate, time and score the sentences."""
    translator = translator.tagged(valid.tag)
    config = translator.config
    search = Search.of(config.decode, beam_size=way.beam, length_penalty=way.length_penalty)
    sources, references = valid.sources[:N_SENTENCES], valid.references[:N_SENTENCES]
    translator.translate_detailed(sources[:N_WARM_UP], search)
    started_at = time.perf_counter()
    translations = translator.translate_detailed(sources, search)
    elapsed_s = time.perf_counter() - started_at
    scores = score_all(
        [translation.text for translation in translations],
        references,
        *scoring_of(config, valid.languages),
        intervals=False,
        metrics=("bleu", "chrf"),
    )
    return replace(
        way,
        bleu=scores["bleu"].score,
        chrf=scores["chrf"].score,
        sentences_per_s=len(sources) / elapsed_s,
    )


def recommend(points: Sequence[Point]) -> list[Point]:
    """The same points, with our fastest good one marked as recommended.

    If none is within `TOLERANCE` of both the best BLEU and the best chrF, the one that falls short
    the least.
    """
    ours = [point for point in points if point.engine == "mtrain"]
    best_bleu, best_chrf = max(p.bleu for p in ours), max(p.chrf for p in ours)

    def shortfall(point: Point) -> float:
        return max(best_bleu - point.bleu, best_chrf - point.chrf)

    allowed = max(TOLERANCE, min(map(shortfall, ours)))
    chosen = max(
        (point for point in ours if shortfall(point) <= allowed),
        key=lambda point: point.sentences_per_s,
    )
    return [replace(point, recommended=point is chosen) for point in points]


def adopt(path: str | Path, points: Sequence[Point]) -> Point:
    """Make the recommended way the run's own: config.yaml is replaced, metrics.jsonl records it.

    A precision that `auto` chooses on this machine stays `auto`: another machine may not have it.
    """
    run = RunDir.open(path)
    if run.is_exported:
        raise UsageError(f"{path} is an exported model, whose settings are fixed", "name its run")
    (chosen,) = (point for point in points if point.recommended)
    config = read_run_config(run)
    auto = runtime.choose_precision("auto", runtime.choose_device("auto"))
    new = {
        "beam_size": chosen.beam,
        "length_penalty": chosen.length_penalty,
        "precision": "auto" if chosen.precision == auto else chosen.precision,
    }
    decode = config.decode.model_copy(update=new)
    atomic_write(run.config, dump_config(config.model_copy(update={"decode": decode})))
    for key, value in new.items():
        if (old := getattr(config.decode, key)) != value:
            run.log({"kind": "config", "key": f"decode.{key}", "old": old, "new": value})
    return chosen


def rows(points: Sequence[Point]) -> list[tuple[str, ...]]:
    """Rows of a table: settings, scores and speed."""
    return [
        (
            point.engine,
            point.precision,
            str(point.beam),
            f"{point.length_penalty:g}",
            f"{point.bleu:.2f}",
            f"{point.chrf:.2f}",
            f"{point.sentences_per_s:,.1f}",
            "recommended" if point.recommended else "",
        )
        for point in points
    ]


HEADER = ("engine", "precision", "beam", "penalty", "BLEU", "chrF2", "sentences/s", "")
