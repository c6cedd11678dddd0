# SPDX-License-Identifier: Apache-2.0
"""Let Inductor compile down to the order of its kernels, and build and run nothing; a part of `_compat`.

Checked by running on torch 2.11.0, 2.13.0 and 2.15.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NoReturn

from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config
from torch._inductor.graph import GraphLowering

from farskip_compile._compat.inductor import Kernel
from farskip_compile._compat.names import EAGER_BACKWARD, NO_CACHES


class NotBuiltError(RuntimeError):
    """A program was called that was generated to be looked at."""


@contextmanager
def generating_only(
    take: Callable[[list[Kernel]], None], read: Callable[[str], object] = lambda code: None
) -> Iterator[None]:
    """Within the block, every graph that Inductor compiles ends with its program, which is not built.

    Backward graphs are compiled with their forward graphs, and no cache is asked or filled: so all passes run. What
    comes out of the compiler must not be called. Compiles of other threads are affected too. `take` is called with the
    kernels of each graph in the order in which they would run, forward before backward; `read` with its source.
    """

    def generate(graph: GraphLowering) -> Any:
        code, _ = graph.codegen_with_cpp_wrapper() if graph.cpp_wrapper else graph.codegen()
        read(code.value)
        take(list(graph.scheduler.nodes))
        # where CUDA graphs are captured, what would capture the parts of the program is handed to its runner
        runner = SimpleNamespace(partitions=[], recursively_apply_fns=lambda capture: None)
        return SimpleNamespace(call=_never, runner=runner)

    whole = GraphLowering.compile_to_module
    GraphLowering.compile_to_module = generate  # type: ignore[method-assign, assignment]
    try:
        with inductor_config.patch({NO_CACHES: True}), functorch_config.patch({EAGER_BACKWARD: True}):
            yield
    finally:
        GraphLowering.compile_to_module = whole  # type: ignore[method-assign]


def _never(*_: Any) -> NoReturn:
    raise NotBuiltError("this program was generated to be looked at, not to be run")
