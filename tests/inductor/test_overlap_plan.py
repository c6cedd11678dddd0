# SPDX-License-Identifier: Apache-2.0
"""For which device a graph is scheduled."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from farskip_compile.compiler.config import FarSkipConfig, resolve
from farskip_compile.compiler.inductor_passes.plan import make_plan
from farskip_compile.costs import default_profile


@pytest.mark.usefixtures("two_ranks")
def test_a_tensor_on_meta_is_no_device() -> None:
    """Tensor-parallel layers of transformers ask such a tensor for its stride."""

    graph = fx.Graph()
    graph.placeholder("x").meta["example_value"] = torch.ones(3)
    graph.call_function(torch.ones, (3,), {"device": "meta"}).meta["example_value"] = torch.ones(3, device="meta")
    plan = make_plan(resolve(FarSkipConfig()), fx.GraphModule({}, graph))
    assert plan is not None
    assert plan.profile == default_profile("cpu")
