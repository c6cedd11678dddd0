# SPDX-License-Identifier: Apache-2.0
"""Watching the operators that run eagerly.

Contract: `OperatorMode` is a base class, within an object of which each operator passes `__torch_dispatch__`.
"""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode as OperatorMode

__all__ = ["OperatorMode"]
