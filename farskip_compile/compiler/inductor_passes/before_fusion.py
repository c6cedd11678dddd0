# SPDX-License-Identifier: Apache-2.0
"""The pass on Inductor's kernels before they are fused."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from farskip_compile._compat import inductor
from farskip_compile.passes.contract import Stage
from farskip_compile.passes.runner import PassRunner
from farskip_compile.passes.schedule.pins import pin_products


def pin_before_fusion(disabled: Collection[str], kernels: Sequence[inductor.Kernel]) -> None:
    """Pin the products among `kernels`, unless `disabled` names that pass. The pins end with fusion."""
    passes = PassRunner(Stage.BEFORE_FUSION, kernels, disabled)
    if passes.is_enabled("pin_products"):
        passes.apply("pin_products", pin_products, kernels)
