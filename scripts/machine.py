"""What a measurement was made with, for the first line of a benchmark."""

from __future__ import annotations

import subprocess
from pathlib import Path


def machine(device: str, threads: int) -> str:
    """mtrain and its commit, torch, the processor or GPU, and threads."""
    from mtrain.machine import runtime

    facts = runtime.environment(runtime.choose_device(device))
    names = [name for name in ("CUDA", "cuDNN", "driver") if name in facts]
    libraries = ", ".join(f"{name} {facts[name]}" for name in ("torch", *names))
    return (
        f"mtrain {facts['mtrain']} at commit {commit()}, {libraries}, {facts['device']}, "
        f"{threads} threads"
    )


def commit() -> str:
    """Of this checkout; `+` where files differ from it."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"
