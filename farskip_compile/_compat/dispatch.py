# SPDX-License-Identifier: Apache-2.0
"""Watching the operators that run eagerly, and running some unwatched.

Contract: `OperatorMode` is a base class, within an object of which each operator passes `__torch_dispatch__`;
`without_modes` is a context in which no such object, of whatever class, sees an operator.
"""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode as OperatorMode
from torch.utils._python_dispatch import _disable_current_modes as without_modes

__all__ = ["OperatorMode", "without_modes"]
