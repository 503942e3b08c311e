"""Time decoding: mtrain against other engines, on the same weights, in alternating runs.

    python scripts/bench_translate.py RUN --split test_2016_flickr
    python scripts/bench_translate.py --base
    python scripts/bench_translate.py RUN --latency
    python scripts/bench_translate.py RUN --memory 1000000
    python scripts/bench_translate.py RUN --quality
    python scripts/bench_translate.py RUN --profile

The first form translates a split of a run, with the run's own weights converted to CTranslate2.
The second builds a model of random weights (`--base`, `--small`) and holds every output at 30
tokens, so that all engines do the same work; there, transformers' Marian of the same sizes takes
part when it is installed. `--latency` gives one sentence at a time, `--memory` a file of so many
lines through the command line while its memory is watched, `--quality` the BLEU of a split in every
way of computing the search, tested against the first, `--profile` the kernels of a pass.

Every engine runs in a process of its own and loads before the clock starts. In each round each
engine translates everything once, one after the other; the table gives medians over the rounds, and
the ratio to CTranslate2 in float32 (or the first engine) within each round. Tokens are target
tokens with EOS.

mtrain is timed from text to text; the others from pieces to pieces, which takes a little off their
time. CTranslate2 has one thread a worker and as many workers as threads, its fastest setting on a
CPU; the batch size that is fastest among --ct2-batches is found in a warm-up of its own. Its
search stops when K hypotheses are finished, as ours does (ours goes on while a live one is better);
its maximum length is ours for the longest sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from machine import machine

FORCED_LENGTH = 30  # tokens, EOS included
# Of a preset: on a CPU three rounds of all engines take two minutes or so, on a GPU seconds.
FORCED_SENTENCES = {"cpu": {"small": 256, "base": 64}, "cuda": {"small": 4096, "base": 4096}}
# Precision, whether the search goes on until none could win, and lines at a time.
WAYS = [
    ("bf16", False, 10_000),
    ("bf16", True, 10_000),
    ("fp32", False, 10_000),
    ("fp32", True, 10_000),
    ("fp32", False, 1),
    ("bf16", False, 1),
]
ENGINES = ["mtrain", "mtrain-fp32", "ctranslate2-float32", "ctranslate2-int8"]


@dataclass(frozen=True)
class Setting:
    """What is measured; the same for all engines."""

    run: str | None
    preset: str | None  # of a model with random weights
    vocab_size: int
    split: str
    beam_size: int
    device: str
    threads: int
    ct2_batches: list[int]
    limit: int


@dataclass(frozen=True)
class Pass:
    """One translation of everything."""

    seconds: float
    tokens: int
    texts: list[str]


class Engine(Protocol):
    """A program that translates; made, and so loaded, in a process of its own."""

    def translate(self) -> Pass: ...


# -- the engines -----------------------------------------------------------------------------


class Mtrain:
    """Our own search, in the precision it chooses or in a given one."""

    def __init__(self, setting: Setting, precision: str = "auto") -> None:
        self.setting, self.translator = setting, load(setting, precision)
        self.lines = source_lines(setting, self.translator)
        if setting.preset:
            hold_length(self.translator)

    def translate(self) -> Pass:
        started_at = time.perf_counter()
        found = self.translator.translate_detailed(self.lines, beam_size=self.setting.beam_size)
        seconds = time.perf_counter() - started_at
        tokens = sum(len(line.hypotheses[0].tokens) + 1 for line in found)
        return Pass(seconds, tokens, [line.text for line in found])


class CTranslate2:
    """The same weights under CTranslate2."""

    def __init__(self, setting: Setting, compute_type: str) -> None:
        import ctranslate2

        from mtrain.data.cleaning import normalize
        from mtrain.decoding.ctranslate2 import save_ctranslate2

        translator = load(setting, "fp32")
        self.setting, self.tokenizer = setting, translator.tgt_tokenizer
        pieces = translator.src_tokenizer.all_pieces(), self.tokenizer.all_pieces()
        self.ids = {piece: i for i, piece in enumerate(pieces[1])}
        lines = [normalize(line) for line in source_lines(setting, translator)]
        encoded = translator.src_tokenizer.encode(lines)
        self.sources = [[pieces[0][i] for i in ids] for ids in encoded]
        with tempfile.TemporaryDirectory() as directory:
            save_ctranslate2(translator.model, pieces, Path(directory))
            self.engine: Any = ctranslate2.Translator(
                directory,
                device=setting.device,
                compute_type=compute_type,
                inter_threads=setting.threads if setting.device == "cpu" else 1,
                intra_threads=1,
            )
        longest = max(map(len, encoded)) + 1
        self.options: dict[str, Any] = {
            "beam_size": setting.beam_size,
            "length_penalty": translator.config.decode.length_penalty,
            "max_decoding_length": max_length(translator, longest),
            "max_input_length": 0,
            "return_scores": True,
            "suppress_sequences": [[pieces[1][0]], [pieces[1][2]]],  # PAD and BOS, as with us
        }
        if setting.preset:
            self.options["max_decoding_length"] = FORCED_LENGTH
            self.options["min_decoding_length"] = FORCED_LENGTH
        sizes = setting.ct2_batches
        times = {size: self.search(size)[0] for size in [*sizes[:1], *sizes]} if sizes[1:] else {}
        self.batch = min(times, key=lambda size: times[size], default=sizes[0])

    def search(self, batch: int) -> tuple[float, list[Any]]:
        started_at = time.perf_counter()
        results = self.engine.translate_batch(self.sources, max_batch_size=batch, **self.options)
        return time.perf_counter() - started_at, results

    def translate(self) -> Pass:
        seconds, results = self.search(self.batch)
        best = [[self.ids[piece] for piece in result.hypotheses[0]] for result in results]
        n_ends = 0 if self.setting.preset else len(best)
        return Pass(seconds, sum(map(len, best)) + n_ends, self.tokenizer.decode(best))


class Transformers:
    """transformers' Marian of the same sizes, with random weights and the length held.

    On a GPU in bf16 and large batches, as mtrain.
    """

    def __init__(self, setting: Setting) -> None:
        import torch
        from transformers import MarianConfig, MarianMTModel

        torch.set_num_threads(setting.threads)
        self.setting = setting
        translator = load(setting, "fp32")
        self.device = translator.device
        is_gpu = self.device.type == "cuda"
        self.dtype, n_rows = (torch.bfloat16, 512) if is_gpu else (torch.float32, 64)
        model = translator.config.model
        self.model = MarianMTModel(
            MarianConfig(
                vocab_size=translator.tgt_tokenizer.vocab_size,
                d_model=model.d_model,
                encoder_layers=model.n_encoder_layers,
                decoder_layers=model.n_decoder_layers,
                encoder_attention_heads=model.n_heads,
                decoder_attention_heads=model.n_heads,
                encoder_ffn_dim=model.d_ff,
                decoder_ffn_dim=model.d_ff,
                activation_function="relu",
                pad_token_id=0,
                eos_token_id=3,
                decoder_start_token_id=2,
                forced_eos_token_id=None,
                max_position_embeddings=256,
            )
        )
        self.model = self.model.to(self.device, self.dtype).eval()
        lines = source_lines(setting, translator)
        ids = sorted(translator.src_tokenizer.encode(lines), key=len, reverse=True)
        self.batches = [ids[i : i + n_rows] for i in range(0, len(ids), n_rows)]

    def translate(self) -> Pass:
        import torch

        started_at, tokens = time.perf_counter(), 0
        for batch in self.batches:
            width = max(map(len, batch))
            src = torch.tensor([row + [0] * (width - len(row)) for row in batch]).to(self.device)
            with torch.inference_mode():
                found = self.model.generate(
                    src,
                    attention_mask=(src != 0).long(),
                    num_beams=self.setting.beam_size,
                    do_sample=False,
                    min_new_tokens=FORCED_LENGTH,
                    max_new_tokens=FORCED_LENGTH,
                )
            tokens += len(found) * FORCED_LENGTH
        return Pass(time.perf_counter() - started_at, tokens, [])


def make_engine(name: str, setting: Setting) -> Engine:
    if name.startswith("ctranslate2-"):
        return CTranslate2(setting, name.removeprefix("ctranslate2-"))
    if name == "transformers":
        return Transformers(setting)
    return Mtrain(setting, name.partition("-")[2] or "auto")


# -- models and text -------------------------------------------------------------------------


def load(setting: Setting, precision: str) -> Any:
    """A Translator of the run, or one of random weights."""
    os.environ["OMP_NUM_THREADS"] = str(setting.threads)
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # as the command sets it
    from mtrain.decoding.engine import TorchEngine
    from mtrain.decoding.translate import Translator

    if setting.run is not None:
        return Translator.from_run(setting.run, device=setting.device, precision=precision)

    import torch

    from mtrain.config.root import Config
    from mtrain.machine import runtime
    from mtrain.model.transformer import Transformer

    device = runtime.choose_device(setting.device)
    runtime.set_up(device, setting.threads, "decoding")
    torch.manual_seed(1)
    config = Config.model_validate(
        {
            "name": "random",
            "source": "en",
            "target": "de",
            "data": {"train": ({"source": "a", "target": "b"},)},
            "model": {"preset": setting.preset},
        }
    )
    model = Transformer(config.model, setting.vocab_size, setting.vocab_size).eval().to(device)
    numbers: Any = Numbers(setting.vocab_size)
    ratio = {"mean": 1.0, "std": 0.0}
    return Translator(TorchEngine([model], precision), (numbers, numbers), config, ratio)


class Numbers:
    """A tokenizer of lines of numbers, which are ids; for models of random weights."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in texts]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return [" ".join(map(str, row)) for row in ids]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [str(i) for i in ids]

    def all_pieces(self) -> list[str]:
        return self.pieces(range(self.vocab_size))

    def byte_ids(self) -> list[int]:
        return []


def source_lines(setting: Setting, translator: Any) -> list[str]:
    if setting.run is not None:
        from mtrain.run import RunDir

        return RunDir.open(setting.run).read_split(setting.split).sources[: setting.limit]
    import random

    assert setting.preset is not None
    n_lines = min(FORCED_SENTENCES[setting.device][setting.preset], setting.limit)
    draw = random.Random(1)
    return [
        " ".join(str(draw.randrange(4, setting.vocab_size)) for _ in range(draw.randint(8, 30)))
        for _ in range(n_lines)
    ]


def max_length(translator: Any, source_length: int) -> int:
    """Our own rule, which others are given."""
    return int(translator._max_lengths([source_length])[0])


def hold_length(translator: Any) -> None:
    """Make every output FORCED_LENGTH tokens long: no EOS before, and the limit there."""
    from mtrain.data.tokenizer import EOS

    scorer = translator.engine.scorer
    step = scorer.step

    def step_without_end(state: Any, tokens: Any) -> Any:
        logits, log_z = step(state, tokens)
        if state.step < FORCED_LENGTH:
            logits[:, EOS] = float("-inf")
        return logits, log_z

    scorer.step = step_without_end
    translator._max_lengths = lambda lengths: [FORCED_LENGTH] * len(lengths)


# -- measuring -------------------------------------------------------------------------------


def serve(name: str, setting: Setting) -> None:
    """Load an engine; then, for every line that comes, translate once and answer with a line."""
    answers = os.fdopen(os.dup(1), "w")  # what libraries print must not come between
    os.dup2(2, 1)
    engine = make_engine(name, setting)
    note = getattr(engine, "batch", None)
    print(json.dumps({"ready": True, "batch": note}), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(asdict(engine.translate())), file=answers, flush=True)


class Served:
    """An engine in a process of its own."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name, "--setting", json.dumps(asdict(setting))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        ready = self._answer()
        self.note = f"batches of {ready['batch']}" if ready["batch"] else ""

    def translate(self) -> Pass:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return Pass(**self._answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def compare(names: Sequence[str], setting: Setting, rounds: int, baseline: str) -> Iterator[str]:
    """The lines of the table."""
    engines = [Served(name, setting) for name in names]
    passes: dict[str, list[Pass]] = {engine.name: [] for engine in engines}
    for number in range(rounds + 1):
        for engine in engines:
            done = engine.translate()
            if number:  # the first warms up
                passes[engine.name].append(done)
    for engine in engines:
        engine.close()
    yield f"{'engine':<22}{'tokens/s':>10}{'range':>16}{'sent/s':>8}{'ratio':>8}{'range':>14}  BLEU"
    for engine in engines:
        own = passes[engine.name]
        speeds = [each.tokens / each.seconds for each in own]
        base = [each.tokens / each.seconds for each in passes[baseline]]
        ratios = [a / b for a, b in zip(speeds, base, strict=True)]
        n_lines = len(own[0].texts) or own[0].tokens // FORCED_LENGTH
        lines_per_s = statistics.median(n_lines / each.seconds for each in own)
        yield (
            f"{engine.name:<22}{statistics.median(speeds):>10,.0f}"
            f"{f'{min(speeds):,.0f}-{max(speeds):,.0f}':>16}{lines_per_s:>8.1f}"
            f"{statistics.median(ratios):>8.2f}{f'{min(ratios):.2f}-{max(ratios):.2f}':>14}"
            f"  {bleu(setting, own[0].texts)}  {engine.note}"
        )
    yield f"ratio to {baseline}; tokens of one pass: " + ", ".join(
        f"{name} {own[0].tokens:,}" for name, own in passes.items()
    )


def bleu(setting: Setting, texts: Sequence[str]) -> str:
    if setting.run is None:
        return "-"
    import sacrebleu

    from mtrain.run import RunDir

    references = RunDir.open(setting.run).read_split(setting.split).references[: setting.limit]
    return f"{sacrebleu.corpus_bleu(list(texts), [references]).score:.2f}"


def latency(setting: Setting, precision: str) -> Iterator[str]:
    """One sentence at a time."""
    engine = Mtrain(setting, precision)
    lines = engine.lines[:100]
    times = []
    for line in lines[:10] + lines:
        started_at = time.perf_counter()
        engine.translator.translate([line], beam_size=setting.beam_size)
        times.append(1000 * (time.perf_counter() - started_at))
    times = times[10:]  # what comes before warms up
    deciles = statistics.quantiles(times, n=10)
    yield (
        f"one sentence at a time, {engine.translator.engine.precision}: median "
        f"{statistics.median(times):.1f} ms, 90 % under {deciles[8]:.1f} ms, of {len(times)} lines"
    )


def memory(setting: Setting, n_lines: int) -> Iterator[str]:
    """Translate a file of n lines through the command line, and watch the process's memory."""
    from mtrain.run import RunDir

    assert setting.run is not None
    lines = RunDir.open(setting.run).read_split(setting.split).sources[: setting.limit]
    with tempfile.TemporaryDirectory() as name:
        source, output = Path(name) / "source", Path(name) / "output"
        with open(source, "w", encoding="utf-8") as file:
            for i in range(n_lines):
                file.write(lines[i % len(lines)] + "\n")
        command = [sys.executable, "-m", "mtrain", "translate", setting.run, str(source)]
        command += ["-o", str(output), "--beam-size", str(setting.beam_size)]
        started_at = time.perf_counter()
        process = subprocess.Popen(command)
        part, next_report = Path(f"{output}.part"), 0
        yield "lines done      seconds      memory MiB"
        while process.poll() is None:
            time.sleep(0.5)
            n_done = count_lines(part) if part.exists() else 0
            if n_done > next_report:
                size = resident_mib(process.pid)
                yield f"{n_done:>10,}{time.perf_counter() - started_at:>13.1f}{size:>16.0f}"
                next_report = n_done + n_lines // 20
        seconds = time.perf_counter() - started_at
        n_written = count_lines(output)
    peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    yield f"{n_written:,} of {n_lines:,} lines in {seconds:.0f} s; peak {peak_mib:.0f} MiB"


def count_lines(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def resident_mib(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended
        return 0.0
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def quality(setting: Setting) -> Iterator[str]:
    """The BLEU of every way of computing the search, against the first, which is the fastest."""
    from mtrain.evaluation.metrics import score_all
    from mtrain.run import RunDir

    assert setting.run is not None
    split = RunDir.open(setting.run).read_split(setting.split)
    lines, references = split.sources[: setting.limit], split.references[: setting.limit]
    translators = {precision: load(setting, precision) for precision in ("bf16", "fp32")}
    language = translators["bf16"].config.target
    baseline: list[str] = []
    yield f"{'way':<32}{'BLEU':>6}  {'interval':<17}{'lines that differ':<19}difference"
    for precision, is_exact, at_a_time in WAYS:
        changes = {"beam_size": setting.beam_size, "exact_stop": is_exact}
        chunks = [lines[i : i + at_a_time] for i in range(0, len(lines), at_a_time)]
        answers = (translators[precision].translate_detailed(c, **changes) for c in chunks)
        texts = [translation.text for answer in answers for translation in answer]
        baseline = baseline or texts
        score = score_all(texts, references, language, metrics=["bleu"])["bleu"]
        way = f"{precision}{', --exact-stop' * is_exact}{', one at a time' * (at_a_time == 1)}"
        interval = f"[{score.low:.2f}, {score.high:.2f}]"
        changes = differences(texts, baseline, references, language)
        yield f"{way:<32}{score.score:>6.2f}  {interval:<17}{changes}"
    yield score.signature


def differences(
    texts: Sequence[str], baseline: Sequence[str], references: Sequence[str], language: str
) -> str:
    """How many lines are not as in the baseline, and what sacreBLEU's paired tests say of that."""
    from mtrain.evaluation.comparison import compare as compare_paired

    n_differing = sum(ours != first for ours, first in zip(texts, baseline, strict=True))
    if not n_differing:
        return "0"
    tested = compare_paired(texts, baseline, references, language, metrics=["bleu"])
    bleu = tested.metrics["bleu"]
    return (
        f"{n_differing:<19,}{bleu.difference:+.2f}, p = {bleu.p_randomization:.2f} by approximate "
        f"randomisation, {bleu.p_bootstrap:.2f} by paired bootstrap"
    )


def profile(setting: Setting, precision: str) -> Iterator[str]:
    """Where the time of decoding goes, by kernel; on a CPU on one thread."""
    import torch
    from torch.profiler import ProfilerActivity

    on_gpu = setting.device == "cuda"
    engine = Mtrain(Setting(**{**asdict(setting), "threads": 1}), precision)
    torch.set_num_threads(1)
    engine.translate()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        engine.translate()
    by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    yield profiler.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=44)


def headline(setting: Setting) -> str:
    what = setting.run or f"random weights, preset {setting.preset}, {FORCED_LENGTH} tokens each"
    return f"{machine(setting.device, setting.threads)}; beam {setting.beam_size}; {what}"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.serve:
        serve(options.serve, Setting(**json.loads(options.setting)))
        return 0
    preset = "base" if options.base else "small" if options.small else None
    setting = Setting(
        options.run, preset, options.vocab_size, options.split, options.beam_size, options.device,
        options.threads, options.ct2_batches, options.limit,
    )  # fmt: skip
    print(headline(setting), flush=True)
    if options.latency:
        reports = latency(setting, options.precision)
    elif options.memory:
        reports = memory(setting, options.memory)
    elif options.quality:
        reports = quality(setting)
    elif options.profile:
        reports = profile(setting, options.precision)
    else:
        names = options.engines or installed(setting)
        baseline = "ctranslate2-float32" if "ctranslate2-float32" in names else names[0]
        reports = compare(names, setting, options.rounds or (3 if preset else 5), baseline)
    for line in reports:
        print(line, flush=True)
    return 0


def installed(setting: Setting) -> list[str]:
    """The engines that this environment has, of those that can do the work."""
    from importlib.util import find_spec

    names = [name for name in ENGINES if name.startswith("mtrain") or find_spec("ctranslate2")]
    has_transformers = setting.preset and find_spec("transformers")
    return [*names, *(["transformers"] if has_transformers else [])]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", help="a run directory; none with --base or --small")
    parser.add_argument("--base", action="store_true", help="random weights, output length held")
    parser.add_argument("--small", action="store_true", help="the same with the preset small")
    parser.add_argument("--vocab-size", type=int, default=8000, help="of random weights")
    parser.add_argument("--split", default="test_2016_flickr")
    parser.add_argument("--beam-size", type=int, default=5)
    parser.add_argument("--rounds", type=int, help="5, with random weights 3, if not given")
    parser.add_argument("--engines", nargs="+", metavar="NAME", help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--ct2-batches", nargs="+", type=int, default=[16, 32, 64])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--limit", type=int, default=1_000_000, help="sentences at most")
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--memory", type=int, metavar="LINES")
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.serve and bool(options.run) == (options.base or options.small):
        parser.error("give a RUN, or one of --base and --small")
    return options


if __name__ == "__main__":
    sys.exit(main())
