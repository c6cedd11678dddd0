# SPDX-License-Identifier: Apache-2.0
"""More faults in the source: most of them in folders that had none, and the tests of which are quick."""

from __future__ import annotations

from tests.mutation.source_fault import SourceFault

SOLVE, MATCH = "tests/fold/test_solve.py", "tests/distill/test_mismatch.py"
COMPARING, READING = "tests/testing/test_comparing.py", "tests/reading/test_reading.py"
ORDERS = "tests/passes/schedule/test_search.py tests/passes/schedule/test_known_orders.py"
RULES = "tests/passes/schedule/test_list_order.py"

FURTHER = (
    # folds
    SourceFault(
        "farskip_compile/healing/fold/solve.py",
        "self.cross.addmm_(now.T, apart)",
        "self.cross.addmm_(now.T, original.to(self.own.dtype))",
        SOLVE,
    ),
    SourceFault("farskip_compile/healing/fold/solve.py", "- 2.0 * twice", "- twice", SOLVE),
    SourceFault(
        "farskip_compile/healing/fold/solve.py", "% CHOOSING == CHOOSING - 1", "% CHOOSING != CHOOSING - 1", SOLVE
    ),
    SourceFault("farskip_compile/healing/fold/solve.py", "+ ridge * scale)[", "+ ridge)[", SOLVE),
    SourceFault("farskip_compile/healing/fold/solve.py", "1.0 - errors[best] / before", "errors[best] / before", SOLVE),
    SourceFault("farskip_compile/healing/fold/solve.py", "mine.copy_(one + other)", "mine.copy_(one)", SOLVE),
    SourceFault("farskip_compile/healing/fold/solve.py", "min(errors, key=", "max(errors, key=", SOLVE),
    SourceFault(
        "farskip_compile/healing/fold/solve.py", "if not before or not self.fitted.error.item():", "if False:", SOLVE
    ),
    # the stream of a student
    SourceFault("farskip_compile/healing/distill/stream.py", "[chosen].detach())", "[chosen])", MATCH),
    SourceFault("farskip_compile/healing/distill/stream.py", "_wide(ours[:, :-1]", "_wide(ours[:, 1:]", MATCH),
    SourceFault("farskip_compile/healing/distill/stream.py", ".sum() / len(apart) if", ".sum() if", MATCH),
    SourceFault("farskip_compile/healing/distill/stream.py", ", strict=True) if total]", ", strict=True)]", MATCH),
    SourceFault(
        "farskip_compile/healing/distill/stream.py", "            hook.remove()\n", "            pass\n", MATCH
    ),
    SourceFault(
        "farskip_compile/healing/distill/stream.py", " or not chained or not streams", " or not streams", MATCH
    ),
    SourceFault("farskip_compile/healing/distill/stream.py", " or not streams:", ":", MATCH),
    SourceFault("farskip_compile/healing/distill/stream.py", "1.0 - step / config.steps", "1.0", MATCH),
    SourceFault("farskip_compile/healing/distill/stream.py", "else value.float()", "else value", MATCH),
    # what is read
    SourceFault("farskip_compile/base/reading/strict_json.py", "if len(found) < len(pairs):", "if False:", READING),
    SourceFault("farskip_compile/base/reading/strict_json.py", "not math.isfinite(", "math.isnan(", READING),
    SourceFault("farskip_compile/base/reading/strict_json.py", "len(text) > MOST_DIGITS", "False", READING),
    SourceFault(
        "farskip_compile/base/reading/strict_json.py", '_depth(_STRING.sub(b"", text)) > most', "True", READING
    ),
    SourceFault("farskip_compile/base/reading/files.py", "if not stat.S_ISREG(mode):", "if False:", READING),
    SourceFault(
        "farskip_compile/base/reading/files.py", "max(UNPACKED_ANYWAY, MOST_PACKED * file.tell())", "2**60", READING
    ),
    SourceFault("farskip_compile/base/reading/files.py", "if max(size, len(content)) > largest:", "if False:", READING),
    # assertions
    SourceFault("farskip_compile/testing/comparing.py", "finite | (left == right) |", "finite |", COMPARING),
    SourceFault("farskip_compile/testing/comparing.py", "or found.dtype != wanted.dtype", "", COMPARING),
    SourceFault("farskip_compile/testing/comparing.py", "key=lambda one: -one.by", "key=lambda one: one.by", COMPARING),
    SourceFault(
        "farskip_compile/testing/comparing.py", "right.abs().max().item(), least_scale,", "least_scale,", COMPARING
    ),
    SourceFault("farskip_compile/testing/comparing.py", "VANISHING * max(", "max(", COMPARING),
    SourceFault(
        "farskip_compile/testing/expected.py",
        "<= row.layer <= layers[1]",
        "<= row.layer < layers[1]",
        "tests/testing/test_wiring.py",
    ),
    SourceFault(
        "farskip_compile/testing/expected.py",
        "late.get(row.layer - 1, ())",
        "late.get(row.layer, ())",
        "tests/testing/test_wiring.py",
    ),
    SourceFault("farskip_compile/testing/expected.py", ", *lagging}", "}", "tests/testing/test_wiring.py"),
    SourceFault(
        "farskip_compile/testing/wiring.py", "    if wrong:\n", "    if False:\n", "tests/testing/test_wiring.py"
    ),
    # costs
    SourceFault(
        "farskip_compile/costs/memory.py",
        "if type(stride) is not int or stride != 0:",
        "if True:",
        "tests/costs/test_operators.py",
    ),
    SourceFault(
        "farskip_compile/costs/memory.py",
        "return sum(reads) + written, written",
        "return sum(reads), written",
        "tests/costs/test_operators.py",
    ),
    SourceFault("farskip_compile/costs/memory.py", "if source is not skipped]", "]", "tests/costs/test_operators.py"),
    SourceFault(
        "farskip_compile/costs/memory.py", "reads[-1] if reads else 0", "written", "tests/costs/test_operators.py"
    ),
    SourceFault(
        "farskip_compile/costs/curves.py",
        "math.log(size / axis[low]) / math.log(axis[low + 1] / axis[low])",
        "(size - axis[low]) / (axis[low + 1] - axis[low])",
        "tests/costs/test_curves.py",
    ),
    SourceFault("farskip_compile/costs/curves.py", "at * len(axis) + step", "at + step", "tests/costs/test_curves.py"),
    SourceFault(
        "farskip_compile/costs/curves.py", "first >= second for", "first > second for", "tests/costs/test_curves.py"
    ),
    SourceFault(
        "farskip_compile/costs/sizes.py",
        ".xreplace(values)), 0)",
        ".xreplace(values)), 1)",
        "tests/costs/test_sizes.py",
    ),
    # orders
    SourceFault("passes/schedule/list_scheduler.py", "self.waits[0][0] <= self.now", "False", RULES),
    SourceFault("passes/schedule/list_scheduler.py", "self.launches and self._fits_in_flight(", "False and (", ORDERS),
    SourceFault(
        "passes/schedule/lifetimes.py",
        "_Groups([(maker, *buffer.parts)",
        "_Groups([(maker,)",
        "tests/passes/schedule/test_memory.py",
    ),
    SourceFault(
        "passes/schedule/lifetimes.py", "not buffer.kept for", "True for", "tests/passes/schedule/test_memory.py"
    ),
    SourceFault(
        "passes/schedule/published.py",
        '"combined")[min(upstream.exchanges, 2)]',
        '"combined")[min(upstream.exchanges, 1)]',
        RULES,
    ),
    SourceFault(
        "passes/schedule/timeline.py", "exposed + (makespan - now)", "exposed", "tests/passes/schedule/test_timeline.py"
    ),
    SourceFault(
        "passes/schedule/timeline.py", "max(0.0, left - makespan)", "0.0", "tests/passes/schedule/test_timeline.py"
    ),
    SourceFault(
        "passes/schedule/fill.py",
        "            wanted |= needs[order[here]]\n",
        "",
        "tests/passes/schedule/test_fill.py",
    ),
    SourceFault(
        "passes/schedule/fill.py",
        "best * (1 - LEAST) and allowed(one)",
        "best * (1 - LEAST)",
        "tests/passes/schedule/test_fill.py",
    ),
    # streams in parts
    SourceFault(
        "passes/boundary/tail.py",
        " {node.meta.get(KEY)} {node.meta.get(FLIGHT)}",
        "",
        "tests/passes/boundary/test_keys.py",
    ),
    SourceFault(
        "passes/boundary/tail.py",
        "[*_lines(graph), str(autocast), str(dtype)]",
        "[*_lines(graph), str(dtype)]",
        "tests/passes/boundary/test_keys.py",
    ),
    SourceFault(
        "passes/boundary/in_pieces.py", "or is_piece(launch) or", "or", "tests/passes/boundary/test_in_pieces.py"
    ),
    SourceFault("passes/boundary/in_pieces.py", "found.count(-1) < 2", "True", "tests/passes/boundary/test_keys.py"),
    # manifests, guards, prepare
    SourceFault(
        "farskip_compile/manifest/fingerprint.py",
        "for name in sorted(shapes):",
        "for name in shapes:",
        "tests/manifest/test_fingerprint.py",
    ),
    SourceFault(
        "farskip_compile/manifest/fingerprint.py",
        " {name in self.used}\\n",
        "\\n",
        "tests/manifest/test_fingerprint.py",
    ),
    SourceFault(
        "farskip_compile/compiler/guard/report.py", "    if strict:\n", "    if False:\n", "tests/guard/test_report.py"
    ),
    SourceFault(
        "farskip_compile/compiler/guard/limit.py",
        "    is_other = not is_ours(found.compiler)\n",
        "    is_other = False\n",
        "tests/guard/test_limit.py",
    ),
    SourceFault(
        "farskip_compile/tools/prepare/same_function.py",
        "for training in (False, True):",
        "for training in (False,):",
        "tests/prepare/test_rewrite.py tests/prepare/test_loops.py",
    ),
    SourceFault(
        "farskip_compile/tools/prepare/same_function.py",
        "        module.train(training)\n",
        "",
        "tests/prepare/test_rewrite.py tests/prepare/test_loops.py",
    ),
    SourceFault(
        "farskip_compile/declare/__init__.py",
        "for key in sorted(found))",
        "for key in found)",
        "tests/verify/test_declared.py",
    ),
    SourceFault(
        "farskip_compile/declare/__init__.py",
        "for name in sorted(asked - {fact.name for fact in used}):",
        "for name in ():",
        "tests/verify/test_declared.py",
    ),
    SourceFault(
        "farskip_compile/compiler/guard/report.py",
        "    if known is None:\n",
        "    if True:\n",
        "tests/guard/test_report.py",
    ),
    SourceFault(
        "farskip_compile/compiler/guard/limit.py",
        "found.is_error or is_strict(",
        "True or is_strict(",
        "tests/guard/test_limit.py",
    ),
    # puts of sums, ends of streams, ranks
    SourceFault(
        "passes/normalize/puts.py",
        " and not subtracts:",
        ":",
        "tests/passes/normalize tests/handwritten/test_between.py",
    ),
    SourceFault(
        "passes/normalize/puts.py",
        "return as_indices(node.args[1]) == tuple(indices)",
        "return True",
        "tests/passes/normalize tests/handwritten/test_between.py",
    ),
    SourceFault(
        "farskip_compile/verify/account/ends.py",
        'any(known) if ops.op_name(node).rstrip("_") in JOINS else all(known)',
        "any(known)",
        "tests/verify/test_ends.py",
    ),
    SourceFault(
        "farskip_compile/verify/account/ends.py",
        "if any(effects.storage(base) in given for base in effects.mutated_args(node)):",
        "if False:",
        "tests/verify/test_ends.py",
    ),
    SourceFault(
        "farskip_compile/verify/account/weights.py",
        "return is_contraction(node) and (not is_unknown(node) or ",
        "return is_contraction(node) and (True or ",
        "tests/verify/test_ends.py",
    ),
    SourceFault(
        "farskip_compile/compiler/ranks/compiles.py",
        "if not compiled.has_run or compiled.options != self.options:",
        "if not compiled.has_run:",
        "tests/ranks/test_compiles.py",
    ),
    SourceFault(
        "farskip_compile/compiler/ranks/compiles.py",
        " and self._is_of_this_world()",
        "",
        "tests/ranks/test_compiles.py",
    ),
    SourceFault(
        "farskip_compile/compiler/ranks/compiles.py", "        self.runs += 1\n", "", "tests/ranks/test_compiles.py"
    ),
    SourceFault(
        "passes/residual/row_maps.py",
        " and moving.isdisjoint(_data(flow, node, found[node]))",
        "",
        "tests/handwritten/test_between.py",
    ),
    SourceFault(
        "farskip_compile/base/writing/locks.py",
        "fcntl.LOCK_SH if shared else fcntl.LOCK_EX",
        "fcntl.LOCK_SH",
        "tests/writing/test_locks.py",
    ),
    SourceFault(
        "farskip_compile/base/writing/whole_folders.py",
        "2 if name == ENTRY else 1 if",
        "1 if",
        "tests/writing/test_whole_folders.py",
    ),
)
"""As `source_faults.FAULTS`."""
