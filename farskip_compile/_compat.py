"""Every private or semi-private PyTorch API that this package touches, and nothing else.

Contract: other modules import these names from here only, so that a new PyTorch release is checked in one place.
Checked by running on torch 2.13.0; signatures compared by reading on 2.11, 2.12, 2.14 and 2.15.
"""

from __future__ import annotations

import torch.distributed._functional_collectives as functional_collectives

__all__ = ["functional_collectives"]
