"""Where the program runs: device, precision, threads, allocator, seeds."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.metadata import version
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from mtrain import __version__, console
from mtrain.errors import DeviceError, is_out_of_memory

Precision = Literal["fp32", "bf16"]
Purpose = Literal["training", "decoding"]
Item = TypeVar("Item")
Result = TypeVar("Result")


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is a GPU that this build of torch supports, else the CPU.

    Raises a DeviceError where CUDA is asked for and cannot be used.
    """
    if name == "auto":
        problem = _unsupported(torch.device("cuda")) if torch.cuda.is_available() else None
        if problem:
            console.warn(f"{problem}; using the CPU")
        return torch.device("cuda" if torch.cuda.is_available() and not problem else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise DeviceError(
            f"there is no device `{name}`", "choose `auto`, `cpu`, `cuda` or `cuda:1`"
        )
    device = torch.device(name)
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
        raise DeviceError(
            f"device `{name}` was asked for, but torch {torch.__version__}, built for {built_for}, "
            "finds no GPU",
            "use `auto` or `cpu`, or install a CUDA build of PyTorch",
        )
    n_gpus = torch.cuda.device_count()
    if device.index is not None and device.index >= n_gpus:
        raise DeviceError(
            f"device `{name}` was asked for, but this machine has "
            f"{n_gpus} GPU{'s' if n_gpus > 1 else ''}",
            "choose another one, start one process per GPU at most, or use the CPU",
        )
    if problem := _unsupported(device):
        raise DeviceError(problem, "install a build of PyTorch that supports it, or use the CPU")
    return device


def _unsupported(device: torch.device) -> str | None:
    """Why torch has no kernels for a GPU; None where it has.

    Code for sm_86 runs on 8.6 and 8.9, not on 9.0; compute_86 is compiled for any later one.
    """
    capability = torch.cuda.get_device_capability(device)
    architectures = torch.cuda.get_arch_list()
    built_for = [
        (kind, (int(digits[:-1]), int(digits[-1])))
        for kind, digits in re.findall(r"(sm|compute)_(\d{2,})", " ".join(architectures))
    ]
    if not built_for or any(
        version <= capability and (kind == "compute" or version[0] == capability[0])
        for kind, version in built_for
    ):
        return None
    major, minor = capability
    return (
        f"torch {torch.__version__} does not support this GPU, {torch.cuda.get_device_name(device)}"
        f" (compute capability {major}.{minor}; it supports {', '.join(architectures)})"
    )


def choose_precision(name: str, device: torch.device) -> Precision:
    """`auto` is bf16 where the hardware multiplies it faster.

    These are recent GPUs and CPUs with AMX or AVX512-BF16 (Zen 4: products in half the time).
    """
    if name == "fp32":
        return "fp32"
    if device.type == "cuda":
        # is_bf16_supported() would count what is emulated.
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        _warn_of_old_gpu(name, device, has_bf16)
    else:
        has_bf16 = _has_amx() or _has_avx512_bf16()
    return "bf16" if name == "bf16" or has_bf16 else "fp32"


@cache
def _warn_of_old_gpu(name: str, device: torch.device, has_bf16: bool) -> None:
    """Once for each way to ask."""
    if has_bf16:
        return
    gpu = torch.cuda.get_device_name(device)
    if name == "bf16":
        console.warn(f"{gpu} has no bf16 and emulates it: `precision: fp32` is faster")
    else:
        console.warn(
            f"{gpu} has no bf16, so matrix products are made in fp32, without its tensor cores: "
            "several times slower than on a GPU of compute capability 8.0 or later"
        )


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
    "training": 1024,  # shapes come again and again, see model.bf16_linear
    "decoding": 128,  # a search asks for a few step after step, and then hardly ever again
}


def set_up(device: torch.device, threads: int | Literal["auto"], purpose: Purpose) -> None:
    """Threads, allocator and float settings, once for each process, before the first tensor."""
    n_threads = _n_cores() if threads == "auto" else threads
    torch.set_num_threads(n_threads)
    torch.set_flush_denormal(True)
    if device.type == "cuda":
        # It is tried first on H100 and later, and makes a plan for every new shape, which takes
        # up to a second; our shapes hardly ever come again.
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cuda.matmul.allow_tf32 = False  # "fp32" means so
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


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given, so that a clock shows the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def unless_out_of_memory(function: Callable[[], Result]) -> Result | None:
    """function(), or None where memory runs out.

    By then the error is gone, and with it all that its traceback held: every activation.
    """
    try:
        return function()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()  # what comes next has other sizes
    return None


def free_bytes(device: torch.device) -> int | None:
    """Memory of a GPU that this process could still use; None for a CPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free) + kept


def spare_bytes(device: torch.device) -> int | None:
    """Of these, what was never in use so far and so can be kept for long; None for a CPU."""
    free = free_bytes(device)
    if free is None:
        return None
    used_at_times = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    return free - used_at_times


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
    is_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_gpu else _processor()
    return {
        "mtrain": __version__,
        "Python": platform.python_version(),
        **{library: version(library) for library in libraries},
        "system": platform.platform(),
        "device": f"{device.type}: {name}",
        **(_cuda_versions() if is_gpu else {}),
        "threads": str(torch.get_num_threads()),
    }


def _cuda_versions() -> dict[str, str]:
    """CUDA and cuDNN that torch was built with, and the driver, as Linux tells it."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            driver = file.readline().partition(":")[2].strip()
    except OSError:  # WSL has no such file
        driver = "unknown"
    return {
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "driver": driver,
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
