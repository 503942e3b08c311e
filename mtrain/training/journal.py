"""The history of a run: metrics.jsonl, and the same numbers for TensorBoard where wanted."""

from __future__ import annotations

from typing import Any

from mtrain.errors import UsageError
from mtrain.run import RunDir


class Journal:
    """Takes records with a `kind` and a `step`; a silent one (of a second process) drops them."""

    def __init__(self, run: RunDir, with_tensorboard: bool, is_silent: bool, step: int) -> None:
        """`step` is where training stands: what TensorBoard has beyond it is forgotten."""
        self.run, self.is_silent = run, is_silent
        self.board: Any = None
        if with_tensorboard and not is_silent:
            self.board = _summary_writer()(str(run.tensorboard), purge_step=step + 1)

    def add(self, record: dict[str, Any]) -> None:
        """Write down one record."""
        if self.is_silent:
            return
        self.run.log(record)
        if self.board is not None:
            for key, value in record.items():
                if key != "step" and isinstance(value, int | float):
                    self.board.add_scalar(f"{record['kind']}/{key}", value, record["step"])

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave nothing unwritten."""
        if self.board is not None:
            self.board.close()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "`train.tensorboard` needs TensorBoard, which is not installed",
            "pip install 'mtrain[tensorboard]', or set train.tensorboard to false",
        ) from error
    return SummaryWriter
