"""Device, precision, threads, memory and random seeds."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.metadata import version
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from mtrain import __version__, console
from mtrain.errors import DeviceError, is_out_of_memory
from mtrain.machine.process_pool import n_cores

Precision = Literal["fp32", "bf16"]
Purpose = Literal["training", "decoding"]
Result = TypeVar("Result")


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA if this build of torch supports the GPU, else the CPU.

    Raises a DeviceError if CUDA is requested and cannot be used.
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
            f"device `{name}` was requested, but torch {torch.__version__}, built for {built_for}, "
            "finds no GPU",
            "use `auto` or `cpu`, or install a CUDA build of PyTorch",
        )
    n_gpus = torch.cuda.device_count()
    if device.index is not None and device.index >= n_gpus:
        raise DeviceError(
            f"device `{name}` was requested, but this machine has "
            f"{n_gpus} GPU{'s' if n_gpus > 1 else ''}",
            "choose another one, start one process per GPU at most, or use the CPU",
        )
    if problem := _unsupported(device):
        raise DeviceError(problem, "install a build of PyTorch that supports it, or use the CPU")
    return device


def _unsupported(device: torch.device) -> str | None:
    """The reason why torch has no kernels for a GPU, or None.

    Kernels for sm_86 run on 8.6 and 8.9 but not on 9.0; compute_86 is compiled for any later one.
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
    """`auto` is bf16 if the hardware multiplies it faster than fp32.

    That is true of recent GPUs and of CPUs with AMX or AVX512-BF16 (Zen 4: half the time).
    """
    if name == "fp32":
        return "fp32"
    if device.type == "cuda":
        # is_bf16_supported() includes emulation.
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        _warn_of_old_gpu(name, device, has_bf16)
    else:
        probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # private: may go away
        has_bf16 = any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return "bf16" if name == "bf16" or has_bf16 else "fp32"


@cache
def _warn_of_old_gpu(name: str, device: torch.device, has_bf16: bool) -> None:
    """Cached, so that each warning is given once."""
    if has_bf16:
        return
    gpu = torch.cuda.get_device_name(device)
    if name == "bf16":
        console.warn(f"{gpu} has no bf16 and emulates it: `precision: fp32` is faster")
    else:
        console.warn(
            f"{gpu} has no bf16, so matrix products are in fp32, without its tensor cores: "
            "several times slower than on a GPU of compute capability 8.0 or later"
        )


def dtype_of_products(precision: Precision) -> torch.dtype:
    """The dtype of matrix products at this precision."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """In bf16, compute matrix products in bfloat16; weights stay float32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def compile_layers(layers: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Compile each layer at its next call (torch.compile); the names of weights stay.

    Each kind of layer is compiled once for all layers of the kind and all shapes of batches, and
    again for sources with padding and for a batch of one sentence.
    """
    for layer in layers:
        layer.compile(backend=backend, dynamic=True)


# The number of kernels that oneDNN caches (its default is 1,024). In bf16 it creates one for every
# shape of a matrix product, which takes half a millisecond and up to a quarter of a MiB.
KERNELS: dict[Purpose, int] = {
    "training": 1024,  # shapes recur, see model.bf16_linear
    "decoding": 128,  # a search uses a few shapes step after step, then hardly ever again
}


def set_up(device: torch.device, threads: int | Literal["auto"], purpose: Purpose) -> None:
    """Set threads, allocator and float settings, once per process, before the first tensor."""
    torch.set_num_threads(_auto_threads() if threads == "auto" else threads)
    torch.set_flush_denormal(True)
    if device.type == "cuda":
        # cuDNN, the first choice on H100 and later, makes a plan for every new shape, which takes
        # up to a second; our shapes hardly ever repeat.
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cuda.matmul.allow_tf32 = False  # "fp32" is fp32
    else:
        _keep_freed_memory(in_one_heap=purpose == "decoding")
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS[purpose]))


def give_memory_back() -> None:
    """Return free memory to the system; call it after seconds of work, not after every buffer.

    Buffers of many sizes fragment the heap more and more as a job runs.
    """
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def synchronize(device: torch.device) -> None:
    """Wait for the GPU to finish its queued work, for timing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def unless_out_of_memory(function: Callable[[], Result]) -> Result | None:
    """Return function(), or None if memory runs out.

    The exception is gone on return, and with it everything its traceback held: all activations.
    """
    try:
        return function()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()  # the next attempt uses other sizes
    return None


def free_bytes(device: torch.device) -> int | None:
    """The memory of a GPU still available to this process; None for a CPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free) + kept


def spare_bytes(device: torch.device) -> int | None:
    """The part of `free_bytes` that has never been in use so far; None for a CPU."""
    free = free_bytes(device)
    if free is None:
        return None
    peak = torch.cuda.max_memory_allocated(device)
    return free - (peak - torch.cuda.memory_allocated(device))


def n_workers(device: torch.device) -> int:
    """The number of independent pieces of work to run at a time."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def environment(device: torch.device) -> dict[str, str]:
    """Everything that determines the bytes of a model: versions, machine, device and threads."""
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
    """The CUDA and cuDNN that torch was built with, and the driver, as reported by Linux."""
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
    """The name of the CPU, as reported by Linux."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def seed_of(*parts: int) -> int:
    """A 63-bit seed from several numbers, such as (seed, step, part); the same on every machine."""
    state = 0x9E3779B97F4A7C15
    for part in parts:  # splitmix64 over the parts
        state = (state + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def _auto_threads() -> int:
    """OMP_NUM_THREADS if set, else the number of cores available to this process."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) else n_cores()


def _keep_freed_memory(in_one_heap: bool) -> None:
    """Keep glibc from returning large buffers to the system after every use.

    A per-thread heap is limited to 64 MiB, larger buffers are mapped again for every use, and
    memory freed by one thread is of no use to others: with one heap, decoding needs half as much
    memory. But threads then contend for it, which costs training 6 % of its speed.
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
    """A function of glibc; None on other C libraries, whose defaults stay."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
    return function
