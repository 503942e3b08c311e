"""`mtrain translate`: lines in, their translations out; or their scores, or a picture as well."""

from __future__ import annotations

import io
import sys
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import typer

from mtrain import console
from mtrain.commands.options import (
    BeamSize,
    Checkpoint,
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
    from mtrain.report.attention import AttentionPicture

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

# -- what is read and written ----------------------------------------------------------------

Source = Annotated[
    Path | None,
    typer.Argument(metavar="INPUT", help="A sentence a line; - or none: standard input."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", metavar="OUTPUT", help="Write here; go on there if stopped before."
    ),
]
NBest = Annotated[int, typer.Option(metavar="N", min=1, max=100, help="Translations of each line.")]
Format = Annotated[
    literals.Format, typer.Option(metavar="text|jsonl", help="jsonl: with scores and warnings.")
]
Prefix = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="What the translation of each line begins with."),
]
TabPrefix = Annotated[
    bool, typer.Option("--tab-prefix", help="The same, behind a tab in the input line.")
]
ScoredFiles = Annotated[
    tuple[Path, Path] | None,
    typer.Option(
        metavar="SOURCE TARGET",
        help="Translate nothing: write the log-probability of each given translation.",
    ),
]
Alignment = Annotated[
    bool,
    typer.Option(
        "--alignment",
        help="Add, behind a tab, which source word each word comes from, as 0-0 1-2: read off "
        "the attention head that, on valid, agrees best with IBM Model 1.",
    ),
]

# -- how it is searched ----------------------------------------------------------------------

Companions = Annotated[
    list[Path] | None,
    typer.Option(
        "--with", metavar="RUN2", help="Average the probabilities with this run's; repeatable."
    ),
]
OnEngine = Annotated[
    literals.Engine,
    typer.Option(
        metavar="mtrain|ctranslate2",
        help="What searches; ctranslate2 is an extra: pip install 'mtrain[ctranslate2]'.",
    ),
]
Precision = Annotated[
    literals.PrecisionOrAuto | None,
    typer.Option(metavar="auto|fp32|bf16", help="auto: bf16 where the hardware has it."),
]
PenaltyForm = Annotated[
    literals.PenaltyForm | None,
    typer.Option(
        "--penalty-form",
        metavar="power|gnmt",
        help="Divide by length^P, or by ((5 + length) / 6)^P as GNMT does.",
    ),
]
ExactStop = Annotated[
    bool, typer.Option("--exact-stop", help="Search until nothing could win; slower.")
]
Method = Annotated[
    literals.Method,
    typer.Option(
        metavar="NAME",
        help="beam; diverse: beam search whose hypotheses avoid each other's words; sample: "
        "N-BEST random ones; mbr: of SAMPLES random ones, what they agree with most (chrF2).",
    ),
]
Diversity = Annotated[
    float,
    typer.Option(metavar="D", min=0.0, help="For diverse: what a word taken before costs."),
]
Samples = Annotated[
    int, typer.Option(metavar="N", min=1, max=1000, help="For mbr: how many are drawn.")
]
Temperature = Annotated[
    float,
    typer.Option(metavar="T", min=0.01, help="For sample and mbr: below 1 is more certain."),
]
TopK = Annotated[
    int, typer.Option(metavar="K", min=0, help="Draw from the K likeliest; 0: from all.")
]
TopP = Annotated[
    float,
    typer.Option(metavar="P", min=0.01, max=1.0, help="Draw from the likeliest that sum up to P."),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Of what is drawn at random.")]

# -- what is drawn ---------------------------------------------------------------------------

AllOrOneKind = Literal["all", literals.AttentionKind]
PictureFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"Draw what the model looks at, for up to {MOST_DRAWN} sentences: .html with all "
        "layers and heads, or a .png or .svg.",
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
    int | None, typer.Option(metavar="N", min=1, help="Counted from 1; the last by default.")
]
HeadsDrawn = Annotated[
    str, typer.Option(metavar="HEADS", help="all, mean, or numbers from 1, such as 1,3.")
]


def translate(
    context: typer.Context,
    run: RunPath,
    source: Source = None,
    output: Output = None,
    checkpoint: Checkpoint = None,
    beam_size: BeamSize = None,
    length_penalty: LengthPenalty = None,
    n_best: NBest = 1,
    format: Format = "text",
    device: OnDevice = "auto",
    exact_stop: ExactStop = False,
    length_penalty_form: PenaltyForm = None,
    method: Method = "beam",
    diversity: Diversity = 0.5,
    samples: Samples = 32,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 1,
    prefix: Prefix = None,
    tab_prefix: TabPrefix = False,
    companions: Companions = None,
    score: ScoredFiles = None,
    precision: Precision = None,
    tag: OfTag = None,
    engine: OnEngine = "mtrain",
    quantization: InQuantization = None,
    alignment: Alignment = False,
    attention: PictureFile = None,
    attention_kind: KindsDrawn = "all",
    attention_layer: LayerDrawn = None,
    attention_head: HeadsDrawn = "all",
    force: Force = False,
) -> None:
    """Translate a file or standard input, line by line."""
    refuse_without_effect(context, _needs(method, engine, score, attention, output))
    _check_what_to_translate(source, prefix, tab_prefix, score)
    picture = _picture(run, attention, attention_kind, attention_layer, attention_head)
    read = [*files_of_run(run), *(companions or ()), *(score or (source, prefix))]
    for path, kind in ((output, "text"), (attention, _kind_of_picture(attention))):
        if path is not None:
            check_output(path, kind, [each for each in read if each is not None], force)
    from mtrain.decoding.alignment import head_of_run
    from mtrain.decoding.attention import maps_of_lines
    from mtrain.decoding.stream import Beside, translate_file, translate_stream
    from mtrain.decoding.translate import Options, Translator

    options = Options(
        beam_size=beam_size,
        length_penalty=length_penalty,
        n_best=n_best,
        exact_stop=exact_stop,
        format=format,
        length_penalty_form=length_penalty_form,
        method=method,
        diversity=diversity,
        samples=samples,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        tab_prefix=tab_prefix,
    )
    source, beside = score or (source, prefix)
    with (
        _open_input(source) as given,
        _open_input(beside) if beside else nullcontext() as others,
    ):
        lines = _few_lines(given) if picture else given
        translator = Translator.from_run(run, checkpoint, device, precision, companions or ())
        if tag is not None:
            translator = translator.tagged(tag)
        if engine == "ctranslate2":
            translator = translator.with_ctranslate2(quantization)
        second = Beside(others, "target" if score else "prefix") if others else None
        head = head_of_run(RunDir.open(run), translator) if alignment else None
        if output is None:
            translate_stream(translator, lines, stdout(), options, second, head)
        else:
            translate_file(translator, lines, output, options, second, head)
    if picture and isinstance(lines, io.BytesIO):
        texts = lines.getvalue().decode(errors="replace").split("\n")
        picture.draw(maps_of_lines(translator, texts, options))


# -- options that go together ----------------------------------------------------------------


def _needs(
    method: literals.Method,
    engine: literals.Engine,
    score: tuple[Path, Path] | None,
    attention: Path | None,
    output: Path | None,
) -> Needs:
    """The options that do nothing without others; see `options.refuse_without_effect`."""
    draws, searches = method in ("sample", "mbr"), method in ("beam", "diverse")
    search = ("beam_size", "length_penalty", "length_penalty_form", "n_best", "method", "engine")
    needs = {
        "exact_stop": (method == "beam", "--method beam"),
        "diversity": (method == "diverse", "--method diverse"),
        "samples": (method == "mbr", "--method mbr"),
        **dict.fromkeys(
            ("temperature", "top_k", "top_p", "seed"), (draws, "--method sample or mbr")
        ),
        "beam_size": (searches, "--method beam or diverse"),
        "quantization": (engine == "ctranslate2", "--engine ctranslate2"),
        "precision": (engine == "mtrain", "--engine mtrain"),
        "force": (output is not None or attention is not None, "-o OUTPUT or --attention FILE"),
        **dict.fromkeys(
            ("attention_kind", "attention_layer", "attention_head"),
            (attention is not None, "--attention FILE.html, .png or .svg"),
        ),
    }
    if score:
        drawing = ("attention", "attention_kind", "attention_layer", "attention_head")
        of_search = (*search, *drawing, "exact_stop", "diversity", "samples", "quantization")
        translating = (False, "translating, not for --score")
        needs |= dict.fromkeys((*of_search, "temperature", "top_k", "top_p", "seed"), translating)
    return needs


def _kind_of_picture(path: Path | None) -> str:
    return "a web page" if path is not None and path.suffix.lower() == ".html" else "a picture"


def _check_what_to_translate(
    source: Path | None, prefix: Path | None, tab_prefix: bool, score: tuple[Path, Path] | None
) -> None:
    """What goes together; the second file is read beside the first, so it is none of the same."""
    if score and (source or prefix or tab_prefix):
        raise UsageError(
            "--score names two files whose lines are scored as they are, and an input or a prefix "
            "was given as well",
            "give either --score SOURCE TARGET or what to translate",
        )
    if prefix and tab_prefix:
        raise UsageError(
            "--prefix and --tab-prefix both say what translations begin with", "give one of them"
        )
    if str(prefix) == "-" or (score and "-" in map(str, score)):
        raise UsageError("`-` cannot be read beside another file", "name a file")


def _picture(
    run: Path, path: Path | None, kind: AllOrOneKind, layer: int | None, heads: str
) -> AttentionPicture | None:
    """What --attention asks for; None without it. A UsageError where the model has none such."""
    if path is None:
        return None
    from mtrain.config.load import read_run_config
    from mtrain.report.attention import KINDS, AttentionPicture, Selection, read_heads

    selection = Selection(KINDS if kind == "all" else (kind,), layer, read_heads(heads))
    selection.check(read_run_config(RunDir.open(run)).model)
    return AttentionPicture(path, selection)


# -- input -----------------------------------------------------------------------------------


def _open_input(path: Path | None) -> AbstractContextManager[BinaryIO]:
    """The file, or standard input for `-` or none at all (which stays open)."""
    if path is not None and str(path) != "-":
        try:
            return open(path, "rb")
        except OSError as error:
            reason = (error.strerror or "unknown reason").lower()
            raise DataError(f"cannot read {path}: {reason}", "name a text file, or -") from error
    if sys.stdin is None:  # `<&-`
        raise UsageError("standard input is closed", "name a file to translate")
    if sys.stdin.isatty():
        console.message("type a sentence a line; Ctrl-D ends")
    return nullcontext(sys.stdin.buffer)


def _few_lines(given: BinaryIO) -> io.BytesIO:
    """All lines of an input that is to be drawn; a UsageError where they are too many."""
    from mtrain.data.lines import limited_lines

    lines = list(islice(limited_lines(given), MOST_DRAWN + 1))
    if len(lines) > MOST_DRAWN:
        raise UsageError(
            f"--attention draws at most {MOST_DRAWN} sentences, and the input has more",
            f"give fewer: head -n {MOST_DRAWN}",
        )
    return io.BytesIO(b"".join(lines))
