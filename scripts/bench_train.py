"""Time training: mtrain against a plain loop over transformers' Marian, in alternating runs.

    mtrain prepare configs/multi30k-en-de.yaml --set name=bench --set tokenizer.vocab_size=8000
    python scripts/bench_train.py data/bench/*/
    python scripts/bench_train.py data/bench/*/ --preset base --batch-tokens 32768 --device cuda
    python scripts/bench_train.py data/bench/*/ --profile
    python scripts/bench_train.py data/bench/*/ --saves
    python scripts/bench_train.py data/bench/*/ --waits --device cuda

The argument is prepared data. Every engine trains a model of the preset's sizes on it, in a process
of its own; in each round each engine makes --updates updates after --warm-up that are not timed.
Tokens are real ones, with EOS, of source and target; the table gives medians over the rounds, and
the ratio to Marian within each round. Without transformers, mtrain alone is timed.

The plain loop sorts by length, cuts batches of rows x longest side that hold as many real target
tokens on average as mtrain's updates, and trains with fused Adam, label-smoothed cross-entropy and
autocast in bf16 where its name says so; on a GPU also compiled. mtrain's updates are those of
`mtrain train`, which clips gradients besides. Marian's layers are post-norm, mtrain's pre-norm;
data, pieces, sizes and threads are the same. bf16 for both: --engines mtrain-bf16 marian-bf16.

--saves times mtrain's updates around the writing of checkpoints: beside training, as `mtrain train`
does it, and for comparison with training stopped meanwhile. --waits ends with an error where an
update waits for the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from machine import machine

N_SAVES = 10


@dataclass(frozen=True)
class Setting:
    """What is measured; the same for all engines."""

    data: str
    preset: str
    batch_tokens: int  # target tokens of an update
    device: str
    threads: int
    warm_up: int
    updates: int


@dataclass(frozen=True)
class Timing:
    """Of one engine in one round."""

    seconds: float
    cpu_seconds: float
    n_source: int  # real tokens, EOS included
    n_target: int
    real_share: float


def main(arguments: list[str] | None = None) -> int:
    """Run the rounds and print a table."""
    options = parse(arguments)
    names = ("data", "preset", "batch_tokens", "device", "threads", "warm_up", "updates")
    setting = Setting(**{name: getattr(options, name) for name in names})
    if options.engine:
        print(json.dumps(asdict(ENGINES[options.engine](setting))))
        return 0
    if options.profile:
        print(profile(setting))
        return 0
    if options.waits:
        print(waits(setting))
        return 0
    if options.saves:
        for line in saves(setting):
            print(line)
        return 0
    print(f"{machine(setting.device, setting.threads)}; {setting}", flush=True)
    engines = options.engines or installed(setting.device)
    rounds = []
    for number in range(options.rounds):
        timings = {engine: in_a_process(engine, setting) for engine in engines}
        rounds.append(timings)
        for engine, timing in timings.items():
            print(f"round {number + 1}: {engine}: {tokens_per_s(timing):,.0f} tokens/s", flush=True)
    for line in table(rounds, setting.updates):
        print(line)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; its help is this file's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="a directory of prepared data")
    parser.add_argument("--preset", default="small", choices=["tiny", "small", "base", "big"])
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--warm-up", type=int, default=10, help="updates before the clock starts")
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="+", choices=[*ENGINES])
    parser.add_argument("--profile", action="store_true", help="the kernels of mtrain's updates")
    parser.add_argument("--saves", action="store_true", help="how long saving stops mtrain")
    parser.add_argument("--waits", action="store_true", help="an error where mtrain waits")
    parser.add_argument("--engine", choices=[*ENGINES], help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def installed(device: str) -> list[str]:
    """The engines that can run here."""
    on_gpu = ["mtrain-bf16", "mtrain-bf16-compiled"]
    engines = on_gpu if device == "cuda" else ["mtrain", "mtrain-fp32"]
    if find_spec("transformers") is None:
        return engines
    peers = ["marian-bf16", "marian-bf16-compiled"] if device == "cuda" else ["marian-fp32"]
    return engines + peers


def in_a_process(engine: str, setting: Setting) -> Timing:
    """One round of one engine, newly loaded."""
    arguments = [f"--{key.replace('_', '-')}={value}" for key, value in asdict(setting).items()]
    command = [sys.executable, __file__, setting.data, *arguments[1:], "--engine", engine]
    as_mtrain = {"GOMP_SPINCOUNT": "5000", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    environment = as_mtrain | os.environ
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Timing(**json.loads(done.stdout.split("\n")[-2]))


def tokens_per_s(timing: Timing) -> float:
    """Real tokens of both sides."""
    return (timing.n_source + timing.n_target) / timing.seconds


def table(rounds: list[dict[str, Timing]], n_updates: int) -> Iterator[str]:
    """Medians over the rounds, and the ratio to the fastest Marian within each."""
    yield (
        "engine                tokens/s  target/s  tokens/CPU-s  target/update  real share"
        "  ratio to Marian"
    )
    for engine in rounds[0]:
        timings = [timings[engine] for timings in rounds]
        ratios = []
        for one in rounds:
            peers = [tokens_per_s(t) for name, t in one.items() if name.startswith("marian")]
            ratios += [tokens_per_s(one[engine]) / max(peers)] if peers else []
        per_cpu_s = [tokens_per_s(t) * t.seconds / t.cpu_seconds for t in timings]
        columns = (
            f"{statistics.median(map(tokens_per_s, timings)):10,.0f}",
            f"{statistics.median(t.n_target / t.seconds for t in timings):10,.0f}",
            f"{statistics.median(per_cpu_s):14,.0f}",
            f"{timings[0].n_target / n_updates:15,.0f}",
            f"{timings[0].real_share:12.3f}",
            f"{statistics.median(ratios):17.2f}" if ratios else "",
        )
        yield f"{engine:<20}{''.join(columns)}"


def timed(step: Callable[[], tuple[int, int, int]], setting: Setting) -> Timing:
    """`step` makes an update; -> real source and target tokens, and positions computed"""
    import torch

    counts = [0, 0, 0]
    began_at = cpu_began_at = 0.0
    for number in range(setting.warm_up + setting.updates):
        if number == setting.warm_up:
            wait(torch, setting)
            began_at, cpu_began_at, counts = time.perf_counter(), time.process_time(), [0, 0, 0]
        counts = [total + n for total, n in zip(counts, step(), strict=True)]
    wait(torch, setting)
    seconds, cpu_seconds = time.perf_counter() - began_at, time.process_time() - cpu_began_at
    n_source, n_target, n_positions = counts
    return Timing(seconds, cpu_seconds, n_source, n_target, (n_source + n_target) / n_positions)


def wait(torch: Any, setting: Setting) -> None:
    """Until the device has done all it was given."""
    if setting.device == "cuda":
        torch.cuda.synchronize()


# -- mtrain ----------------------------------------------------------------------------------


def mtrain(setting: Setting, precision: str = "auto", is_compiled: bool = False) -> Timing:
    """The updates that `mtrain train` makes."""
    training = Training(setting, precision)
    if is_compiled:
        training.learner.compile_layers()
    return timed(training.step, setting)


class Training:
    """mtrain's learner, update after update."""

    def __init__(self, setting: Setting, precision: str) -> None:
        from mtrain.config.root import Config
        from mtrain.data.store import TokenStore
        from mtrain.machine import runtime
        from mtrain.machine.distributed import Distributed
        from mtrain.training.learner import Learner
        from mtrain.training.schedule import Progress

        train = {
            "batch_tokens": setting.batch_tokens,
            "precision": precision,
            "optim": {"learning_rate": 1e-3, "warmup_steps": 400},
        }
        config = Config.model_validate(
            {
                "name": "bench",
                "source": "en",
                "target": "de",
                "data": {"train": {"source": "unused", "target": "unused"}},
                "model": {"preset": setting.preset, "dropout": 0.1},
                "train": train,
            }
        )
        device = runtime.choose_device(setting.device)
        runtime.set_up(device, setting.threads, "training")
        self.setting, self.store = setting, TokenStore.open(Path(setting.data))
        self.progress = Progress()
        self.learner = Learner(config, vocab_sizes(setting), Distributed(device))
        self.upcoming = self.updates()

    def updates(self) -> Iterator[tuple[Any, int]]:
        """(epoch, number of the update in it), without end."""
        from mtrain.data.batching import BatchPlan
        from mtrain.data.epochs import Epoch

        for epoch in range(1_000_000):
            plan = BatchPlan.of_store(self.store, self.setting.batch_tokens, 1, epoch)
            yield from ((Epoch(self.store, plan), number) for number in range(len(plan)))

    def step(self) -> tuple[int, int, int]:
        """The next update; -> real source and target tokens, and positions computed"""
        epoch, number = next(self.upcoming)
        update = self.learner.update(epoch, number, 1e-4, self.progress)
        batches = [batch for batch, _ in update.micro_batches]
        return (
            sum(batch.n_source_tokens for batch in batches),
            sum(batch.n_target_tokens for batch in batches),
            sum(batch.n_positions for batch in batches),
        )


def saves(setting: Setting) -> Iterator[str]:
    """The cost of a checkpoint: the duration of the call, and the slowdown of updates meanwhile."""
    import torch

    from mtrain.machine.threads import Writer
    from mtrain.run import RunDir
    from mtrain.training.checkpoints import copy_state, save_state

    training = Training(setting, "auto")
    learner = training.learner

    def update_s() -> float:
        began_at = time.perf_counter()
        training.step()
        wait(torch, setting)
        return time.perf_counter() - began_at

    for _ in range(setting.warm_up):
        update_s()
    plain_s = statistics.median(update_s() for _ in range(setting.updates))
    yield f"an update: {1000 * plain_s:.0f} ms"
    stopped: list[float] = []
    calls: list[float] = []
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as directory, Writer(learner.device) as writer:
        run = RunDir(Path(directory))

        def save() -> float:
            began_at = time.perf_counter()
            state = copy_state(learner, training.progress)
            writer.start(lambda: save_state(run, state, keep=2))
            return time.perf_counter() - began_at

        for _ in range(N_SAVES):
            calls.append(save())
            beside = []
            while writer.pending is not None:
                beside.append(update_s())
                writer.check()
            losses.append(sum(beside) - plain_s * len(beside))
            began_at = time.perf_counter()
            save()
            writer.wait()
            stopped.append(time.perf_counter() - began_at)
            update_s()
    for what, seconds in (
        ("a save with training stopped", stopped),
        ("a save during training: the call", calls),
        ("  and what the updates beside it lose", losses),
    ):
        in_ms = [1000 * s for s in seconds]
        yield f"{what}: median {statistics.median(in_ms):.0f} ms, longest {max(in_ms):.0f} ms"


def profile(setting: Setting) -> str:
    """The kernels in which a few updates spend their time, most of it first."""
    import torch
    from torch.profiler import ProfilerActivity

    step = Training(setting, "auto").step
    for _ in range(3):
        step()
    activities = [ProfilerActivity.CPU]
    if setting.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(4):
            step()
        wait(torch, setting)
    by = "self_device_time_total" if setting.device == "cuda" else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60)


def waits(setting: Setting) -> str:
    """Updates in which torch raises an error where the CPU waits for a GPU."""
    import torch

    training = Training(setting, "auto")
    for _ in range(setting.warm_up):
        training.step()
    if setting.device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    for _ in range(setting.updates):
        training.step()
    return f"{setting.updates} updates waited for nothing"


def with_cudnn_attention(setting: Setting) -> Timing:
    """What mtrain turns off: a plan for every new shape. It must not be faster."""
    import torch

    training = Training(setting, "bf16")
    torch.backends.cuda.enable_cudnn_sdp(True)
    return timed(training.step, setting)


def vocab_sizes(setting: Setting) -> tuple[int, int]:
    """Of both sides, as the prepared data says."""
    manifest = json.loads((Path(setting.data) / "manifest.json").read_text(encoding="utf-8"))
    source, target = manifest["vocab_sizes"]
    return source, target


# -- a plain loop over transformers' Marian --------------------------------------------------


def marian(setting: Setting, is_bf16: bool = False, is_compiled: bool = False) -> Timing:
    """MarianMTModel of the same sizes, post-norm, its only form."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import MarianConfig, MarianMTModel

    from mtrain.config.sections import PRESETS
    from mtrain.data.batching import collate
    from mtrain.data.store import TokenStore
    from mtrain.data.tokenizer import BOS, EOS, PAD

    torch.set_num_threads(setting.threads)
    torch.manual_seed(1)
    sizes, vocab_size = PRESETS[setting.preset], vocab_sizes(setting)[0]
    config = MarianConfig(
        vocab_size=vocab_size,
        d_model=sizes["d_model"],
        encoder_layers=sizes["n_encoder_layers"],
        decoder_layers=sizes["n_decoder_layers"],
        encoder_attention_heads=sizes["n_heads"],
        decoder_attention_heads=sizes["n_heads"],
        encoder_ffn_dim=sizes["d_ff"],
        decoder_ffn_dim=sizes["d_ff"],
        dropout=0.1,
        activation_function="relu",
        scale_embedding=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        decoder_start_token_id=BOS,
        forced_eos_token_id=None,
        max_position_embeddings=512,
    )
    model = MarianMTModel(config).to(setting.device).train()
    run = torch.compile(model, dynamic=True) if is_compiled else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.98), fused=True)
    store = TokenStore.open(Path(setting.data))
    upcoming = length_sorted(store, setting.batch_tokens)

    def step() -> tuple[int, int, int]:
        batch = collate(store, next(upcoming)).to(torch.device(setting.device))
        with torch.autocast(setting.device, torch.bfloat16, enabled=is_bf16):
            logits = run(
                input_ids=batch.src,
                attention_mask=batch.src != PAD,
                decoder_input_ids=batch.tgt_in,
                use_cache=False,
            ).logits
        flat = logits.float().flatten(0, 1)
        targets = batch.tgt_out.flatten()
        cross_entropy(flat, targets, ignore_index=PAD, label_smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad()
        return batch.n_source_tokens, batch.n_target_tokens, batch.n_positions

    return timed(step, setting)


def length_sorted(store: Any, batch_tokens: int) -> Iterator[list[int]]:
    """Batches by length, in random order, for ever; of `batch_tokens` target tokens on average."""
    import random

    generator = random.Random(1)
    lengths = [
        (int(target) + 1, int(source) + 1)
        for source, target in zip(store.src_lengths, store.tgt_lengths, strict=True)
    ]
    order = sorted(range(len(store)), key=lambda i: (lengths[i], generator.random()))
    n_target = sum(target for target, _ in lengths)
    of_first_cut = n_target / len(cut(order, lengths, batch_tokens))  # fewer, as some are padding
    batches = cut(order, lengths, round(batch_tokens * batch_tokens / of_first_cut))
    while True:
        generator.shuffle(batches)
        yield from batches


def cut(order: list[int], lengths: list[tuple[int, int]], budget: int) -> list[list[int]]:
    """Neighbours of an order in batches, each of at most `budget` positions of its longest side."""
    batches: list[list[int]] = [[]]
    longest = 0
    for i in order:
        longest = max(longest, *lengths[i])
        if batches[-1] and longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = max(lengths[i])
        batches[-1].append(i)
    return batches


ENGINES: dict[str, Callable[[Setting], Timing]] = {
    "mtrain": mtrain,
    "mtrain-fp32": lambda setting: mtrain(setting, "fp32"),
    "mtrain-bf16": lambda setting: mtrain(setting, "bf16"),
    "mtrain-bf16-cudnn": with_cudnn_attention,
    "mtrain-bf16-compiled": lambda setting: mtrain(setting, "bf16", is_compiled=True),
    "marian-fp32": marian,
    "marian-bf16": lambda setting: marian(setting, is_bf16=True),
    "marian-bf16-compiled": lambda setting: marian(setting, is_bf16=True, is_compiled=True),
}


if __name__ == "__main__":
    sys.exit(main())
