"""Work recorded once and launched again at once: CUDA graphs, kept by the shape they are for.

What a GPU is to do is launched kernel by kernel; where they are small, it waits for Python. A CUDA
graph launches all of them together, but does again exactly what was recorded, at the same
addresses.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, Generic, TypeVar

import torch

from mtrain import console

Result = TypeVar("Result")
Recorded = TypeVar("Recorded")
Shape = TypeVar("Shape", bound=Hashable)


def as_cuda_graph(work: Callable[[], Result]) -> Callable[[], Result]:
    """What a function launches on the GPU, to be launched again; its results keep their addresses.

    All that is recorded in a process shares memory for what lies between, so it must not run side
    by side. The random numbers are those of the seed of the moment, as without.
    """
    stream, pool = _for_recording()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()  # libraries make their workspaces at the first call, which cannot be recorded
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
        results = work()

    def again() -> Result:
        graph.replay()
        return results

    return again


def way_to_record(
    device: torch.device,
) -> Callable[[Callable[[], Result]], Callable[[], Result]] | None:
    """`as_cuda_graph`, where the device has them."""
    return as_cuda_graph if device.type == "cuda" else None


@cache
def _for_recording() -> tuple[torch.cuda.Stream, Any]:
    """One stream and one pool of memory: each further stream would keep what it was given."""
    return torch.cuda.Stream(), torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]


class Recordings(Generic[Shape, Recorded]):
    """What was recorded, by shape: the `most` that were used last.

    To record takes as long as doing it several times, so a shape is recorded once it has had
    `n_without` uses. Where that fails, it is said, and nothing is recorded any more.
    """

    def __init__(self, activity: str, n_without: int, most: int) -> None:
        """`activity` goes on without, where recording fails."""
        self.activity, self.n_without, self.most = activity, n_without, most
        self.by_shape: OrderedDict[Shape, Recorded] = OrderedDict()  # the last used at the end
        self.n_uses: Counter[Shape] = Counter()
        self.is_able = True

    def get(self, shape: Shape, record: Callable[[], Recorded]) -> Recorded | None:
        """What is recorded for a shape, or now is; None: better without."""
        if not self.is_able:
            return None
        if shape not in self.by_shape:
            self.n_uses[shape] += 1
            if self.n_uses[shape] <= self.n_without:
                return None
            try:
                self.by_shape[shape] = record()
            except RuntimeError as error:  # CUDA's, out of memory among them
                self.is_able = False
                self.forget()
                reason = str(error).splitlines()[0]
                console.warn(f"{self.activity} goes on without CUDA graphs: {reason}")
                return None
            if len(self.by_shape) > self.most:
                self.by_shape.popitem(last=False)
        self.by_shape.move_to_end(shape)
        return self.by_shape[shape]

    def forget(self) -> None:
        """Let go of all, and of its memory."""
        self.by_shape.clear()
