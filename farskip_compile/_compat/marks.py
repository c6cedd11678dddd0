# SPDX-License-Identifier: Apache-2.0
"""Marks on the nodes of a graph: of ours, those that `_compat` reads, too, and of PyTorch, those that we read."""

from __future__ import annotations

COMMUNICATES = "farskip_communicates"
"""Key of a node's `meta`: the part of a collective that its operator was declared to be, `launch`, `wait` or
`blocking`. Inductor's kernels name the nodes that they come from."""
EAGER_INPUTS = "eager_input_vals"
"""Key of a node's `meta`, of torch 2.11 to 2.15: arguments that it was traced with; Inductor keeps their strides."""
