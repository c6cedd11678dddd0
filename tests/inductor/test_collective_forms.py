# SPDX-License-Identifier: Apache-2.0
"""However a model writes a collective, it ends as a launch and a wait with compute between, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from tests.inductor.test_generated_order import get_code_of, hiding_steps, quick_link, steps

# tensors this small are all of the peak; there is no stack to rewire, and products around an exchange look like a part
OPTIONS: dict[str, Any] = {"connectivity": "none", "profile": quick_link(), "memory_increase": 4.0}

Form = Callable[[torch.Tensor], torch.Tensor]


def in_place_all_reduce(x: torch.Tensor) -> torch.Tensor:
    x = x * 2
    dist.all_reduce(x)
    return x


def into(collective: Callable[..., Any], rows: int) -> Form:
    """A `torch.distributed` call that writes its result of so many rows into a new tensor."""

    def form(x: torch.Tensor) -> torch.Tensor:
        result = x.new_empty(rows, x.shape[1])
        collective(result, x)
        return result

    return form


MESH: list[DeviceMesh] = []
"""Made outside of the compiled code, which can't make one."""


@pytest.fixture
def mesh(two_ranks: Any) -> Iterator[None]:
    MESH[:] = [init_device_mesh("cpu", (2,))]
    yield
    MESH.clear()


def redistributed(before: Placement, after: Placement) -> Form:
    def form(x: torch.Tensor) -> torch.Tensor:
        mesh = MESH[0]
        return DTensor.from_local(x, mesh, [before]).redistribute(mesh, [after]).to_local()

    return form


def group() -> Any:
    return dist.group.WORLD


FORMS: dict[str, tuple[Form, str, str]] = {
    # name: (form, launch of the forward graph, of the backward graph: "" where the gradient is replicated already)
    "dist.all_to_all_single": (into(dist.all_to_all_single, 8), "all_to_all_single", "all_to_all_single"),
    "dist.all_reduce": (in_place_all_reduce, "all_reduce_", "all_reduce_"),
    "dist.all_gather_into_tensor": (
        into(dist.all_gather_into_tensor, 16), "all_gather_into_tensor", "reduce_scatter_tensor",
    ),
    "dist.reduce_scatter_tensor": (
        into(dist.reduce_scatter_tensor, 4), "reduce_scatter_tensor", "all_gather_into_tensor",
    ),
    "functional all_to_all_single": (
        lambda x: funcol.all_to_all_single(x, None, None, group()), "all_to_all_single", "all_to_all_single",
    ),
    "functional all_reduce": (lambda x: funcol.all_reduce(x, "sum", group()), "all_reduce_", "all_reduce_"),
    "functional all_gather": (
        lambda x: funcol.all_gather_tensor(x, 0, group()), "all_gather_into_tensor", "reduce_scatter_tensor",
    ),
    "functional reduce_scatter": (
        lambda x: funcol.reduce_scatter_tensor(x, "sum", 0, group()), "reduce_scatter_tensor", "all_gather_into_tensor",
    ),
    "autograd all_to_all_single": (
        lambda x: funcol.all_to_all_single_autograd(x, None, None, group()), "all_to_all_single", "all_to_all_single",
    ),
    "autograd all_gather": (
        lambda x: funcol.all_gather_tensor_autograd(x, 0, group()), "all_gather_into_tensor", "reduce_scatter_tensor",
    ),
    "autograd reduce_scatter": (
        lambda x: funcol.reduce_scatter_tensor_autograd(x, "sum", 0, group()),
        "reduce_scatter_tensor", "all_gather_into_tensor",
    ),
    "double wait": (
        lambda x: funcol.wait_tensor(funcol.wait_tensor(funcol.all_to_all_single(x, None, None, group()))),
        "all_to_all_single", "all_to_all_single",
    ),
    "DTensor Shard(0) to Replicate": (redistributed(Shard(0), Replicate()), "all_gather_into_tensor", ""),
    "DTensor Partial to Replicate": (redistributed(Partial(), Replicate()), "all_reduce_", ""),
    "DTensor Partial to Shard(0)": (
        redistributed(Partial(), Shard(0)), "reduce_scatter_tensor", "all_gather_into_tensor",
    ),
    # gloo has no all-to-all that DTensor would use: it gathers, and takes its part
    "DTensor Shard(0) to Shard(1)": (
        redistributed(Shard(0), Shard(1)), "all_gather_into_tensor", "all_gather_into_tensor",
    ),
}  # fmt: skip


class Model(nn.Module):
    """A collective between two products, and beside it a branch that is independent of it."""

    def __init__(self, form: Form, columns: int = 16) -> None:
        super().__init__()
        self.form = form
        self.first, self.beside = (nn.Parameter(torch.randn(16, 16)) for _ in range(2))
        self.last = nn.Parameter(torch.randn(columns, 16))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        exchanged = self.form(x @ self.first)
        beside = torch.relu(x @ self.beside) @ self.beside
        return exchanged @ self.last, beside


@pytest.mark.usefixtures("mesh")
@pytest.mark.parametrize("name", FORMS)
def test_every_form_ends_as_launch_compute_wait(name: str) -> None:
    form, *launches = FORMS[name]
    model = Model(form, 8 if name.endswith("Shard(1)") else 16)
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options=OPTIONS)
    with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
        programs = [steps(code) for code in get_code_of(compiled, torch.randn(8, 16))]
    for program, launch in zip(programs, launches, strict=True):
        assert program.count("wait") == bool(launch), program
        if launch:
            assert program.count(launch) == 1, program
            assert hiding_steps(program)[0] >= 1, program
