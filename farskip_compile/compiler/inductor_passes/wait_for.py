# SPDX-License-Identifier: Apache-2.0
"""The operator `farskip::wait_for(Tensor result, Tensor[] held, str operator) -> Tensor`: a wait of the user's own.

In:    what a launch has returned, what it reads and makes besides, and the name of the operator that waits for it.
Out:   what that operator returns.
Never: reads `held`. It is an argument so that Inductor knows that a collective in flight uses it until here: nothing is
       put there, nothing is written in place over it, and it is not freed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from farskip_compile.records.announcement import LIBRARY

# whether the user's own operator can be captured nobody knows here
LIBRARY.define("wait_for(Tensor result, Tensor[] held, str operator) -> Tensor", tags=(torch.Tag.cudagraph_unsafe,))


def _wait_for(result: Tensor, held: list[Tensor], operator: str) -> Tensor:
    namespace, _, name = operator.partition("::")
    found: Tensor = getattr(getattr(torch.ops, namespace), name)(result)
    return found


LIBRARY.impl("wait_for", _wait_for, "CompositeExplicitAutograd")
torch.library.register_fake("farskip::wait_for", _wait_for, lib=LIBRARY)
