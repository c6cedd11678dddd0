# SPDX-License-Identifier: Apache-2.0
"""Faults in the passes that rewire: one line of a function is another. Where the table that the compile is verified
against comes from a faulty pass, `farskip_compile.testing` must see it."""

from __future__ import annotations

from farskip_compile.compiler import pipeline
from farskip_compile.passes import residual, rewire
from farskip_compile.passes.graph import dead
from farskip_compile.passes.normalize import single_assignment as assignment
from farskip_compile.passes.rewire import merge_reductions, request, split_collectives, substitute
from tests.mutation.bench import Fault, in_pass
from tests.mutation.models import (
    BIASED,
    DECODING,
    DENSE_FIRST,
    IN_PLACE,
    MOE_FIRST,
    PARALLEL,
    REDUCING,
    ROUNDED,
    SCALED,
    SIGNED,
    TRAINING,
)

IN_RANGE = "layers[0] <= row.layer <= layers[1]"

FAULTS: list[Fault] = [
    in_pass("rule: attention leaves out an older layer", request.rule, "row.layer - 1", "row.layer - 2"),
    in_pass(
        "rule: n misses s too", request._routed, "term.kind is TermKind.ROUTED", "term.kind is not TermKind.EMBEDDING"
    ),
    in_pass(
        "rule: attention reads x under `full`",
        request.rule,
        'connectivity == "mlp"',
        'connectivity in ("mlp", "full")',
    ),
    in_pass(
        "rule: MoE reads x + a under `full`",
        request.rule,
        'connectivity == "attention"',
        'connectivity in ("attention", "full")',
    ),
    in_pass(
        "rule: `attention` and `mlp` exchanged",
        request.rule,
        "    if row.kind.mixes_tokens:",
        '    connectivity = {"attention": "mlp", "mlp": "attention"}.get(connectivity, connectivity)\n'
        "    if row.kind.mixes_tokens:",
        wish="attention",
    ),
    in_pass(
        "rule: dense layer not parallel",
        request.rule,
        'connectivity == "attention"',
        'connectivity == "attention" or row.kind is TermKind.DENSE',
        DENSE_FIRST,
    ),
    in_pass(
        "off-by-one range: end exclusive",
        request._by_rule,
        IN_RANGE,
        IN_RANGE.replace("<= lay", "< lay"),
        layers=(1, 2),
    ),
    in_pass(
        "off-by-one range: layers counted from 1",
        request._by_rule,
        IN_RANGE,
        IN_RANGE.replace("row.layer", "row.layer + 1"),
        layers=(1, 2),
    ),
    in_pass(
        "export rule forgotten",
        request._by_rule,
        "if not terms or (",
        "if not terms or (row.kind.mixes_tokens and layers is not None and row.layer == layers[0]) or (",
        layers=(1, 2),
    ),
    in_pass(
        "wish: the last layer is left out",
        request._by_rule,
        "for row in table.rows:\n",
        "for row in table.rows[:-2]:\n",
    ),
    in_pass(
        "wish: only the first layer that matches",
        request.ask,
        "    return RewireRequest(left_out, tuple(already))",
        "    return RewireRequest(dict(list(left_out.items())[:2]), tuple(already))",
    ),
    in_pass(
        "rewired in inference only",
        pipeline._request_for,
        "GraphRequest(asked, config.layers)",
        'GraphRequest("none" if __import__("torch").is_grad_enabled() else asked, config.layers)',
        TRAINING,
    ),
    in_pass(
        "layers begin one sub-block late",
        residual._assign_layers,
        "if group.mixes and position > 0",
        "if not group.mixes and position > 0",
    ),
    in_pass(
        "parallel block treated as serial",
        residual._parallel_in_order,
        "if parallel and",
        "if not parallel and",
        MOE_FIRST,
    ),
    in_pass("shared experts taken for routed ones", residual._with_shared, "TermKind.SHARED if", "TermKind.ROUTED if"),
    in_pass("writes in place not followed", assignment.assign_once, "names[arg])", "arg)", IN_PLACE),
    in_pass(
        "rewire: last row forgotten",
        rewire.rewire,
        "for row in whole.table.rows:\n",
        "for row in whole.table.rows[:-1]:\n",
    ),
    in_pass(
        "rewire: shared norm not copied",
        rewire._Edit._redirect,
        "all(self.left_out.get(reader)",
        "any(self.left_out.get(reader)",
        PARALLEL,
    ),
    in_pass(
        "rewire: writes without readers erased",
        dead.erase_dead,
        "if node.users or node not in used_before:\n            continue\n        if comms.is_collective(node) or "
        "comms.is_wait(node) or effects.is_pure(node):",
        'if not node.users and node.op.startswith("call"):',
        DECODING,
    ),
    in_pass(
        "substitute: multiplier forgotten",
        substitute.Substitution._rebuild,
        "    replacement = {",
        "    if len(parts) == 1:\n        return parts[0]\n    replacement = {",
        SCALED,
    ),
    in_pass(
        "substitute: rounding forgotten",
        substitute.Substitution._rebuild,
        "    replacement = {",
        "    if len(parts) == 1:\n        return parts[0]\n    replacement = {",
        ROUNDED,
    ),
    in_pass(
        "substitute: sign forgotten",
        substitute.Substitution._rebuild,
        'parts[0] is None and ops.op_name(node) == "sub"',
        "False",
        SIGNED,
    ),
    in_pass(
        "substitute: keeps what is to be left out",
        substitute.Substitution.without,
        "dropped = dropped & terms",
        "dropped = (terms - dropped) if terms - dropped and 0 not in terms else dropped & terms",
    ),
    in_pass(
        "split_sums: one part not reduced",
        split_collectives.split_sums,
        "    _launch_early(stream, kept)\n",
        "    kept = kept.all_input_nodes[0].all_input_nodes[0]\n",
        REDUCING,
    ),
    in_pass("split_sums: a bias in both parts", split_collectives.split_sums, ", bare=True", "", BIASED),
    in_pass(
        "merge_reductions: attention reduced twice",
        merge_reductions._merge,
        "early = _add(graph, renamed.get(pair.before, pair.before), reduced, like=pair.side)",
        "early = _add(graph, _add(graph, renamed.get(pair.before, pair.before), pair.attention, like=pair.side), "
        "reduced, like=pair.side)",
        REDUCING,
        merge=True,
    ),
]
