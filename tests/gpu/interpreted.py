# SPDX-License-Identifier: Apache-2.0
"""A program for a GPU, run on the CPU: the same kernels, order of calls and memory plan, with real numbers.

In:    the source of a program that `programs.generate` gave; Triton in interpreter mode (`TRITON_INTERPRET=1`).
Out:   its `call`, for tensors on the CPU.
Never: changes which kernels there are, the order of calls, or which buffers are allocated, reused and freed.

Triton's interpreter has no libdevice; that of NumPy takes its place, in the precision of the argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch

from tests.gpu.programs import body_of

ON_CPU = (
    ("from torch._C import _cuda_getCurrentRawStream as get_raw_stream", "get_raw_stream = lambda index: 0"),
    ("empty_strided_cuda(", "empty_strided_cpu("),
    ("torch.cuda._DeviceGuard(0)", "contextlib.nullcontext()"),
    ("torch.cuda.set_device(0)", "pass"),
    ("device(type='cuda', index=0)", "device('cpu')"),
)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "pow": np.power,
    "erf": lambda x: torch.erf(torch.from_numpy(np.asarray(x))).numpy(),
}
"""Of libdevice, where NumPy calls them otherwise."""


def load(code: str) -> Callable[[list[Any]], Any]:
    """See the module's contract."""
    from torch._inductor.codecache import PyCodeCache

    for theirs, ours in ON_CPU:
        code = code.replace(theirs, ours)
    called = [line for line in body_of(code).splitlines() if "farskip.announce" not in line]
    assert not [line for line in called if "cuda" in line], "something of the program is still for a device"
    return PyCodeCache.load("import contextlib\n" + code).call


@contextmanager
def interpreter() -> Iterator[None]:
    """Within the block, kernels find the functions of libdevice, look for no device, and atomics and products of
    bfloat16 are right."""
    import triton.language as tl
    from torch._inductor.runtime import triton_helpers
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    plain, product = InterpreterBuilder.create_atomic_rmw, InterpreterBuilder.create_dot

    def create_atomic_rmw(self: Any, operation: Any, pointer: Any, value: Any, mask: Any, *args: Any) -> Any:
        for handle in (pointer, value, mask):  # it takes all of them for contiguous, also what it has broadcast
            handle.data = np.ascontiguousarray(handle.data)
        return plain(self, operation, pointer, value, mask, *args)

    def create_dot(self: Any, a: Any, b: Any, *args: Any) -> Any:
        # it multiplies their bits
        a, b = (TensorHandle(_widened(one.data), tl.float32) if one.dtype == tl.bfloat16 else one for one in (a, b))
        return product(self, a, b, *args)

    dot = mock.patch.object(InterpreterBuilder, "create_dot", create_dot)
    atomic = mock.patch.object(InterpreterBuilder, "create_atomic_rmw", create_atomic_rmw)
    nothing = mock.patch.object(triton_helpers, "set_driver_to_gpu", return_value=None)
    with mock.patch.object(triton_helpers, "libdevice", _Libdevice()), nothing, atomic, dot:
        yield


def _widened(bits: Any) -> Any:
    """bfloat16, as the upper half of float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


class _Libdevice:
    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = FUNCTIONS.get(name) or getattr(np, name)

        def call(*args: Any) -> Any:
            import triton.language as tl
            from triton.runtime.interpreter import TensorHandle

            first = next(arg for arg in args if isinstance(arg, tl.tensor))
            data = [arg.handle.data if isinstance(arg, tl.tensor) else getattr(arg, "value", arg) for arg in args]
            found = np.asarray(function(*data)).astype(first.handle.data.dtype)
            kind = tl.block_type(first.type.scalar, list(found.shape)) if first.type.is_block() else first.type
            return tl.tensor(TensorHandle(found, first.handle.dtype), kind)

        return call
