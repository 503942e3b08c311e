"""`mtrain eval`: test sets or files in, scores out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtrain import console
from mtrain.commands.options import (
    BeamSize,
    Checkpoint,
    LengthPenalty,
    OfTag,
    OnDevice,
    refuse_without_effect,
)
from mtrain.commands.output import flush, print_columns, print_line
from mtrain.config.literals import DeviceOrAuto
from mtrain.errors import UsageError

if TYPE_CHECKING:
    from mtrain.evaluation.given import GivenFiles
    from mtrain.evaluation.summary import Results

EXAMPLES = (
    "mtrain eval runs/my-model",
    "mtrain eval runs/my-model --split valid --json",
    "mtrain eval runs/my-model --source new.en --reference new.de",
    "mtrain eval runs/my-model --hypothesis theirs.de --reference new.de",
    "mtrain eval runs/my-model --source new.en --reference a.de --reference b.de",
    "mtrain eval runs/my-model --sacrebleu wmt14/full --sacrebleu wmt20",
    "mtrain eval runs/my-model --against runs/baseline",
    "mtrain eval runs/seed1 runs/seed2 runs/seed3",
    "mtrain eval runs/my-model --sweep --adopt",
)

Runs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN", help="Run directories; with several, their mean and spread are shown too."
    ),
]
Splits = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="valid or a test set (default: all test sets)."),
]
Sources = Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Translate this file ...")]
References = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="... and compare with this one; several for one source are several references.",
    ),
]
SacrebleuSets = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Translate a test set of sacreBLEU, such as wmt14/full."),
]
Hypotheses = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Score this translation; with --source, also diagnose it.",
    ),
]
Against = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN2|FILE",
        help="Test the significance of the difference to another run, or to a translation.",
    ),
]
Comet = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Also score by COMET (an extra: mtrain[comet]), such as Unbabel/wmt22-comet-da.",
    ),
]
Sweep = Annotated[
    bool,
    typer.Option(
        "--sweep",
        help="Instead, translate up to 1,000 sentences of valid with beams 1 to 8, several "
        "length penalties, precisions and engines; recommend the fastest of mtrain's own "
        "within 0.3 points of the best BLEU and chrF2. Kept in the run: sweep.json.",
    ),
]
Adopt = Annotated[
    bool, typer.Option("--adopt", help="With --sweep: make the recommendation the default.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def evaluate(
    context: typer.Context,
    runs: Runs,
    split: Splits = None,
    source: Sources = None,
    reference: References = None,
    sacrebleu: SacrebleuSets = None,
    hypothesis: Hypotheses = None,
    against: Against = None,
    comet: Comet = None,
    checkpoint: Checkpoint = None,
    beam_size: BeamSize = None,
    length_penalty: LengthPenalty = None,
    tag: OfTag = None,
    device: OnDevice = "auto",
    sweep: Sweep = False,
    adopt: Adopt = False,
    as_json: AsJson = False,
) -> None:
    """Score runs by BLEU, chrF2 and TER, with 95 % intervals."""
    if sweep or adopt:
        texts = (split, source, reference, sacrebleu, hypothesis, against)
        others = (*texts, beam_size, length_penalty, tag, comet)
        _check_sweep(sweep, len(runs), any(value is not None for value in others))
        _sweep(runs[0], checkpoint, device, adopt, as_json)
        return
    from mtrain.evaluation import evaluate as evaluation

    translates, why = not hypothesis, "translating, not for --hypothesis"
    needs = dict.fromkeys(("checkpoint", "beam_size", "length_penalty", "tag"), (translates, why))
    opens_model = translates or (against is not None and evaluation.is_run(against))
    needs |= {"device": (opens_model, why), "sacrebleu": (translates, why)}
    refuse_without_effect(context, needs)
    files = _files_to_evaluate(split, source or [], reference or [], hypothesis or [])
    if not (files or sacrebleu):
        evaluation.check_baseline(runs, split or [], against)

    def score(run: Path) -> Results:
        if hypothesis:
            return evaluation.evaluate_hypotheses(run, files, comet)
        return evaluation.evaluate_run(
            run,
            split or [],
            files,
            comet,
            sacrebleu or [],
            checkpoint,
            device,
            tag,
            beam_size=beam_size,
            length_penalty=length_penalty,
        )

    results = {str(run): evaluation.compare_with(run, score(run), against, device) for run in runs}
    _show(results, as_json, names_runs=len(runs) > 1)
    if not (as_json or hypothesis):
        flush()  # the message follows the scores
        console.message(f"full analysis: {console.command('mtrain', 'report', *runs)}")


def _show(results: Mapping[str, Results], as_json: bool, names_runs: bool) -> None:
    """Print the results of each run."""
    from mtrain.evaluation import summary

    means = summary.spreads_of_seeds(results)
    if as_json:
        print_line(json.dumps(summary.to_json(results, means), indent=2, ensure_ascii=False))
        return
    for path, found in results.items():
        if names_runs:
            print_line(f"{path}:")
        print_columns(summary.HEADER, summary.score_rows(found))
        for sentence in summary.remarks(found):
            print_line(sentence)
    for sentence in summary.mean_sentences(means):
        print_line(sentence)


def _files_to_evaluate(
    splits: Sequence[str] | None,
    sources: Sequence[Path],
    references: Sequence[Path],
    hypotheses: Sequence[Path],
) -> list[GivenFiles]:
    """The n-th source, hypothesis and reference on the command line belong together.

    A single source or hypothesis gets all references.
    """
    if splits and (sources or references or hypotheses):
        raise UsageError(
            "--split names a test set of the run, and files were given as well",
            "give either --split or files",
        )
    n_wanted = len(hypotheses or sources)
    grouped = [tuple(references)] if n_wanted == 1 and references else [(r,) for r in references]
    if len(grouped) != n_wanted or (hypotheses and len(sources) not in (0, n_wanted)):
        raise UsageError(
            "files are scored in pairs, and one is missing",
            "give --source FILE --reference FILE, or --hypothesis FILE --reference FILE",
        )
    from mtrain.evaluation.given import GivenFiles

    return [
        GivenFiles(same, source, hypothesis)
        for same, source, hypothesis in zip_longest(grouped, sources, hypotheses)
    ]


# -- all ways to decode ----------------------------------------------------------------------


def _check_sweep(is_asked: bool, n_runs: int, has_other_options: bool) -> None:
    if not is_asked:
        raise UsageError("--adopt needs the recommendation of --sweep", "add --sweep")
    if n_runs > 1 or has_other_options:
        raise UsageError(
            "--sweep decodes the valid set of one run in all ways",
            "give one RUN, and no options but --checkpoint, --device, --json and --adopt",
        )


def _sweep(
    run: Path, checkpoint: str | None, device: DeviceOrAuto, adopts: bool, as_json: bool
) -> None:
    from mtrain.evaluation import sweep

    points = sweep.sweep(run, checkpoint, device)
    if as_json:
        print_line(json.dumps([asdict(point) for point in points], indent=2))
    else:
        print_columns(sweep.HEADER, sweep.rows(points))
        flush()  # the message follows the table
        console.message(f"charts: {console.command('mtrain', 'report', run)}")
    if adopts:
        chosen = sweep.adopt(run, points)
        console.message(
            f"from now on {run} translates with beam {chosen.beam}, length penalty "
            f"{chosen.length_penalty:g}, {chosen.precision}"
        )
