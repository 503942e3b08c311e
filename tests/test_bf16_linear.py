"""Products in bfloat16 in few shapes: what autocast computes, and nothing of the added rows."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mtrain.model import bf16_linear
from mtrain.model.bf16_linear import ROWS, Linear


def results(function: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    """The product, and the gradients of the inputs for a gradient that is a function of shapes."""
    inputs = [t.clone().requires_grad_() for t in (x, weight, bias) if t is not None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = function(*inputs, *([None] if bias is None else []))
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape).to(y.dtype))
    grads = [t.grad for t in inputs if t.grad is not None]
    return [y.detach(), *grads]


@pytest.mark.parametrize("shape", [(3, 7, 16), (1, 1, 16), (ROWS, 16), (2, ROWS + 1, 16)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_and_gradients_are_those_of_autocast(shape, has_bias, dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(shape).to(dtype), torch.randn(24, 16)
    bias = torch.randn(24) if has_bias else None
    found, expected = (results(f, x, weight, bias) for f in (bf16_linear.linear, F.linear))
    assert len(found) == len(expected) == (4 if has_bias else 3)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0.01 * float(theirs.abs().max()))


def test_a_gradient_that_lies_in_another_order_is_taken_as_it_is_meant():
    """As from attention, which transposes heads and positions."""
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, 8), torch.randn(4, 8)
    gradient = torch.randn(5, 3, 4).bfloat16().transpose(0, 1)
    grads = []
    for function in (bf16_linear.linear, F.linear):
        inputs = x.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = function(*inputs, None)
        y.backward(gradient)
        grads.append(inputs[0].grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=0.01, atol=0.1)


class Shapes(TorchDispatchMode):
    """Notes the shapes of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[torch.Size, ...]] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.seen.add(tuple(arg.shape for arg in args))
        return function(*args, **(kwargs or {}))


def test_batches_of_all_sizes_need_few_kernels():
    layer = Linear(16, 24)
    with Shapes() as shapes:
        for rows in range(1, 2 * ROWS + 1):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = layer(torch.randn(rows, 16, requires_grad=True))
            y.sum().backward()
    assert len(shapes.seen) == 2 * 3  # two sizes, forward and both gradients


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, None])
def test_only_training_in_bfloat16_takes_this_way(is_training, dtype):
    precision = torch.autocast("cpu", dtype=dtype, enabled=dtype is not None)
    with precision, torch.set_grad_enabled(is_training):
        wanted = bf16_linear.is_cpu_training_in_bf16(torch.zeros(2, 3))
    assert wanted is (is_training and dtype == torch.bfloat16)
