"""All errors that mtrain raises on purpose, with their exit codes.

    MtrainError
    ├── UsageError            2   the command line, or a path that is not a run
    │   ├── ConfigError       2   the config: a list of located, fixable problems
    │   └── DeviceError       2   CUDA requested but not available
    ├── DataError             3   missing or bad data
    │   ├── DownloadError     3   a download that failed or has wrong content
    │   └── StorageError      3   a full disk, an unwritable directory
    ├── ModelError            4   weights and training
    │   ├── CheckpointError   4   missing, damaged or incompatible checkpoint
    │   ├── OutOfMemoryError  4   a batch that does not fit
    │   └── NonFiniteError    4   loss or gradients stay infinite or NaN
    └── StoppedBySignal  129, 130, 143   SIGHUP, SIGINT or SIGTERM, after saving

A message is one sentence in lower case: what happened, and where; `fix` says how to fix it. Only
`cli` catches these; any other exception is a bug in mtrain (exit code 1).
"""

from __future__ import annotations

import errno
import signal
import sys


class MtrainError(Exception):
    """An expected failure: what happened and where, and how to fix it."""

    exit_code = 1

    def __init__(self, message: str, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"error: {self.message}" + (f"\n  fix: {self.fix}" if self.fix else "")


class UsageError(MtrainError):
    """A command that cannot be carried out as given."""

    exit_code = 2


class ConfigError(UsageError):
    """All problems of a config, each with its location and fix."""

    def __init__(self, problems: list[MtrainError]) -> None:
        super().__init__(problems[0].message, problems[0].fix)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class DeviceError(UsageError):
    """A device or precision that this machine does not have."""


class DataError(MtrainError):
    """Text that is missing, misaligned, empty or unreadable."""

    exit_code = 3


class DownloadError(DataError):
    """A URL that could not be downloaded, or has unexpected content."""


class StorageError(DataError):
    """The disk is full, or a directory cannot be written."""


class ModelError(MtrainError):
    """A failure of weights or of training."""

    exit_code = 4


class CheckpointError(ModelError):
    """A checkpoint that is missing, damaged or made for another model."""


class OutOfMemoryError(ModelError):
    """A batch does not fit into the memory of the device."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, or torch on any device, has run out of memory; does not import torch.

    torch has a class for its own GPU allocator only. The CPU's allocator, CUDA itself, cuBLAS,
    cuDNN, NCCL and CTranslate2 raise other RuntimeErrors, which are recognised by their text.
    """
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error).lower()
    signs = ("can't allocate memory", "not enough memory", "_status_alloc_failed")
    return isinstance(error, RuntimeError) and (
        any(sign in said for sign in signs) or ("cuda" in said and "out of memory" in said)
    )


class NonFiniteError(ModelError):
    """Loss or gradients were infinite or NaN several times in a row."""


class StoppedBySignal(MtrainError):
    """Training received a signal, and has saved its state."""

    def __init__(self, signal_number: int, message: str, fix: str | None = None) -> None:
        super().__init__(message, fix)
        self.exit_code = 128 + signal_number
        self.signal_name = signal.Signals(signal_number).name

    def __str__(self) -> str:
        return f"stopped: {self.message}" + (f"\n  {self.fix}" if self.fix else "")
