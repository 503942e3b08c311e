"""`mtrain translate`: lines in, translations out; or scores; optionally a picture of attention."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import typer

from mtrain import console
from mtrain.commands.options import (
    BeamSize,
    Checkpoint,
    Command,
    Force,
    InQuantization,
    LengthPenalty,
    Needs,
    OfTag,
    OnDevice,
    RunPath,
    refuse_without_effect,
)
from mtrain.commands.output import check_output, files_of_run, stdout
from mtrain.config import literals
from mtrain.errors import DataError, UsageError
from mtrain.run import RunDir

if TYPE_CHECKING:
    from mtrain.decoding.engine import Search
    from mtrain.decoding.stream import SecondFile
    from mtrain.report.attention import Selection

EXAMPLES = (
    "echo 'A dog.' | mtrain translate runs/my-model",
    "mtrain translate runs/my-model input.txt -o output.txt",
    "mtrain translate runs/my-model input.txt --n-best 5 --format jsonl",
    "mtrain translate runs/my-model input.txt --method mbr --samples 50",
    "mtrain translate runs/my-model input.txt --prefix beginnings.txt",
    "mtrain translate runs/my-model input.txt --with runs/other --with runs/third",
    "mtrain translate runs/my-model --score source.txt target.txt",
    "mtrain translate runs/my-model input.txt --alignment",
    "mtrain translate runs/my-model --score source.txt target.txt --alignment",
    "echo 'A dog.' | mtrain translate runs/my-model --attention heads.html",
)
MOST_DRAWN = 10  # sentences in a picture

# -- options ---------------------------------------------------------------------------------

Source = Annotated[
    Path | None,
    typer.Argument(
        metavar="INPUT", help="A text file, one sentence per line; default or -: standard input."
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", metavar="OUTPUT", help="Write to this file; resumes if interrupted."
    ),
]
Format = Annotated[
    literals.Format, typer.Option(metavar="text|jsonl", help="jsonl: with scores and warnings.")
]
Prefix = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Starts of the translations, one per line."),
]
ScoredFiles = Annotated[
    tuple[Path, Path] | None,
    typer.Option(
        metavar="SOURCE TARGET",
        help="Instead of translating, write the log-probability of each given translation.",
    ),
]
Method = Annotated[
    literals.Method,
    typer.Option(
        metavar="NAME",
        help="beam; diverse: beam search for hypotheses that differ; sample: random translations; "
        "mbr: the random translations that agree most with the others (by chrF2).",
    ),
]
NBest = Annotated[int, typer.Option(metavar="N", min=1, max=100, help="Translations per line.")]
PenaltyForm = Annotated[
    literals.PenaltyForm | None,
    typer.Option(
        "--penalty-form",
        metavar="power|gnmt",
        help="Divide by length^P, or by ((5 + length) / 6)^P as GNMT does.",
    ),
]
ExactStop = Annotated[
    bool, typer.Option("--exact-stop", help="Search until no hypothesis could win; slower.")
]
Diversity = Annotated[
    float,
    typer.Option(
        metavar="D",
        min=0.0,
        help="With --method diverse: penalty for a token that another hypothesis has just chosen.",
    ),
]
Samples = Annotated[
    int, typer.Option(metavar="N", min=1, max=1000, help="With --method mbr: number of samples.")
]
Temperature = Annotated[
    float, typer.Option(metavar="T", min=0.01, help="Below 1, likely tokens become likelier.")
]
TopK = Annotated[
    int, typer.Option(metavar="K", min=0, help="Draw from the K likeliest tokens; 0: from all.")
]
TopP = Annotated[
    float,
    typer.Option(
        metavar="P", min=0.01, max=1.0, help="Draw from the likeliest tokens that sum up to P."
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Random seed.")]
Companions = Annotated[
    list[Path] | None,
    typer.Option("--with", metavar="RUN2", help="Ensemble with another run; may be repeated."),
]
OnEngine = Annotated[
    literals.Engine,
    typer.Option(
        metavar="mtrain|ctranslate2",
        help="Search engine; ctranslate2 is an extra: pip install 'mtrain[ctranslate2]'.",
    ),
]
Precision = Annotated[
    literals.PrecisionOrAuto | None,
    typer.Option(metavar="auto|fp32|bf16", help="auto: bf16 if the hardware supports it."),
]
Alignment = Annotated[
    bool,
    typer.Option(
        "--alignment",
        help="Append, after a tab, links from source to target words, such as 0-0 1-2: read off "
        "the attention head that agrees best with IBM Model 1 on valid.",
    ),
]
AllOrOneKind = Literal["all", literals.AttentionKind]
PictureFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"Draw the attention of up to {MOST_DRAWN} sentences: .html with all layers and "
        "heads, or .png or .svg.",
    ),
]
KindsDrawn = Annotated[
    AllOrOneKind,
    typer.Option(
        metavar="KIND",
        help="all, encoder (self-attention), decoder (masked self-attention), or cross "
        "(encoder-decoder).",
    ),
]
LayerDrawn = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Counted from 1; by default the last.")
]
HeadsDrawn = Annotated[
    str, typer.Option(metavar="HEADS", help="all, mean, or numbers from 1, such as 1,3.")
]

SEARCH, SAMPLING = "Search", "Sampling (with --method sample or mbr)"
GROUPS = {  # of parameters in the help
    "Arguments": ("run", "source"),
    "Input and output": ("output", "force", "format", "prefix", "score"),
    SEARCH: (
        *("beam_size", "length_penalty", "length_penalty_form", "n_best", "exact_stop"),
        *("method", "diversity", "samples"),
    ),
    SAMPLING: ("temperature", "top_k", "top_p", "seed"),
    "Alignment and attention": (
        *("alignment", "attention", "attention_kind", "attention_layer", "attention_head"),
    ),
    "Model and device": (
        *("checkpoint", "companions", "tag", "device", "precision", "engine", "quantization"),
    ),
    "Help": ("help",),
}


class GroupedOptions(Command):
    """The command whose help shows the groups above."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        parameters = {parameter.name: parameter for parameter in self.get_params(ctx)}
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([parameters[name].get_help_record(ctx) for name in names])


# -- the command -----------------------------------------------------------------------------


def translate(
    context: typer.Context,
    run: RunPath,
    source: Source = None,
    output: Output = None,
    force: Force = False,
    format: Format = "text",
    prefix: Prefix = None,
    score: ScoredFiles = None,
    beam_size: BeamSize = None,
    length_penalty: LengthPenalty = None,
    length_penalty_form: PenaltyForm = None,
    n_best: NBest = 1,
    exact_stop: ExactStop = False,
    method: Method = "beam",
    diversity: Diversity = 0.5,
    samples: Samples = 32,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 1,
    alignment: Alignment = False,
    attention: PictureFile = None,
    attention_kind: KindsDrawn = "all",
    attention_layer: LayerDrawn = None,
    attention_head: HeadsDrawn = "all",
    checkpoint: Checkpoint = None,
    companions: Companions = None,
    tag: OfTag = None,
    device: OnDevice = "auto",
    precision: Precision = None,
    engine: OnEngine = "mtrain",
    quantization: InQuantization = None,
) -> None:
    """Translate a file or standard input, line by line."""
    refuse_without_effect(context, _needs(context.params))
    _check_inputs(source, prefix, score)
    drawn = attention and _drawing(run, attention, attention_kind, attention_layer, attention_head)
    read = *(score or (source or Path("-"), prefix)), *(companions or ())
    _check_files(output, attention, force, run, *read)
    search = _search(context, run)
    from mtrain.decoding.alignment import head_of_run
    from mtrain.decoding.attention import maps_of_lines
    from mtrain.decoding.stream import Job
    from mtrain.decoding.translate import Translator

    with _open_inputs(source, prefix, score, is_drawn=drawn is not None) as (lines, second):
        translator = Translator.from_run(run, checkpoint, device, precision, companions or ())
        translator = translator.tagged(tag)
        if engine == "ctranslate2":
            translator = translator.with_ctranslate2(quantization)
        head = head_of_run(RunDir.open(run), translator) if alignment else None
        job = Job(translator, lines, search, second, head, format)
        job.to_stream(stdout()) if output is None else job.to_file(output)
    if attention and drawn and isinstance(lines, io.BytesIO):
        from mtrain.report.attention import draw_attention

        texts = lines.getvalue().decode(errors="replace").split("\n")
        draw_attention(attention, maps_of_lines(translator, texts, search), drawn)


def _search(context: typer.Context, run: Path) -> Search:
    """The search of a run, changed by the options of the same names."""
    from mtrain.config.load import read_run_config
    from mtrain.decoding.engine import Search

    changes = {field.name: context.params[field.name] for field in fields(Search)}
    return Search.of(read_run_config(RunDir.open(run)).decode, **changes)


# -- options that go together ----------------------------------------------------------------


def _needs(given: Mapping[str, Any]) -> Needs:
    """The options that have no effect without others; see `options.refuse_without_effect`."""
    method, engine, attention = given["method"], given["engine"], given["attention"]
    drawing = ("attention_kind", "attention_layer", "attention_head")
    rules = [
        (["exact_stop"], method == "beam", "--method beam"),
        (["diversity"], method == "diverse", "--method diverse"),
        (["samples"], method == "mbr", "--method mbr"),
        (["beam_size"], method in ("beam", "diverse"), "--method beam or diverse"),
        (GROUPS[SAMPLING], method in ("sample", "mbr"), "--method sample or mbr"),
        (["quantization"], engine == "ctranslate2", "--engine ctranslate2"),
        (["precision", "prefix"], engine == "mtrain", "--engine mtrain"),
        (drawing, attention is not None, "--attention FILE.html, .png or .svg"),
        (["force"], bool(given["output"] or attention), "-o OUTPUT or --attention FILE"),
    ]
    if given["score"]:
        others = ("engine", "quantization", "attention", *drawing)
        translating = {*GROUPS[SEARCH], *GROUPS[SAMPLING], *others}
        if given["format"] == "jsonl":  # with scores divided by the length
            translating -= {"length_penalty", "length_penalty_form"}
        rules.append((sorted(translating), False, "translating, not for --score"))
    return {name: (has_effect, what) for names, has_effect, what in rules for name in names}


def _check_files(
    output: Path | None, attention: Path | None, force: bool, run: Path, *read: Path | None
) -> None:
    """A UsageError if an output is a file that is read, or one of another kind."""
    if output is None and attention is None:
        return
    if output is not None and attention is not None and output.absolute() == attention.absolute():
        raise UsageError(f"-o and --attention both name {output}", "name two files")
    named = [Path("/dev/stdin") if str(path) == "-" else path for path in read if path is not None]
    inputs = [*files_of_run(run), *named]
    if output is not None:
        check_output(output, "text", inputs, force)
    if attention is not None:
        is_page = attention.suffix.lower() == ".html"
        check_output(attention, "a web page" if is_page else "a picture", inputs, force)


def _check_inputs(
    source: Path | None, prefix: Path | None, score: tuple[Path, Path] | None
) -> None:
    """A UsageError for inputs that exclude each other."""
    if score and (source or prefix):
        raise UsageError(
            "--score names the two files to be scored, and an input or a prefix was given as well",
            "give either --score SOURCE TARGET or an input to translate",
        )
    if str(prefix) == "-" or (score and "-" in map(str, score)):
        raise UsageError("`-` cannot be read together with another file", "name a file")


def _drawing(run: Path, path: Path, kind: AllOrOneKind, layer: int | None, heads: str) -> Selection:
    """What --attention asks for; a UsageError if the model has no such layer or head."""
    from mtrain.config.load import read_run_config
    from mtrain.report.attention import KINDS, Selection, check_picture, read_heads

    check_picture(path)
    selection = Selection(KINDS if kind == "all" else (kind,), layer, read_heads(heads))
    selection.check(read_run_config(RunDir.open(run)).model)
    return selection


# -- input -----------------------------------------------------------------------------------


@contextmanager
def _open_inputs(
    source: Path | None, prefix: Path | None, score: tuple[Path, Path] | None, is_drawn: bool
) -> Iterator[tuple[BinaryIO, SecondFile | None]]:
    """The input, in memory if it is to be drawn, and the prefixes or the targets to be scored."""
    from mtrain.decoding.stream import SecondFile

    first, second = score or (source, prefix)
    with _open_input(first) as lines, _open_input(second) if second else nullcontext() as others:
        beside = SecondFile(others, "target" if score else "prefix") if others else None
        yield _few_lines(lines) if is_drawn else lines, beside


def _open_input(path: Path | None) -> AbstractContextManager[BinaryIO]:
    """The file, or standard input for `-` or no file."""
    if path is not None and str(path) != "-":
        try:
            return open(path, "rb")
        except OSError as error:
            reason = (error.strerror or "unknown reason").lower()
            raise DataError(f"cannot read {path}: {reason}", "name a text file, or -") from error
    if sys.stdin is None:  # `<&-`
        raise UsageError("standard input is closed", "name a file to translate")
    if sys.stdin.isatty():
        console.message("type one sentence per line; Ctrl-D ends")
    return nullcontext(sys.stdin.buffer)


def _few_lines(given: BinaryIO) -> io.BytesIO:
    """All lines of an input to be drawn; a UsageError if they are too many."""
    from mtrain.data.lines import limited_lines

    lines = list(islice(limited_lines(given), MOST_DRAWN + 1))
    if len(lines) > MOST_DRAWN:
        raise UsageError(
            f"--attention draws at most {MOST_DRAWN} sentences, and the input has more",
            f"give fewer: head -n {MOST_DRAWN}",
        )
    return io.BytesIO(b"".join(lines))
