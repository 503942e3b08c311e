"""Checks of scripts/first_hour_on_gpu.sh on a GPU, besides commands and benchmarks.

python scripts/gpu_probes.py machine cuda
python scripts/gpu_probes.py waits-of-a-search RUN cuda
python scripts/gpu_probes.py with-8-gib COMMAND ...    an mtrain command with so much memory
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable


def machine(device: str) -> None:
    """The driver, torch, and what its kernels are built for."""
    import torch
    from machine import machine

    if device == "cuda":
        subprocess.run(["nvidia-smi"], check=True)
        print(torch.cuda.get_device_properties(0))
    print(machine(device, torch.get_num_threads()))
    print(f"torch {torch.__version__} for {' '.join(torch.cuda.get_arch_list()) or 'the CPU'}")


def waits_of_a_search(run: str, device: str) -> None:
    """The lines at which one batch of a search waits for the GPU, and how often."""
    import torch

    import mtrain
    from mtrain.run import RunDir

    translator = mtrain.load(run, device=device)
    lines = RunDir.open(run).read_split("valid").sources[:64]
    translator.translate(lines)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        translator.translate(lines)
    print(f"{len(caught)} waits in a search of {len(lines)} lines")
    for place, n in Counter(f"{w.filename}:{w.lineno}" for w in caught).most_common(12):
        print(f"{n:>6} {place}")


def with_8_gib(*command: str) -> None:
    """Does the trial hold what it says: the first step, saves and validations?"""
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # as `cli.main` does
    import torch

    from mtrain import cli

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        ballast = torch.empty(max(0, free - (8 << 30)), dtype=torch.uint8, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        print(f"{ballast.nbytes:,} bytes are held, so that 8 GiB are free")
    sys.argv = ["mtrain", *command]
    cli.main()


PROBES: dict[str, Callable[..., None]] = {
    "machine": machine,
    "waits-of-a-search": waits_of_a_search,
    "with-8-gib": with_8_gib,
}

if __name__ == "__main__":
    PROBES[sys.argv[1]](*sys.argv[2:])
