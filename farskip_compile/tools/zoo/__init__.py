# SPDX-License-Identifier: Apache-2.0
"""Every Mixture-of-Experts language model of the installed `transformers`, as tiny random models for tests and demos.

`moe_families()` lists what there is, `build_tiny(family)` builds one of them. Nothing here knows a model by name.
`transformers` is imported when a function is called, not before.
"""

from __future__ import annotations

from farskip_compile.tools.zoo.families import moe_families
from farskip_compile.tools.zoo.tiny import build_tiny

__all__ = [
    "build_tiny",
    "moe_families",
]
