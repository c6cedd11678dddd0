# SPDX-License-Identifier: Apache-2.0
"""Name the wiring that a table shows: standard, parallel, shortcut, or a FarSkip form.

Contract: looks at the cells only. A parallel block and the connectivity `mlp` are the same cells (each feed-forward
sub-block reads the stream without the attention of its layer), so they share a name.
"""

from __future__ import annotations

from farskip_compile.base.choices import ConnectivityName
from farskip_compile.passes.residual.table import Table, TermKind
from farskip_compile.passes.rewire.request import is_shortcut, rule


def classify_wiring(table: Table) -> str:
    """Return `standard`, `attention`, `mlp (parallel block)`, `full`, `lag2`, `ladder`, `shortcut MoE`, or `other`."""
    routed = [row for row in table.rows if row.kind is TermKind.ROUTED]
    if routed and all(is_shortcut(table, row) for row in routed):
        return "shortcut MoE"
    attention = _share(table, "attention")
    feed_forward = _share(table, "mlp")
    names = {
        ("none", "none"): "standard",
        ("none", "all"): "mlp (parallel block)",
        ("all", "none"): "attention",
        ("all", "all"): "full",
    }
    skipped = {row.name: table.earlier(row) - row.reads for row in table.rows}
    if all(not skipped[row.name] - rule(table, row, "full") for row in table.rows):
        return names.get((attention, feed_forward), "other")
    further: tuple[ConnectivityName, ...] = ("lag2", "ladder")
    asked = {name: {row.name: rule(table, row, name) & table.earlier(row) for row in table.rows} for name in further}
    return next((name for name in further if asked[name] == skipped), "other")


def _share(table: Table, connectivity: str) -> str:
    rules = [(row, rule(table, row, connectivity)) for row in table.rows]  # type: ignore[arg-type]
    concerned = [(row, terms) for row, terms in rules if terms]
    left_out = [not terms & row.reads for row, terms in concerned]
    if not concerned:
        return "none"
    return "all" if all(left_out) else "some" if any(left_out) else "none"
