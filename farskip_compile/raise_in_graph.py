"""Raise an error of this package from code that Dynamo may be tracing.

Contract: eager or traced, the user gets the same exception. A plain `raise` in traced code would become Dynamo's
"can't trace this constructor", without the reason in it. Arguments must be constants while tracing: text made from a
dynamic size is not, and then Dynamo's error names the line instead.
"""

from __future__ import annotations

from typing import NoReturn

import torch

from farskip_compile.errors import FarSkipError


@torch.compiler.assume_constant_result
def refuse(kind: type[FarSkipError], reason: str, way_out: str = "") -> NoReturn:
    """Raise `kind(reason, way_out=way_out)`."""
    raise kind(reason, way_out=way_out)
