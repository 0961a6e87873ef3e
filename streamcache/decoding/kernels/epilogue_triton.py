"""What follows a product in the Triton kernels of `linear`."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    if ACTIVATION == "gelu":
        y = 0.5 * y * (1 + tl.erf(y * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    elif ACTIVATION == "silu":
        y = y * tl.sigmoid(y)
    elif ACTIVATION == "relu":
        y = tl.maximum(y, 0.0)
    return y


@triton.jit
def scaled(y, ptr, rows, N: tl.constexpr):
    if ptr is not None:
        y *= tl.load(ptr + rows, rows < N, other=0.0).to(tl.float32)
    return y


@triton.jit
def plus(y, ptr, rows, N: tl.constexpr):
    if ptr is not None:
        y += tl.load(ptr + rows, rows < N, other=0.0).to(tl.float32)
    return y
