"""The commands: parse, call a stage, print its results, choose the exit code.

Stages are imported inside each command, so that `mtrain --help` is quick and scoring a file needs
no torch. Results go to standard output; everything else goes to standard error, by `console`.
Every way to end is decided in `_outcomes`, and nowhere else.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from enum import StrEnum
from itertools import islice, zip_longest
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, TextIO

import typer
from typer.core import TyperGroup

from mtrain import __version__, console
from mtrain.errors import DataError, MtrainError, OutOfMemoryError, UsageError
from mtrain.run import RunDir, atomic_write, storage_errors

if TYPE_CHECKING:
    from mtrain.config import Config
    from mtrain.delivery.pictures import AttentionPicture
    from mtrain.evaluation.evaluate import GivenFiles

MOST_DRAWN = 10  # sentences in a picture
CLOSED_OUTPUT = 141  # what a shell shows for a program that wrote into a closed pipe


class _Terminated(KeyboardInterrupt):
    """SIGTERM, outside training (which saves first, with handlers of its own)."""


class Commands(TyperGroup):
    """The group of all commands; whatever one of them raises passes through `_outcomes`."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _outcomes():  # `--help` and `--version` print here
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _outcomes():
            return super().invoke(ctx)


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Format(StrEnum):
    """How translations are written."""

    text = "text"
    jsonl = "jsonl"


class Method(StrEnum):
    """How translations are found."""

    beam = "beam"
    diverse = "diverse"
    sample = "sample"
    mbr = "mbr"


class PenaltyForm(StrEnum):
    """What the log-probability of a translation is divided by."""

    power = "power"
    gnmt = "gnmt"


class Precision(StrEnum):
    """The numbers that matrices are multiplied in."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Engine(StrEnum):
    """What searches."""

    mtrain = "mtrain"
    ctranslate2 = "ctranslate2"


class ExportFormat(StrEnum):
    """What a model is exported as."""

    ctranslate2 = "ctranslate2"
    safetensors = "safetensors"


class AttentionKind(StrEnum):
    """Which of the Transformer's three attentions is drawn."""

    all = "all"
    encoder = "encoder"
    decoder = "decoder"
    cross = "cross"


class Quantization(StrEnum):
    """The numbers that CTranslate2 stores and computes with."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    int16 = "int16"
    int8 = "int8"
    int8_float32 = "int8_float32"
    int8_float16 = "int8_float16"
    int8_bfloat16 = "int8_bfloat16"


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every command has its own --help, with examples.",
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")]
RunPath = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A run directory, such as runs/quickstart, or an exported .safetensors file.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value of the config; may be repeated."
    ),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="best (the default), last, ema, avg, avg-best, or step-12000."
    ),
]
BeamSize = Annotated[
    int | None, typer.Option(metavar="N", min=1, max=100, help="Hypotheses kept; 1 is greedy.")
]
LengthPenalty = Annotated[
    float | None,
    typer.Option(
        metavar="P", min=0.0, help="Score = log-probability / length^P; above 1 favours long."
    ),
]
OfTag = Annotated[
    str | None,
    typer.Option(metavar="TAG", help="The sources' `tag` of the config's entries."),
]
OnDevice = Annotated[
    Device, typer.Option(metavar="auto|cpu|cuda", help="auto: CUDA where there is one.")
]
OnEngine = Annotated[
    Engine,
    typer.Option(
        metavar="mtrain|ctranslate2",
        help="What searches; ctranslate2 is an extra: pip install 'mtrain[ctranslate2]'.",
    ),
]
InQuantization = Annotated[
    Quantization | None,
    typer.Option(
        metavar="TYPE",
        help="CTranslate2's numbers: float32, float16, bfloat16, int16, int8, int8_float32, "
        "int8_float16 or int8_bfloat16.",
    ),
]


def main() -> None:
    """The entry point of `mtrain` and of `python -m mtrain`."""
    # Read when torch is loaded. Threads that wait for each other by spinning, as they do by
    # default, slow training down many times as soon as another program wants a core; asleep at
    # once, they wake up too late. This many turns are a fraction of a millisecond.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    app(prog_name="mtrain")


def _show_version(asked: bool) -> None:
    if asked:
        print(f"mtrain {__version__}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version),
    ] = False,
) -> None:
    """Train, evaluate and use Transformer models that translate sentences."""


def _examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


@app.command(
    epilog=_examples(
        "mtrain prepare configs/quickstart.yaml",
        "mtrain prepare my.yaml --set tokenizer.vocab_size=16000",
    )
)
def prepare(
    config: ConfigPath,
    overrides: Overrides = None,
    force: Annotated[
        bool, typer.Option("--force", help="Prepare again, even if nothing has changed.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="At work at a time; default: the cores. Changes no byte."
        ),
    ] = None,
) -> None:
    """Fetch, clean and tokenize the data, unless it is done already.

    What was stopped goes on after the last whole step.
    """
    from mtrain.data.prepare import prepare as prepare_data

    prepare_data(_load(config, overrides), config, force=force, n_processes=processes)


@app.command(
    epilog=_examples(
        "mtrain train configs/quickstart.yaml",
        "mtrain train my.yaml --set train.max_steps=500 --set run=runs/trial",
    )
)
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Keep an earlier run under another name; start anew.")
    ] = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Try the largest batch, say what the run would take, and stop."
        ),
    ] = False,
) -> None:
    """Prepare the data if need be; train, or go on where it stopped.

    Several processes: torchrun --nproc-per-node 2 -m mtrain train CONFIG.
    """
    loaded = _load(config, overrides)
    from mtrain.training import train as training

    if plan:
        training.show_plan(loaded, config)
    else:
        training.train(loaded, config, fresh=fresh)


@app.command(
    epilog=_examples(
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
)
def translate(
    run: RunPath,
    source: Annotated[
        Path | None,
        typer.Argument(metavar="INPUT", help="A sentence a line; - or none: standard input."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="OUTPUT", help="Write here; go on there if stopped before."
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    beam_size: BeamSize = None,
    length_penalty: LengthPenalty = None,
    n_best: Annotated[
        int, typer.Option(metavar="N", min=1, max=100, help="Translations of each line.")
    ] = 1,
    format: Annotated[
        Format, typer.Option(metavar="text|jsonl", help="jsonl: with scores and warnings.")
    ] = Format.text,
    device: OnDevice = Device.auto,
    exact_stop: Annotated[
        bool, typer.Option("--exact-stop", help="Search until nothing could win; slower.")
    ] = False,
    length_penalty_form: Annotated[
        PenaltyForm | None,
        typer.Option(
            "--penalty-form",
            metavar="power|gnmt",
            help="Divide by length^P, or by ((5 + length) / 6)^P as GNMT does.",
        ),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            metavar="NAME",
            help="beam; diverse: beam search whose hypotheses avoid each other's words; sample: "
            "N-BEST random ones; mbr: of SAMPLES random ones, what they agree with most (chrF2).",
        ),
    ] = Method.beam,
    diversity: Annotated[
        float,
        typer.Option(metavar="D", min=0.0, help="For diverse: what a word taken before costs."),
    ] = 0.5,
    samples: Annotated[
        int, typer.Option(metavar="N", min=1, max=1000, help="For mbr: how many are drawn.")
    ] = 32,
    temperature: Annotated[
        float,
        typer.Option(metavar="T", min=0.01, help="For sample and mbr: below 1 is more certain."),
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(metavar="K", min=0, help="Draw from the K likeliest; 0: from all.")
    ] = 0,
    top_p: Annotated[
        float,
        typer.Option(
            metavar="P", min=0.01, max=1.0, help="Draw from the likeliest that sum up to P."
        ),
    ] = 1.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of what is drawn at random.")] = 1,
    prefix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What the translation of each line begins with."),
    ] = None,
    tab_prefix: Annotated[
        bool, typer.Option("--tab-prefix", help="The same, behind a tab in the input line.")
    ] = False,
    companions: Annotated[
        list[Path] | None,
        typer.Option(
            "--with", metavar="RUN2", help="Average the probabilities with this run's; repeatable."
        ),
    ] = None,
    score: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="SOURCE TARGET",
            help="Translate nothing: write the log-probability of each given translation.",
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(metavar="auto|fp32|bf16", help="auto: bf16 where the hardware has it."),
    ] = None,
    tag: OfTag = None,
    engine: OnEngine = Engine.mtrain,
    quantization: InQuantization = None,
    alignment: Annotated[
        bool,
        typer.Option(
            "--alignment",
            help="Add, behind a tab, which source word each word comes from, as 0-0 1-2: read off "
            "the attention head that, on valid, agrees best with IBM Model 1.",
        ),
    ] = False,
    attention: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"Draw what the model looks at, for up to {MOST_DRAWN} sentences: .html with all "
            "layers and heads, or a .png or .svg.",
        ),
    ] = None,
    attention_kind: Annotated[
        AttentionKind,
        typer.Option(
            metavar="KIND",
            help="all, encoder (self-attention), decoder (masked self-attention), or cross "
            "(encoder-decoder).",
        ),
    ] = AttentionKind.all,
    attention_layer: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Counted from 1; the last by default.")
    ] = None,
    attention_head: Annotated[
        str, typer.Option(metavar="HEADS", help="all, mean, or numbers from 1, such as 1,3.")
    ] = "all",
) -> None:
    """Translate a file or standard input, line by line."""
    from mtrain.decoding.alignment import head_of_run
    from mtrain.decoding.attention import maps_of_lines
    from mtrain.decoding.stream import Beside, translate_file, translate_stream
    from mtrain.decoding.translate import Options, Translator

    options = Options(
        beam_size,
        length_penalty,
        n_best,
        exact_stop,
        format.value,
        length_penalty_form.value if length_penalty_form else None,
        method.value,
        diversity,
        samples,
        temperature,
        top_k,
        top_p,
        seed,
        tab_prefix,
    )
    _check_engine(engine, quantization)
    _check_what_to_translate(source, prefix, tab_prefix, score)
    picture = _picture(attention, attention_kind, attention_layer, attention_head)
    source, beside = score or (source, prefix)
    with (
        _open_input(source) as given,
        _open_input(beside) if beside else nullcontext() as others,
    ):
        lines = _few_lines(given) if picture else given
        translator = Translator.from_run(
            run,
            checkpoint,
            device.value,
            precision.value if precision else None,
            companions or (),
        )
        if tag is not None:
            translator = translator.tagged(tag)
        if engine is Engine.ctranslate2:
            translator = translator.with_ctranslate2(quantization)
        second = Beside(others, "target" if score else "prefix") if others else None
        head = head_of_run(RunDir.open(run), translator) if alignment else None
        if output is None:
            translate_stream(translator, lines, _stdout(), options, second, head)
        else:
            translate_file(translator, lines, output, options, second, head)
    if picture and isinstance(lines, io.BytesIO):
        texts = lines.getvalue().decode(errors="replace").split("\n")
        picture.draw(maps_of_lines(translator, texts, options))


@app.command(
    "eval",
    epilog=_examples(
        "mtrain eval runs/my-model",
        "mtrain eval runs/my-model --split valid --json",
        "mtrain eval runs/my-model --source new.en --reference new.de",
        "mtrain eval runs/my-model --hypothesis theirs.de --reference new.de",
        "mtrain eval runs/my-model --sacrebleu wmt14/full --sacrebleu wmt20",
        "mtrain eval runs/my-model --against runs/baseline",
        "mtrain eval runs/seed1 runs/seed2 runs/seed3",
        "mtrain eval runs/my-model --sweep --adopt",
    ),
)
def evaluate(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="A run directory; of several, mean and spread are shown too."
        ),
    ],
    split: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="valid or a test set; without it, all test sets."),
    ] = None,
    source: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Translate this file ...")
    ] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="... and compare with this one; may be repeated."),
    ] = None,
    sacrebleu: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Translate a test set of sacreBLEU, such as wmt14/full."),
    ] = None,
    hypothesis: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Score this translation as it is; with --source, it is diagnosed as well.",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN2|FILE",
            help="Test whether the difference to another run, or to a translation, is chance.",
        ),
    ] = None,
    comet: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Score by COMET too, an extra: such as Unbabel/wmt22-comet-da.",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    beam_size: BeamSize = None,
    length_penalty: LengthPenalty = None,
    tag: OfTag = None,
    device: OnDevice = Device.auto,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep",
            help="Instead, translate up to 1,000 sentences of valid with beams 1 to 8, several "
            "length penalties, precisions and engines; recommend the fastest of mtrain's own "
            "within 0.3 points of the best BLEU and chrF2. Kept in the run: sweep.json and .svg.",
        ),
    ] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="With --sweep: make the recommendation the default.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One object, for machines.")] = False,
) -> None:
    """Score runs by BLEU, chrF2 and TER, with 95 % intervals."""
    from mtrain.evaluation import evaluate as evaluation
    from mtrain.evaluation import summary

    if sweep or adopt:
        chooses = split or source or reference or hypothesis or against or beam_size
        _check_sweep(sweep, len(runs), bool(chooses or comet or length_penalty is not None))
        _sweep(runs[0], checkpoint, device, adopt, as_json)
        return
    if hypothesis and sacrebleu:
        raise UsageError(
            "--sacrebleu names a test set to be translated, --hypothesis is a translation already",
            "give --hypothesis FILE --reference FILE, or --sacrebleu alone",
        )
    files = _files_to_evaluate(split or [], source or [], reference or [], hypothesis or [])
    decoding = evaluation.Decoding(checkpoint, beam_size, length_penalty, device.value, tag)
    results = {}
    for run in runs:
        if hypothesis:
            found = evaluation.evaluate_hypotheses(run, files, comet)
        else:
            found = evaluation.evaluate_run(
                run, split or [], files, decoding, comet, sacrebleu or []
            )
        results[str(run)] = evaluation.compare_with(run, found, against, device.value)
    means = summary.spreads_of_seeds(results)
    if as_json:
        _print(json.dumps(summary.to_json(results, means), indent=2, ensure_ascii=False))
        return
    for path, found in results.items():
        if len(runs) > 1:
            _print(f"{path}:")
        _print_columns(summary.HEADER, summary.score_rows(found))
        for sentence in summary.remarks(found):
            _print(sentence)
    for sentence in summary.mean_sentences(means):
        _print(sentence)
    console.message(f"for all that was found: mtrain report {' '.join(results)}")


@app.command(
    epilog=_examples(
        "mtrain report runs/my-model",
        "mtrain report runs/my-model runs/other -o comparison.html",
        "mtrain report runs/my-model --watch",
        "mtrain report runs/my-model --markdown",
    )
)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN [RUN2 ...]", help="Run directories, shown side by side."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write here; default: report.html (or model_card.md) in the first run.",
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Write a model card of one run instead.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep the page up to date while training goes on.")
    ] = False,
) -> None:
    """Write a page about runs: scores, sentences, training, data."""
    from mtrain.delivery.report import watch_report, write_model_card, write_report

    if markdown and (watch or len(runs) > 1):
        raise UsageError(
            "a model card is about one run, and is written once",
            "give --markdown one run and no --watch",
        )
    if markdown:
        written = write_model_card(runs[0], output)
    elif watch:
        console.message("watching; Ctrl-C ends")
        written = watch_report(runs, output)
    else:
        written = write_report(runs, output)
    _print(f"wrote {written}")


@app.command(
    epilog=_examples(
        "mtrain export runs/my-model --to ctranslate2 -o ct2",
        "mtrain export runs/my-model --to ctranslate2 --quantization int8 -o ct2-int8",
        "mtrain export runs/my-model --to safetensors -o my-model.safetensors",
        "echo 'A dog.' | mtrain translate my-model.safetensors",
    )
)
def export(
    run: RunPath,
    to: Annotated[
        ExportFormat,
        typer.Option(
            metavar="ctranslate2|safetensors",
            help="A directory for CTranslate2 (an extra: mtrain[ctranslate2]), or one file that "
            "stands for the run.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR|FILE", help="Where it is written.")
    ],
    quantization: InQuantization = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Write the model for use elsewhere, checked by translating.

    CTranslate2 translates the first 200 sentences of valid with it; the command fails where that
    loses more than 1 BLEU.
    """
    if to is ExportFormat.safetensors:
        if quantization:
            raise UsageError(
                "--quantization is about CTranslate2, and a .safetensors file keeps all bits",
                "leave it out, or say --to ctranslate2",
            )
        from mtrain.delivery.export import export_safetensors

        n_bytes = export_safetensors(run, output, checkpoint)
        _print(f"wrote {output} ({n_bytes / 1e6:,.1f} MB); next: mtrain translate {output}")
        return
    from mtrain.delivery.export import export_ctranslate2

    check = export_ctranslate2(
        run, output, quantization.value if quantization else None, checkpoint
    )
    if check is None:
        console.message(f"{run} holds no valid set, so the export was not compared with it")
    else:
        _print_columns(("checked", ""), check.rows())
    _print(f"wrote {output}")


@app.command(epilog=_examples("mtrain new my-project", "mtrain new . --from my-corpus"))
def new(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Made when it is not there.")],
    name: Annotated[
        str, typer.Option("--from", metavar="CONFIG", help="The config to start from.")
    ] = "quickstart",
) -> None:
    """Copy a shipped, commented config into a directory."""
    shipped = _shipped_configs()
    if name not in shipped:
        raise UsageError(
            f"there is no shipped config named `{name}`", f"choose one of {', '.join(shipped)}"
        )
    copy = directory / f"{name}.yaml"
    if copy.exists():
        raise UsageError(f"{copy} is there already", "name another directory, or move the file")
    atomic_write(copy, shipped[name].read_bytes())
    schema = shipped[name].with_name("schema.json")  # for editors; each config names it
    atomic_write(directory / schema.name, schema.read_bytes())
    _print(f"wrote {copy}; next: mtrain train {copy}")


def _load(path: Path, overrides: Sequence[str] | None) -> Config:
    from mtrain.config import load_config

    return load_config(path, overrides or ())


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


def _check_engine(engine: Engine, quantization: Quantization | None) -> None:
    if quantization and engine is not Engine.ctranslate2:
        raise UsageError(
            f"--quantization {quantization} was given, but mtrain's own engine computes in floats",
            "add --engine ctranslate2",
        )


def _picture(
    path: Path | None, kind: AttentionKind, layer: int | None, heads: str
) -> AttentionPicture | None:
    """What --attention asks for; None without it."""
    if path is None:
        if kind is not AttentionKind.all or layer is not None or heads != "all":
            raise UsageError(
                "--attention-kind, --attention-layer and --attention-head choose what is drawn, "
                "but nothing is",
                "add --attention FILE.html, .png or .svg",
            )
        return None
    from mtrain.delivery.pictures import AttentionPicture, Selection, read_heads, read_kinds

    return AttentionPicture(path, Selection(read_kinds(kind.value), layer, read_heads(heads)))


def _few_lines(given: BinaryIO) -> io.BytesIO:
    """All lines of an input that is to be drawn; a UsageError where they are too many."""
    lines = list(islice(given, MOST_DRAWN + 1))
    if len(lines) > MOST_DRAWN:
        raise UsageError(
            f"--attention draws at most {MOST_DRAWN} sentences, and the input has more",
            f"give fewer: head -n {MOST_DRAWN}",
        )
    return io.BytesIO(b"".join(lines))


def _shipped_configs() -> dict[str, Path]:
    """Name -> path, in the installed package or, in a checkout, at its top."""
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "quickstart.yaml").is_file():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    raise AssertionError("mtrain was installed without its configs")


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


def _check_sweep(is_asked: bool, n_runs: int, has_other_options: bool) -> None:
    if not is_asked:
        raise UsageError("--adopt takes over what --sweep recommends", "add --sweep")
    if n_runs > 1 or has_other_options:
        raise UsageError(
            "--sweep decodes the valid set of one run in all ways",
            "give one RUN, and no options but --checkpoint, --device, --json and --adopt",
        )


def _sweep(run: Path, checkpoint: str | None, device: Device, adopts: bool, as_json: bool) -> None:
    from mtrain.delivery.pictures import save_speeds
    from mtrain.evaluation import sweep

    points = sweep.sweep(run, checkpoint, device.value)
    picture = RunDir.open(run).sweep.with_suffix(".svg")
    save_speeds(points, picture)
    if as_json:
        _print(json.dumps([asdict(point) for point in points], indent=2))
    else:
        _print_columns(sweep.HEADER, sweep.rows(points))
        console.message(f"drawn in {picture}")
    if adopts:
        chosen = sweep.adopt(run, points)
        console.message(
            f"from now on {run} translates with beam {chosen.beam}, length penalty "
            f"{chosen.length_penalty:g}, {chosen.precision}"
        )


def _files_to_evaluate(
    splits: Sequence[str],
    sources: Sequence[Path],
    references: Sequence[Path],
    hypotheses: Sequence[Path],
) -> list[GivenFiles]:
    """The n-th source, hypothesis and reference that were given belong together."""
    from mtrain.evaluation.evaluate import GivenFiles

    if splits and (sources or references or hypotheses):
        raise UsageError(
            "--split names a test set of the run, and files were given as well",
            "give either --split or files",
        )
    n_wanted = len(hypotheses or sources)
    if len(references) != n_wanted or (hypotheses and len(sources) not in (0, n_wanted)):
        raise UsageError(
            "files are scored in pairs, and one is missing",
            "give --source FILE --reference FILE, or --hypothesis FILE --reference FILE",
        )
    return [
        GivenFiles(reference, source, hypothesis)
        for reference, source, hypothesis in zip_longest(references, sources, hypotheses)
    ]


# -- output and the ways to end --------------------------------------------------------------


def _stdout() -> TextIO:
    """Standard output as UTF-8 with plain newlines, whatever the locale says."""
    if sys.stdout is None:  # `>&-`
        raise BrokenPipeError(errno.EPIPE, "standard output is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    return sys.stdout


def _print(text: str) -> None:
    _stdout().write(text + "\n")


def _print_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        _print("  ".join(cells).rstrip())


@contextmanager
def _outcomes() -> Iterator[None]:
    """Give every way to end its message and its exit code; defects of ours pass with a trace."""
    try:
        with _sigterm_raises(), _known_failures():
            yield
            if sys.stdout is not None:
                sys.stdout.flush()
    except MtrainError as error:
        console.error(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:
        number = signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT
        console.message(f"stopped by {number.name}")
        sys.exit(128 + number)
    except BrokenPipeError:
        _discard_output()
        sys.exit(CLOSED_OUTPUT)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, so that half-written files are cleared away."""
    if threading.current_thread() is not threading.main_thread():  # may not set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _known_failures() -> Iterator[None]:
    """What no stage can foresee, in our words."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemoryError("out of memory", "use smaller batches or a smaller beam") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            with storage_errors(Path(error.filename or "the output")):
                raise
        raise


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _discard_output() -> None:
    """Nobody reads any more: let what is buffered go nowhere when Python flushes it at exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
