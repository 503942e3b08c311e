"""Where the program runs: device, precision, threads, allocator, seeds."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from mtrain import __version__
from mtrain.errors import DeviceError

Precision = Literal["fp32", "bf16"]
Purpose = Literal["training", "decoding"]
Item = TypeVar("Item")
Result = TypeVar("Result")


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; a DeviceError where it is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
        raise DeviceError(
            f"device `cuda` was asked for, but torch {torch.__version__}, built for {built_for}, "
            "finds no GPU",
            "use `auto` or `cpu`, or install a CUDA build of PyTorch",
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> Precision:
    """`auto` is bf16 where the hardware multiplies it faster.

    These are recent GPUs and CPUs with AMX or AVX512-BF16 (Zen 4: products in half the time).
    """
    if name == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
        return "bf16" if _has_amx() or _has_avx512_bf16() else "fp32"
    return "bf16" if name == "bf16" else "fp32"


def dtype_of_products(precision: Precision) -> torch.dtype:
    """That of matrix products in this precision."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Matrix products in bf16, where that is the precision; weights stay float32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def compile_layers(layers: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Have each compiled when it is next called (torch.compile); names of weights stay.

    Each kind of layer is compiled once, for all layers of the kind and batches of all shapes; once
    more for sources with padding, and for a batch of one sentence.
    """
    for layer in layers:
        layer.compile(backend=backend, dynamic=True)


def leave_compiled() -> None:
    """Compute from now on as if nothing had been compiled, in this whole process."""
    torch.compiler.set_stance("force_eager")


# How many of its kernels oneDNN keeps, 1,024 by itself. In bf16 it makes one for every shape of a
# matrix product, in half a millisecond and of up to a quarter of a MiB.
KERNELS: dict[Purpose, int] = {
    "training": 1024,  # shapes come again and again, see model.products
    "decoding": 128,  # a search asks for a few step after step, and then hardly ever again
}


def set_up(device: torch.device, threads: int | Literal["auto"], purpose: Purpose) -> None:
    """Threads, allocator and float settings, once for each process, before the first tensor."""
    n_threads = _n_cores() if threads == "auto" else threads
    torch.set_num_threads(n_threads)
    torch.set_flush_denormal(True)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    else:
        _keep_freed_memory(in_one_heap=purpose == "decoding")
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS[purpose]))


def give_memory_back() -> None:
    """Hand to the system what is free; to be called after seconds of work, not after every buffer.

    Buffers of ever other sizes leave gaps, and the longer a job runs, the more.
    """
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def n_workers(device: torch.device) -> int:
    """How many pieces of work that are independent of each other should run at a time."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def side_by_side(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    n_workers: int,
    threads_of_one: int | None = None,
) -> Iterator[tuple[Item, Result]]:
    """function(item) of every item, each on one thread with kernels of one thread, as they end.

    Cores that each have work of their own do not wait for each other at the end of every kernel.
    With one worker or one item, all is done where it is called, with kernels of `threads_of_one`
    threads (None: as many as are set).
    """
    n_threads = torch.get_num_threads()
    if n_workers == 1 or len(items) == 1:
        torch.set_num_threads(threads_of_one or n_threads)
        try:
            for item in items:
                yield item, function(item)
        finally:
            torch.set_num_threads(n_threads)
        return
    torch.set_num_threads(1)  # the libraries below keep one setting for all threads
    pool = ThreadPoolExecutor(n_workers, initializer=_start_worker)
    try:
        futures = {pool.submit(function, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)


def _start_worker() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def environment(device: torch.device) -> dict[str, str]:
    """Versions, machine, device and threads: what the bytes of a model depend on."""
    libraries = ("torch", "numpy", "sentencepiece", "sacrebleu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "mtrain": __version__,
        "Python": platform.python_version(),
        **{library: version(library) for library in libraries},
        "system": platform.platform(),
        "device": f"{device.type}: {name}",
        "threads": str(torch.get_num_threads()),
    }


def _processor() -> str:
    """The name of the CPU, as Linux tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def seed_of(*parts: int) -> int:
    """One 63-bit seed from several numbers, alike on every machine: for (seed, step, part)."""
    state = 0x9E3779B97F4A7C15
    for part in parts:  # splitmix64 over the parts
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def _n_cores() -> int:
    """Cores that this process may use; OMP_NUM_THREADS is obeyed where it is set."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted):
        return int(wanted)
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _has_amx() -> bool:
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private, so asked with care
    return bool(probe()) if probe is not None else False


def _has_avx512_bf16() -> bool:
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # private, so asked with care
    return bool(probe()) if probe is not None else False


def _keep_freed_memory(in_one_heap: bool) -> None:
    """Tell glibc not to hand large buffers back after every use.

    A heap of a thread's own ends at 64 MiB, what is larger is mapped anew for every use, and what
    one thread has freed no other can use: one heap for all holds half as much in decoding. But
    threads wait for each other there, which costs training 6 % of its speed.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return
    m_mmap_threshold, m_trim_threshold, m_top_pad, m_arena_max = -3, -1, -2, -8
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, 1 << 30)
    mallopt(m_top_pad, 256 << 20)
    if in_one_heap:
        mallopt(m_arena_max, 1)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of GNU's C library; None where another is used, whose defaults stay."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
    return function
