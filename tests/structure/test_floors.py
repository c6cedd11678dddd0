# SPDX-License-Identifier: Apache-2.0
"""Which module may import which, at the top or lazily: the arrows run one way."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Mapping
from functools import cache

from tests.structure.sources import ROOT as REPOSITORY
from tests.structure.sources import imports, modules

ROOT = "farskip_compile"
MODULES = modules()
FLOORS = (
    ("_compat", "text_utils", "versions"),
    ("errors", "base"),
    ("passes", "comm"),
    ("verify", "costs", "manifest", "records", "models", "declare"),
    ("compiler",),
    ("tools",),
    ("integrations", "vllm", "healing", "measure"),
    ("testing", "demo"),
    ("cli", "__main__"),
)
"""The rooms of the package, from below. An import leads down, or to another room of the same floor."""
PASSES = (("graph",), ("normalize",), ("residual",), ("rewire", "schedule"), ("pieces",), ("boundary",))
"""The rooms of `passes`, from below. Rooms of one floor do not import each other."""


@cache
def all_arrows() -> dict[str, set[str]]:
    """What each module imports. Read for the first test that asks: all workers collect this file, few run it."""
    return {name: {target for target, _ in imports(name, file, MODULES)} - {name} for name, file in MODULES.items()}


def within(name: str, *rooms: str) -> bool:
    return any(f"{name}.".startswith(f"{ROOT}.{room}.") for room in rooms)


def room(name: str) -> str:
    """A folder, or a file of the root; in `passes` each folder for itself."""
    parts = name.split(".")[1:]
    return ".".join(parts[: 2 if parts[:1] == ["passes"] else 1])


def arrows(start: Iterable[str], to: Iterable[str]) -> list[tuple[str, str]]:
    """The imports that lead from one of the modules to one of the others."""
    ends = set(to)
    return [(name, target) for name in start for target in sorted(all_arrows()[name] & ends)]


def circles(graph: Mapping[str, Collection[str]]) -> list[list[str]]:
    """The sets of nodes that reach each other (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph[node]:
            if target not in index:
                visit(target)
            if target in stack:
                low[node] = min(low[node], low[target])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_imports_lead_down() -> None:
    height = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    rooms = {name.split(".")[1] for name in MODULES if "." in name}
    assert rooms == set(height)
    floor_of = {name: height[name.split(".")[1]] for name in MODULES if "." in name}
    upward = [
        (name, target)
        for name, targets in all_arrows().items()
        for target in targets
        if name in floor_of and target in floor_of and floor_of[target] > floor_of[name]
    ]
    assert upward == []


def test_nothing_imports_the_benchmarks_and_they_have_no_circle() -> None:
    files = {
        ".".join(file.relative_to(REPOSITORY).with_suffix("").parts): file
        for file in sorted((REPOSITORY / "benchmarks").rglob("*.py"))
    }
    short = {name.removeprefix("benchmarks."): name for name in files}
    known = {**files, **{name: files[full] for name, full in short.items()}}
    arrows_of = {
        name: {short.get(target, target) for target, _ in imports(name, file, known)} - {name}
        for name, file in files.items()
    }
    assert circles(arrows_of) == []
    product = [name for name, file in MODULES.items() if list(imports(name, file, known))]
    assert product == []


def test_passes_know_only_the_floors_below_them() -> None:
    for height, names in enumerate(PASSES):
        for name in names:
            allowed = [name, *(below for floor in PASSES[:height] for below in floor)]
            mine = [one for one in MODULES if within(one, f"passes.{name}")]
            others = [
                one for one in MODULES if within(one, "passes") and not within(one, *(f"passes.{a}" for a in allowed))
            ]
            assert mine
            assert arrows(mine, others) == []


def test_the_verifier_does_not_know_what_it_verifies() -> None:
    verifiers = [one for one in MODULES if within(one, "verify")]
    assert arrows(verifiers, [one for one in MODULES if within(one, "passes.rewire")]) == []


def test_the_account_knows_detection_by_its_claims_alone() -> None:
    """What the pages say: the account, the rows and the check of `normalize` share no code with what they check."""
    independent = [one for one in MODULES if within(one, "verify.account", "verify.rows", "verify.normalized")]
    detection = [one for one in MODULES if within(one, "passes.residual", "passes.normalize")]
    known = {target.partition(".")[2] for _, target in arrows(independent, detection)}
    assert known <= {"passes.residual", "passes.residual.table"}  # `Reading` and `Table`, which hold what was claimed


def test_what_the_proof_shares_with_detection_is_what_the_pages_say() -> None:
    """`docs/concepts.md` names the reader of the table and the edges of a graph."""
    prover = [
        one for one in MODULES if within(one, "verify.rewiring", "verify.values", "verify.expected", "verify.reading")
    ]
    detection = [one for one in MODULES if within(one, "passes.residual")]
    shared = {target.partition(".")[2] for _, target in arrows(prover, detection)}
    data = {"passes.residual", "passes.residual.table", "passes.residual.termset"}
    assert shared - data == {"passes.residual.stack", "passes.residual.regions", "passes.residual.sums"}


def test_the_check_of_normalize_shares_no_code_with_it() -> None:
    checks = [one for one in MODULES if within(one, "verify.normalized")]
    others = [one for one in MODULES if within(one, "passes.normalize", "passes.residual", "passes.rewire")]
    assert checks
    assert arrows(checks, others) == []


def test_no_modules_import_each_other() -> None:
    assert circles(all_arrows()) == []


def test_no_rooms_import_each_other() -> None:
    rooms: dict[str, set[str]] = {room(name): set() for name in MODULES}
    for name, targets in all_arrows().items():
        rooms[room(name)] |= {room(target) for target in targets} - {room(name)}
    assert circles(rooms) == []


def test_members_do_not_import_a_package_that_holds_code() -> None:
    def holds_code(name: str) -> bool:
        file = MODULES[name]
        return file.name == "__init__.py" and any(
            not isinstance(node, ast.Expr) for node in ast.parse(file.read_text()).body
        )

    own = [
        (name, target)
        for name in MODULES
        for target in all_arrows()[name]
        if name.startswith(f"{target}.")
        if holds_code(target)
    ]
    assert own == []


def test_circles_are_found() -> None:
    assert circles({"a": ["b"], "b": ["c"], "c": ["b"], "d": ["a"]}) == [["b", "c"]]
    assert circles({"a": ["b", "c"], "b": ["c"], "c": []}) == []
