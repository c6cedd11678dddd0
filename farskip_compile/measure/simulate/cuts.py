# SPDX-License-Identifier: Apache-2.0
"""Tensor parallelism by shapes: the part of each matrix on one rank, and the sums over ranks.

In:    a model of transformers on fake tensors, its plan for tensor parallelism, and the ranks.
Out:   the same model with the matrices of one rank, and one all-reduce after each sub-block, as in serving engines:
       after the attention's output, after a dense feed-forward, after a whole Mixture-of-Experts block (shared and
       routed experts are summed first).
Never: holds a value; nothing is ever run. Cuts the experts (`experts`), or the embedding, of which a step reads next to
       nothing.

transformers' own tensor parallelism uses DTensors, reduces shared and routed experts separately, and has no
data-parallel attention without FSDP. Its plans name the matrices: `colwise` is cut along the outputs, `rowwise` along
the inputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from farskip_compile._compat.collectives import all_reduce
from farskip_compile.errors import ConfigError
from farskip_compile.measure.simulate.experts import is_experts

TensorParallelGroup = torch.distributed.ProcessGroup
OUTPUTS, INPUTS = ("colwise", "colwise_gather_output", "colwise_rep"), ("rowwise", "rowwise_rep")


def cut_matrices(model: nn.Module, plan: Mapping[str, str], group: TensorParallelGroup, *, reduce_blocks: bool) -> None:
    """Cut the matrices of `model`, in place, to those of one rank.

    Args:
        model: of transformers, on fake tensors.
        plan: transformers' style by name of a module, with `*` for the number of a layer.
        group: the ranks that share the matrices.
        reduce_blocks: reduce after a whole Mixture-of-Experts block, whose routed experts return partial sums, too;
            otherwise after its shared experts alone.

    Raises:
        ConfigError: a matrix can't be cut this way.
    """
    blocks = {name: module for name, module in model.named_modules() if any(map(is_experts, module.children()))}
    for name, module in list(model.named_modules()):
        style = plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))
        if not isinstance(module, nn.Linear) or style not in (*OUTPUTS, *INPUTS):
            continue
        if style in OUTPUTS:
            _keep_part(module, 0, _outputs(model, name, module, group.size()))
            continue
        if module.in_features % group.size():
            raise _refused(name, module.in_features, group.size())
        _keep_part(module, 1, module.in_features // group.size())
        if not (reduce_blocks and any(name.startswith(f"{block}.") for block in blocks)):
            _reduce_output(module, group)
    if reduce_blocks:
        for block in blocks.values():
            _reduce_output(block, group)


def _outputs(model: nn.Module, name: str, module: nn.Linear, ranks: int) -> int:
    """Return the outputs of one rank: whole heads, and one head of keys or values if there are fewer than ranks."""
    owner = model.get_submodule(name.rpartition(".")[0])
    width = getattr(owner, "qk_head_dim", None) if name.endswith(("q_proj", "q_b_proj")) else None
    if width is None and name.endswith("kv_b_proj"):
        width = owner.qk_nope_head_dim + owner.v_head_dim  # type: ignore[operator]
    width = int(width or getattr(owner, "head_dim", 1))  # type: ignore[arg-type]
    parts, rest = divmod(module.out_features, width)
    if rest:
        parts, width = module.out_features, 1
    if name.endswith(("k_proj", "v_proj")) and parts < ranks and ranks % parts == 0:
        return width
    if parts % ranks:
        raise _refused(name, parts, ranks)
    return parts // ranks * width


def _refused(name: str, parts: int, ranks: int) -> ConfigError:
    return ConfigError(
        f"{parts} parts of {name} can't be cut among {ranks} ranks",
        way_out=f"a tp that divides {parts}, or data-parallel attention: tp 1",
    )


def _keep_part(module: nn.Linear, dim: int, size: int) -> None:
    shape = list(module.weight.shape)
    shape[dim] = size
    module.weight = nn.Parameter(module.weight.new_empty(shape), requires_grad=module.weight.requires_grad)
    if dim == 0:
        module.out_features = size
        if module.bias is not None:
            module.bias = nn.Parameter(module.bias.new_empty(size), requires_grad=module.bias.requires_grad)
    else:
        module.in_features = size


def _reduce_output(module: nn.Module, group: TensorParallelGroup) -> None:
    """Sum the output of `module`, or the first of its outputs, over the ranks."""
    run: Callable[..., Any] = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        found = run(*args, **kwargs)
        if isinstance(found, tuple):
            return (all_reduce(found[0], "sum", group), *found[1:])
        return all_reduce(found, "sum", group)

    module.forward = forward
