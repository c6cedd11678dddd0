# SPDX-License-Identifier: Apache-2.0
"""The end of the default process group, after which the interpreter can end too.

In:    the default process group, joined by this process.
Out:   `leaving_process_group()`, a context that destroys the group: after all ranks have arrived, or at once if this
       rank fails.
Never: waits for other ranks after a failure: they may be gone.
Why:   a gloo thread still holds the tensors of a collective when the rank that waited for it goes on. If the thread is
       the last to let go of a tensor that Python has seen, it needs the GIL. Destroying the group usually joins the
       thread first, but Dynamo keeps every group that it has met alive (in the graphs it made, also after
       `torch.compiler.reset()`). Python runs for up to 5 ms before it hands over the GIL, which is enough to reach the
       end of a script. From then on CPython ends a thread that asks for the GIL by unwinding its stack, through C++
       code that must not be unwound: "terminate called without an active exception".
Algorithm: 1. a barrier: no rank breaks the connections of the others; 2. a moment without the GIL; 3. destroy.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

SETTLE_SECONDS = 0.05


@contextmanager
def leaving_process_group() -> Iterator[None]:
    """Destroy the default process group at the end of the block."""
    try:
        yield
        dist.barrier()  # 1
    finally:
        time.sleep(SETTLE_SECONDS)  # 2
        if dist.is_initialized():  # the block may have destroyed it
            dist.destroy_process_group()  # 3
