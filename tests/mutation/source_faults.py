# SPDX-License-Identifier: Apache-2.0
"""Faults in the source itself, for files that no table of faulty graphs covers: one line is changed, a test must fail.

Contract: `FAULTS` is data: a file, what stands in it, what is put in its place, and the tests that must notice. It runs
as a program (`python -m tests.mutation.source_faults [--only TEXT]`): for each fault, a copy of the tree with that one
change, and the nearest tests on it. It ends with the faults that nobody noticed, and fails if there are any. The tests
of this file only see to it that each fault still finds its place, once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutation.further_faults import FURTHER
from tests.mutation.source_fault import SourceFault

ROOT = Path(__file__).parents[2]
ACCOUNT = "farskip_compile/verify/account/"
ROWS = "farskip_compile/verify/rows/"
TOKENS = "farskip_compile/verify/tokens/"
SEEN_BY_THE_ACCOUNT = "tests/verify tests/handwritten"


FAULTS = (
    # what is in no sub-block
    SourceFault(ACCOUNT + "whole.py", "    check_kinds(claims, stream.base, rows)\n", "", SEEN_BY_THE_ACCOUNT),
    SourceFault(
        ACCOUNT + "whole.py", "        check_fragment(graph)\n", "", "tests/verify tests/test_layers_one_by_one.py"
    ),
    SourceFault(ACCOUNT + "outside.py", "    sides.refuse_layers()  # 2\n", "", SEEN_BY_THE_ACCOUNT),
    SourceFault(ACCOUNT + "outside.py", "    sides.refuse_second_stacks()  # 3\n", "", SEEN_BY_THE_ACCOUNT),
    SourceFault(ACCOUNT + "outside.py", '), "in front of")', ') and None, "in front of")', SEEN_BY_THE_ACCOUNT),
    SourceFault(ACCOUNT + "outside.py", '), "behind")', ') and None, "behind")', SEEN_BY_THE_ACCOUNT),
    SourceFault(ACCOUNT + "layers.py", "a in plain and b in weighted", "False", SEEN_BY_THE_ACCOUNT),
    SourceFault(ACCOUNT + "layers.py", "not combined.isdisjoint(inputs) or ", "", SEEN_BY_THE_ACCOUNT),
    SourceFault(
        ACCOUNT + "layers.py",
        "            if is_unknown(node) and has_weights(node):",
        "            if False:",
        SEEN_BY_THE_ACCOUNT,
    ),
    SourceFault(ACCOUNT + "weights.py", "if found.decided and", "if", SEEN_BY_THE_ACCOUNT),
    SourceFault(ACCOUNT + "fragment.py", "rows[node].state >= RowDependence.MIXED", "False", SEEN_BY_THE_ACCOUNT),
    # the kinds
    SourceFault(
        ACCOUNT + "kinds.py", "    if rows.state is RowDependence.UNKNOWN or (", "    if (", SEEN_BY_THE_ACCOUNT
    ),
    SourceFault(
        ACCOUNT + "kinds.py", "    if rows.state is RowDependence.MIXED:\n", "    if False:\n", SEEN_BY_THE_ACCOUNT
    ),
    SourceFault(
        ACCOUNT + "kinds.py", "    if rows.state is RowDependence.MOVED:\n", "    if False:\n", SEEN_BY_THE_ACCOUNT
    ),
    SourceFault(ACCOUNT + "kinds.py", "if rows.decided else None), at", "if False else None), at", SEEN_BY_THE_ACCOUNT),
    SourceFault(ACCOUNT + "kinds.py", "complaint is None and caches and", "False and", SEEN_BY_THE_ACCOUNT),
    SourceFault(
        ACCOUNT + "kinds.py", "rows.state is RowDependence.MIXED and not (", "False and not (", SEEN_BY_THE_ACCOUNT
    ),
    # the rows
    SourceFault(ROWS + "layout.py", "if tokens(here) and here != dim:", "if False:", SEEN_BY_THE_ACCOUNT),
    SourceFault(
        ROWS + "layout.py", "elif any(axis.token is not None for axis in group):", "elif False:", SEEN_BY_THE_ACCOUNT
    ),
    SourceFault(ROWS + "layout.py", "and left % size == 0", "", SEEN_BY_THE_ACCOUNT),
    SourceFault(ROWS + "state.py", " and not any(map(is_picked, found.layout))", "", SEEN_BY_THE_ACCOUNT),
    # picked rows
    SourceFault(
        ROWS + "moved.py", "if found.state is RowDependence.ROWS and index_of(", "if False and (", SEEN_BY_THE_ACCOUNT
    ),
    SourceFault(
        "passes/graph/operators.py",
        "Operator(E.REDUCE, at=1, cut=True, orders=True)",
        "Operator(E.SUM, at=1, cut=True, orders=True)",
        SEEN_BY_THE_ACCOUNT,
    ),
    SourceFault(ROWS + "moved.py", "layouts.tokens(own) or not layouts.tokens(dim)", "True", SEEN_BY_THE_ACCOUNT),
    SourceFault(
        ROWS + "moved.py",
        "        if not same_dim(value.stride(dim), 0) and",
        "        if False and",
        SEEN_BY_THE_ACCOUNT,
    ),
    SourceFault(
        ROWS + "moved.py", "        if place in dims or layouts.is_picked(dim)", "        if False", SEEN_BY_THE_ACCOUNT
    ),
    SourceFault(
        ROWS + "along.py", "range(value.dim()), value.shape) if value", "(), value.shape) if value", SEEN_BY_THE_ACCOUNT
    ),
    SourceFault(ROWS + "products.py", " or _every_with_every(rows, spelled, names_out)", "", SEEN_BY_THE_ACCOUNT),
    SourceFault(
        ROWS + "products.py", "(one.picked or one.decided) and _indices", "True or _indices", SEEN_BY_THE_ACCOUNT
    ),
    SourceFault(
        ROWS + "rules.py",
        "if never_mixes(node) else unknown",
        "if True else unknown",
        SEEN_BY_THE_ACCOUNT,
    ),
    SourceFault(
        ROWS + "rules.py", "DECISION if name and _is_decided_size(node, given) else FREE", "FREE", SEEN_BY_THE_ACCOUNT
    ),
    # what stands behind a network
    SourceFault(ACCOUNT + "kinds.py", "_is_behind_a_network(claim, rows)\n", "True\n", SEEN_BY_THE_ACCOUNT),
    SourceFault(
        ACCOUNT + "kinds.py",
        "not all(ops.is_scan(node) or never_mixes(node) for node in mixed)",
        "False",
        "tests/handwritten",
    ),
    SourceFault(
        "passes/residual/kinds.py",
        "            if applies or products[node] < 2:",
        "            if False:",
        "tests/handwritten",
    ),
    SourceFault(
        "passes/residual/kinds.py", "    return bool(results) and all(results)", "    return True", "tests/handwritten"
    ),
    SourceFault(ROWS + "picks.py", "        elif layouts.tokens(dim):\n", "        elif False:\n", SEEN_BY_THE_ACCOUNT),
    SourceFault(
        ROWS + "along.py",
        "    if added and not are_summed(node, rows, dims):\n",
        "    if False:\n",
        SEEN_BY_THE_ACCOUNT,
    ),
    SourceFault(
        ROWS + "along.py",
        "    if layouts.along(rows.layout, dims):\n        return _tuple(node, _chosen(",
        "    if False:\n        return _tuple(node, _chosen(",
        SEEN_BY_THE_ACCOUNT,
    ),
    SourceFault(
        ROWS + "products.py", "            if name not in names_out:\n", "            if False:\n", SEEN_BY_THE_ACCOUNT
    ),
    SourceFault(ROWS + "products.py", "one.decided or one.picked or", "one.decided or", SEEN_BY_THE_ACCOUNT),
    SourceFault(ROWS + "rules.py", "chosen and not is_contraction(node)", "False", SEEN_BY_THE_ACCOUNT),
    SourceFault(
        ROWS + "read.py", "            if memory is not None:\n", "            if False:\n", SEEN_BY_THE_ACCOUNT
    ),
    # what is added into a tensor
    SourceFault(
        "passes/normalize/accumulations.py",
        "        if base in empty:\n            empty.add(node)\n            continue\n",
        "",
        SEEN_BY_THE_ACCOUNT,
    ),
    SourceFault(
        "passes/normalize/accumulations.py",
        "return (node.target, node.args[1:], node.kwargs) if accumulates is True else None",
        "return node.target, node.args[1:], node.kwargs",
        "tests/passes/normalize tests/handwritten",
    ),
    SourceFault(
        "passes/normalize/accumulations.py",
        'return reduce == "sum" and include is True',
        "return True",
        "tests/passes/normalize tests/handwritten",
    ),
    SourceFault(
        "passes/normalize/puts.py",
        " or node.args[0] is not base",
        "",
        "tests/passes/normalize tests/handwritten",
    ),
    SourceFault(
        "passes/normalize/plain_calls.py",
        "        operands = operands[::-1]\n",
        "",
        "tests/passes/normalize tests/handwritten",
    ),
    SourceFault(
        "passes/normalize/single_assignment.py",
        '        new.meta = {**write.meta, "example_value": value}',
        '        new.meta = {**write.meta, "example_value": ops.tensor(base)}',
        "tests/passes/normalize tests/handwritten",
    ),
    SourceFault(
        "passes/normalize/single_assignment.py",
        " and same_dim(view.storage_offset(), base.storage_offset())",
        "",
        "tests/passes/normalize",
    ),
    SourceFault(
        "passes/residual/stack.py",
        "{owner[node]} if is_result(stack.facts, node) else set()",
        "set()",
        "tests/handwritten",
    ),
    SourceFault(
        "passes/residual/facts.py",
        "return node in products and is_projection(node) and not selected.isdisjoint(stream.inputs(node))",
        "return False",
        "tests/handwritten",
    ),
    # facts that a user declared
    SourceFault(
        "farskip_compile/declare/__init__.py",
        "    found.update({key: Declared.from_json(key, kind) for key, kind in kinds.items()})\n",
        "",
        "tests/verify/test_declared.py",
    ),
    SourceFault(
        "farskip_compile/declare/__init__.py",
        "(name, fact) != fact:",
        "(name, fact) is None:",
        "tests/verify/test_declared.py",
    ),
    SourceFault(
        "farskip_compile/declare/__init__.py",
        "(fact.name, fact) != fact:",
        "(fact.name, fact) is None:",
        "tests/verify/test_declared.py",
    ),
    SourceFault(
        "farskip_compile/compiler/config/__init__.py",
        '            "declared": {fact.name: fact.to_json() for fact in self.declared},\n',
        "",
        "tests/verify/test_declared.py",
    ),
    SourceFault(
        "passes/graph/declared.py",
        "= outputs[index]\n",
        "= outputs[0]\n",
        "tests/verify/test_declared.py",
    ),
    # adapters, and what ranks send
    SourceFault(
        "farskip_compile/manifest/adapters.py",
        "while more == 1 and end < len(parts) - 1 and parts[end] == parts[start]:",
        "while False:",
        "tests/models/test_adapters.py",
    ),
    SourceFault(
        "farskip_compile/manifest/adapters.py",
        "            found[name] = None\n",
        "            pass\n",
        "tests/models/test_adapters.py",
    ),
    SourceFault(
        "farskip_compile/tools/prepare/adapters.py",
        "self.disable_adapters or self.merged or",
        "self.merged or",
        "tests/models/test_adapters.py",
    ),
    SourceFault(
        "farskip_compile/records/announcement.py", "if len(set(shares)) <= 1 else None", "", "tests/ranks/test_agree.py"
    ),
    SourceFault(
        "farskip_compile/compiler/ranks/place.py",
        'client.has(got(f"{base}/{ANY}", rank))',
        "False",
        "tests/ranks/test_agree.py",
    ),
    SourceFault(
        "farskip_compile/compiler/backend.py",
        "        if in_compiled_autograd():",
        "        if False:",
        "tests/test_compiled_autograd.py",
    ),
    SourceFault(
        "passes/residual/facts.py", " and node not in stream.flow.after", "", "tests/handwritten/test_attention.py"
    ),
    # what research on this code found unnoticed
    SourceFault(
        "farskip_compile/verify/rewiring.py",
        "    _compare_effects(program, before.wiring.program)\n",
        "",
        "tests/mutation/test_kill_table.py",
    ),
    SourceFault(
        "passes/rewire/__init__.py",
        "self.left_out.get(reader) == self.left_out[row.name]",
        "self.left_out.get(reader)",
        "tests/passes/rewire",
    ),
    SourceFault("passes/residual/sums.py", ' or name == "neg"', "", "tests/passes/residual tests/handwritten"),
    SourceFault("passes/residual/sums.py", " and not effects.is_random(node)", "", "tests/passes/residual"),
    SourceFault(
        "passes/residual/stream.py",
        "        if core in known:\n",
        "        if False:\n",
        "tests/passes/residual",
    ),
    SourceFault(
        "passes/rewire/substitute.py",
        "[*parts, None] if bare and is_shift else parts",
        "parts",
        "tests/passes/rewire",
    ),
    # the proof of pieces by token
    SourceFault(
        TOKENS + "ranks.py",
        " and torch.equal(at_depth(one, depth).rows, at_depth(other, depth).rows)",
        "",
        "tests/verify/test_tokens.py",
    ),
    SourceFault(
        TOKENS + "labels.py", "mixed(rows, torch.arange(size)).sum(-1)", "rows.sum(-1)", "tests/verify/test_labels.py"
    ),
    SourceFault(
        TOKENS + "__init__.py",
        "if name not in old and is_exchange(node) and _kind(node) not in kinds:",
        "if False:",
        "tests/verify/test_tokens.py",
    ),
    SourceFault(
        TOKENS + "__init__.py",
        "if name not in old and any(effects.storage(arg) in written",
        "if False and any(effects.storage(arg) in written",
        "tests/verify/test_tokens.py",
    ),
    *FURTHER,
)


def place(fault: SourceFault) -> int:
    """How often what a fault replaces stands in its file."""
    return (ROOT / fault.file).read_text().count(fault.old)


def noticed(fault: SourceFault) -> bool:
    """Whether the tests of a fault fail on a tree that has it."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in ("farskip_compile", "passes", "models", "tests", "docs", "benchmarks"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, tree / name)
        for name in ("passes", "models"):
            if not (tree / "farskip_compile" / name).exists():
                (tree / "farskip_compile" / name).symlink_to(tree / name)
        file = tree / fault.file
        file.write_text(file.read_text().replace(fault.old, fault.new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *fault.tests.split()]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        return subprocess.run(command, cwd=tree, env=environment, capture_output=True, check=False).returncode == 1


def main() -> int:
    """Run all faults, or those whose file or text holds `--only`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    only = parser.parse_args().only
    survivors = []
    for number, fault in enumerate(FAULTS, 1):
        if only not in fault.file + fault.old:
            continue
        seen = noticed(fault)
        print(f"{number:3} {'noticed ' if seen else 'SURVIVES'} {fault.file}: {fault.old.strip()[:70]}", flush=True)
        survivors += [] if seen else [fault]
    print(f"{len(survivors)} survive")
    return len(survivors) > 0


if __name__ == "__main__":
    sys.exit(main())
