# SPDX-License-Identifier: Apache-2.0
"""Expert parallelism of transformers, in a form that torch.compile captures whole.

    register_expert_parallel()
    config = DistributedConfig(tp_size=2, ep_size=2, ep_implementation="farskip_all_to_all")
    model = AutoModelForCausalLM.from_pretrained(path, distributed_config=config)

transformers' own `all_to_all` asks on the host whether this rank got any token, and a graph can't branch on what only
the data knows: `fullgraph=True` fails there. The implementation here has no such branch when it is compiled, and gives
the same results and gradients, bit for bit, also on a rank that gets no token.

Contract: known to transformers under the name `farskip_all_to_all`, through its own registry; a drop-in for
`all_to_all` (any mesh, eager or compiled). Nothing is patched, and transformers is imported only when a function is
called.

Algorithm, for each layer:
1. Ranks that share a batch take a slice of the rows each, so that no token is computed twice.
2. Sort the (token, expert) pairs by expert; tell every rank how many it gets for each of its experts; read the sizes
   on the host (one synchronisation, two numbers for each rank).
3. All-to-all of the rows; run the local experts; all-to-all back.
4. Undo the sort, apply the routing weights, sum; gather the slices.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from farskip_compile._compat.collectives import all_to_all_single, wait_tensor
from farskip_compile.errors import ConfigError
from farskip_compile.tools.prepare.changes import Change

NAME = "farskip_all_to_all"
"""The name of the implementation, for `DistributedConfig(ep_implementation=...)`."""


def register_expert_parallel() -> str:
    """Let `DistributedConfig(ep_implementation="farskip_all_to_all")` find the implementation. Return its name.

    Raises:
        ConfigError: transformers is missing, or too old to have a registry.
    """
    interface = _interface()
    if interface is None:
        raise ConfigError(
            "there is no transformers with a registry of expert-parallel implementations",
            way_out='pip install "transformers>=5.22" accelerate',
        )
    interface.register(NAME, _implementation())
    return NAME


def switch_expert_parallel(model: nn.Module) -> list[Change]:
    """Replace transformers' `all_to_all` in a model that is loaded already, also where `auto` would choose it.

    Args:
        model: the model; the implementations that its modules hold are changed in place, not its parameters.

    Returns:
        The changes; none where transformers has no registry of implementations.
    """
    if _interface() is None:
        return []  # a transformers without the registry has no such implementation either
    from transformers.distributed.expert_parallel import AllToAllEP

    changes = []
    for name, module in model.named_modules():
        for found in _implementations_of(module):
            for one in (found, *vars(found).values()):  # `auto` holds the ones that it chooses from
                if type(one) is AllToAllEP:
                    one.__class__ = _implementation()  # the same state: only how it is called differs
                    changes.append(
                        Change(
                            f"exchange of tokens of {name}",
                            "all_to_all of transformers",
                            NAME,
                            "it branches on whether this rank got any token, which no graph can",
                            functools.partial(setattr, one, "__class__", AllToAllEP),
                        )
                    )
    return changes


def _implementations_of(module: nn.Module) -> Iterator[Any]:
    """Yield the expert-parallel implementations that the forward of `module` was replaced by.

    transformers keeps them in a closure and nowhere else.
    """
    from transformers.distributed.expert_parallel import EPImplementation

    for cell in getattr(vars(module).get("forward"), "__closure__", None) or ():
        if isinstance(cell.cell_contents, EPImplementation):
            yield cell.cell_contents


def _interface() -> Any | None:
    """Return the registry of transformers, or None if there is none."""
    try:
        from transformers.distributed.expert_parallel import EPImplementationInterface
    except ImportError:
        return None
    return EPImplementationInterface


@functools.cache
def _implementation() -> type:
    """Return the class, which is made when asked for, because its base class is transformers'."""
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from transformers.distributed.expert_parallel import EPImplementation

    class AllToAllWithoutBranch(EPImplementation):
        """The implementation that this module describes."""

        def __call__(
            self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
        ) -> torch.Tensor:
            """Return the outputs [tokens, D] for tokens [tokens, D], chosen experts and their weights [tokens, k]."""
            if self.tp_mesh.size() == 1:
                return self._exchange(hidden_states, top_k_index, top_k_weights)
            slices = (self._slice(value) for value in (hidden_states, top_k_index, top_k_weights))
            output = self._exchange(*slices).contiguous()
            shape, stride = hidden_states.shape, (output.shape[1], 1)
            shards = DTensor.from_local(output, self.tp_mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
            return shards.full_tensor()

        def _slice(self, value: torch.Tensor) -> torch.Tensor:
            """Return this rank's rows; the gradient is gathered from all ranks that share the batch."""
            replicated = DTensor.from_local(value, self.tp_mesh, [Replicate()], run_check=False)
            return replicated.redistribute(placements=[Shard(0)]).to_local()

        def _exchange(self, rows: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            group, ranks, k = self.ep_mesh.get_group(), self.ep_mesh.size(), chosen.shape[-1]
            local_experts: Any = self.num_local_experts
            expert = chosen.flatten()  # [tokens * k]
            order = expert.argsort(stable=True)  # experts of one rank are neighbours, so this groups by rank, too
            counts = expert.new_zeros(ranks * local_experts).scatter_add(0, expert, torch.ones_like(expert))
            counts = counts.view(ranks, local_experts)
            incoming = wait_tensor(all_to_all_single(counts, None, None, group))  # [ranks, local experts]
            sent, received = torch.stack([counts.sum(1), incoming.sum(1)]).tolist()  # waits for the device

            tokens = wait_tensor(all_to_all_single(rows[order // k], received, sent, group))
            local = torch.arange(local_experts, device=rows.device).repeat(ranks)
            local = local.repeat_interleave(incoming.flatten(), output_size=sum(received)).unsqueeze(-1)
            results = self._run_experts(tokens, local)

            back = wait_tensor(all_to_all_single(results, sent, received, group))
            back = torch.zeros_like(back).index_copy(0, order, back)
            return (back.view(*weights.shape, back.shape[-1]) * weights.unsqueeze(-1)).sum(1)

        def _run_experts(self, tokens: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
            """Run one expert for each row, unweighted."""
            if torch.compiler.is_compiling() or tokens.shape[0] > 0:
                return self.experts_forward(tokens, local, torch.ones_like(local, dtype=tokens.dtype))
            # A loop over the experts that got tokens does nothing here and returns a constant; then this rank would
            # not take part in the all-to-all of the backward pass. A graph holds no such loop.
            row = tokens.sum(0, keepdim=True)
            return self.experts_forward(row, local.new_zeros(1, 1), row.new_ones(1, 1))[:0]

    return AllToAllWithoutBranch
