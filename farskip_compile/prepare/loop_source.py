"""Loops over experts that depend on data, in the source of a method, and the same method without them.

Contract: a function comes in; out go the sites in its loops that a graph can't hold (`read`), and functions compiled
from its source with these sites written otherwise (`Source.compiled`). Nothing is run and nothing is installed; whether
a new function is the same one is decided elsewhere (`same_function`). Names of models, classes and attributes play no
role, only Python and methods of tensors.

    site    before                                             after
    guard   `if idx.numel() == 0: continue`, `if mask.any():`  what is done for a selection that is not empty
    hit     `for e in mask.sum((-1, -2)).nonzero():`           `for e in range(experts):`
    count   `torch.bincount(chosen, minlength=n)`              a sum into n zeros, whose length is no data
    list    `idx = idx.tolist()`, used as an index only        `idx = idx`

The variable of a loop over hits is a tensor of one element; afterwards it is a number. `x[e]` with such a tensor keeps
a dimension that a number drops, if the tensor has one itself, which the source does not say: `Request.rows` does.
"""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NamedTuple

import torch

from farskip_compile.prepare.emptiness import callee, empty_when, loop_names
from farskip_compile.prepare.recompile import recompiled

FINDS = {"nonzero", "argwhere", "unique", "unique_consecutive", "set"}
"""Calls that list what occurs in data."""
SAME_ELEMENTS = {"tolist", "squeeze", "flatten", "view", "reshape", "detach", "cpu", "numpy", "long", "int", "to"}
"""Methods whose result holds the elements of their tensor."""
LISTS = {"sorted", "list", "tuple", "reversed", "enumerate", "zip"}
SAW, ROWS, COUNTS = "_farskip_saw", "_farskip_rows", "_farskip_counts"


class Site(NamedTuple):
    """A place in a loop."""

    kind: str
    """`guard`, `hit`, `count` or `list`."""
    line: int
    column: int


@dataclass(frozen=True)
class Request:
    """What `Source.compiled` makes of the sites."""

    sites: frozenset[Site] = frozenset()
    """Those that are rewritten."""
    experts: int = 0
    """Length of what were loops over hits."""
    rows: bool = False
    """Whether `x[e]` keeps a dimension of length one."""
    watch: Callable[[Site, Any], Any] | None = None
    """Called with the value of the test of each guard; returns it."""


@dataclass(frozen=True)
class Source:
    """A method and the sites in it."""

    function: Callable[..., Any]
    tree: ast.FunctionDef
    sites: tuple[Site, ...]
    cant: tuple[str, ...] = ()
    """What depends on data in a form that is not known, with its line."""

    def compiled(self, request: Request) -> Callable[..., Any]:
        """The function with its sites as requested."""
        tree = _Writer(request).rewrite(self.tree)
        return recompiled(self.function, tree, {SAW: _saw(request), ROWS: rows, COUNTS: counts})

    def place(self, line: int) -> str:
        """`file:line`."""
        return f"{inspect.unwrap(self.function).__code__.co_filename}:{line}"


def rows(value: Any, number: int) -> Any:
    """`value[number]`, where a tensor keeps the dimension."""
    return value[[number]] if isinstance(value, torch.Tensor) else value[number]


def counts(values: torch.Tensor, weights: torch.Tensor | None = None, minlength: int = 0) -> torch.Tensor:
    """`torch.bincount`, as long as no value is `minlength` or more, which is an error here."""
    if weights is not None or not minlength:
        return torch.bincount(values, weights, minlength)
    zeros = torch.zeros(minlength, dtype=torch.long, device=values.device)
    return zeros.scatter_add(0, values.long(), torch.ones_like(values, dtype=torch.long))


def _saw(request: Request) -> Callable[[int, int, Any], Any]:
    watch = request.watch
    return lambda line, column, value: watch(Site("guard", line, column), value) if watch else value


def methods(kind: type) -> dict[str, Source]:
    """The methods of a module's class with sites in them: its forward, and what that calls on the module itself."""
    found: dict[str, Source] = {}
    names = ["forward"]
    for name in names:  # grows
        function = inspect.getattr_static(kind, name, None)
        if not isinstance(function, FunctionType) or function is vars(torch.nn.Module).get(name):
            continue
        if (tree := _tree(function)) is None:
            continue
        names += [called for called in _called(tree) if called not in names]
        finder = _Writer(Request())
        finder.rewrite(tree)
        if finder.looped and (finder.found or finder.cant):
            found[name] = Source(function, tree, tuple(finder.found), tuple(finder.cant))
    return found


def _tree(function: FunctionType) -> ast.FunctionDef | None:
    """The definition, with the line numbers of its file, or None if there is no source."""
    plain = inspect.unwrap(function)
    try:
        lines, first = inspect.getsourcelines(plain)
        (tree,) = ast.parse(textwrap.dedent("".join(lines))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    if not isinstance(tree, ast.FunctionDef) or not isinstance(plain, FunctionType):
        return None
    ast.increment_lineno(tree, first - 1)
    return tree


def _called(tree: ast.FunctionDef) -> list[str]:
    """What is called on the first argument."""
    (owner, *_) = [argument.arg for argument in tree.args.args] or [""]
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    found = [f.attr for f in calls if isinstance(f, ast.Attribute) and getattr(f.value, "id", None) == owner]
    return list(dict.fromkeys(found))


class _Writer(ast.NodeTransformer):
    """Finds the sites, and rewrites those of a request. A site is known by its place, so order doesn't matter."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.found: list[Site] = []
        self.cant: list[str] = []
        self.looped = False
        self.bound: set[str] = set()
        """What the loops around bind or assign; none: not in a loop."""
        self.static: set[str] = set()
        self.values: dict[str, list[ast.expr]] = {}
        self.only_indices: set[str] = set()
        """Names that are read within brackets only."""

    def rewrite(self, tree: ast.FunctionDef) -> ast.FunctionDef:
        """A rewritten copy."""
        tree = copy.deepcopy(tree)
        self.static = {argument.arg for argument in tree.args.args[:1]}
        for node in ast.walk(tree):
            for target in node.targets if isinstance(node, ast.Assign) else ():
                if isinstance(target, ast.Name) and isinstance(node, ast.Assign):
                    self.values.setdefault(target.id, []).append(node.value)
        self.only_indices = _only_indices(tree)
        return ast.fix_missing_locations(self.generic_visit(tree))  # type: ignore[arg-type, return-value]

    def _site(self, kind: str, node: ast.stmt | ast.expr) -> Site:
        site = Site(kind, node.lineno, node.col_offset)
        self.found.append(site)
        return site

    def visit_For(self, node: ast.For) -> ast.AST:
        """A loop: over hits, or around guards."""
        self.looped = True
        if self._lists_hits(node.iter):
            self._over_hits(node)
        outer = self.bound, self.static
        bound, static = loop_names(node.target, node.iter)
        self.bound = self.bound | bound | _assigned(node)
        self.static = self.static | static
        self.generic_visit(node)
        self.bound, self.static = outer
        return node

    def _over_hits(self, node: ast.For) -> None:
        if not isinstance(node.target, ast.Name) or (isinstance(node.iter, ast.Call) and callee(node.iter) == "range"):
            self.cant.append(f"line {node.lineno}: a loop over what occurs in data, with more than that element")
            return
        if self._site("hit", node) in self.request.sites:
            name = node.target.id
            body = _OneElement(name, self.request.rows)
            node.body = [body.visit(statement) for statement in node.body]
            node.iter = ast.copy_location(_call("range", ast.Constant(self.request.experts)), node.iter)

    def _lists_hits(self, node: ast.expr, depth: int = 5) -> bool:
        """Whether an expression is a list of what occurs in data, under whatever name."""
        if depth == 0:
            return False
        if isinstance(node, ast.Name):
            return any(self._lists_hits(value, depth - 1) for value in self.values.get(node.id, ()))
        if isinstance(node, ast.Subscript):
            return self._lists_hits(node.value, depth)
        if not isinstance(node, ast.Call):
            return False
        name = callee(node)
        if name in FINDS or (name == "where" and len(node.args) == 1 and not node.keywords):
            return True
        if name in SAME_ELEMENTS and isinstance(node.func, ast.Attribute):
            return self._lists_hits(node.func.value, depth)
        if name == "range":
            parts = [part for argument in node.args for part in ast.walk(argument) if isinstance(part, ast.Name)]
            return any(self._lists_hits(part, depth) for part in parts)
        return name in LISTS and any(self._lists_hits(argument, depth) for argument in node.args)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        """An index as a list, if it is one."""
        self.generic_visit(node)
        value, target = node.value, node.targets[0]
        lists = isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "tolist"
        if (
            self.bound
            and lists
            and isinstance(target, ast.Name)
            and target.id in self.only_indices
            and self._site("list", node) in self.request.sites
        ):
            node.value = value.func.value  # type: ignore[attr-defined]
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        """A guard, if it is one."""
        value = empty_when(node.test, self.static, self.bound) if self.bound else None
        if value is None:
            return self.generic_visit(node)
        if_empty, if_some = (node.body, node.orelse) if value else (node.orelse, node.body)
        if any(isinstance(part, ast.Break | ast.Return | ast.Raise) for line in if_empty for part in ast.walk(line)):
            self.cant.append(f"line {node.lineno}: an empty selection ends the loop")
            return self.generic_visit(node)
        site = self._site("guard", node)
        self.generic_visit(node)
        if site not in self.request.sites:
            node.test = self._watched(site, node.test)
            return node
        if_some = node.orelse if value else node.body
        return if_some or ast.copy_location(ast.Pass(), node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        """The same as an expression."""
        value = empty_when(node.test, self.static, self.bound) if self.bound else None
        if value is None:
            return self.generic_visit(node)
        site = self._site("guard", node)
        self.generic_visit(node)
        if site in self.request.sites:
            return node.orelse if value else node.body
        node.test = self._watched(site, node.test)
        return node

    def _watched(self, site: Site, test: ast.expr) -> ast.expr:
        if self.request.watch is None:
            return test
        return ast.copy_location(_call(SAW, ast.Constant(site.line), ast.Constant(site.column), test), test)

    def _in_comprehension(self, node: Any) -> ast.AST:
        self.looped = True
        outer = self.bound, self.static
        for part in node.generators:
            if self._lists_hits(part.iter):
                self.cant.append(f"line {node.lineno}: a loop over what occurs in data, in brackets")
            bound, static = loop_names(part.target, part.iter)
            self.bound, self.static = self.bound | bound, self.static | static
            kept = []
            for test in part.ifs:
                if empty_when(test, self.static, self.bound) is not False:
                    kept.append(test)
                elif (site := self._site("guard", test)) not in self.request.sites:
                    kept.append(self._watched(site, test))
            part.ifs = kept
        self.generic_visit(node)
        self.bound, self.static = outer
        return node

    visit_ListComp = visit_GeneratorExp = visit_DictComp = visit_SetComp = _in_comprehension

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """A count, if it is one."""
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Attribute) and node.func.attr == "bincount"):
            return node
        of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        given = node.args if of_torch else [node.func.value, *node.args]
        if len(given) < 3 and not any(keyword.arg == "minlength" for keyword in node.keywords):
            self.cant.append(f"line {node.lineno}: the length of bincount without minlength depends on data")
        elif self._site("count", node) in self.request.sites:
            call = ast.Call(ast.Name(COUNTS, ast.Load()), given, node.keywords)
            return ast.copy_location(call, node)
        return node


class _Number(ast.Name):
    """The variable, where its one element had been taken out of the tensor."""


class _OneElement(ast.NodeTransformer):
    """The variable of a loop becomes a number."""

    def __init__(self, name: str, rows: bool) -> None:
        self.name, self.rows = name, rows

    def _is_variable(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == self.name

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """`e[0]`, or `x[e]`."""
        self.generic_visit(node)
        if self._is_variable(node.value) and isinstance(node.slice, ast.Constant):
            return self._number(node)
        if self.rows and self._is_variable(node.slice) and not isinstance(node.slice, _Number):
            return ast.copy_location(_call(ROWS, node.value, node.slice), node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """`e.item()` and the like, `int(e)`."""
        self.generic_visit(node)
        method = isinstance(node.func, ast.Attribute) and self._is_variable(node.func.value)
        if method and callee(node) in SAME_ELEMENTS | {"item"}:
            return self._number(node)
        if callee(node) == "int" and len(node.args) == 1 and self._is_variable(node.args[0]):
            return self._number(node)
        return node

    def _number(self, node: ast.expr) -> ast.Name:
        return ast.copy_location(_Number(self.name, ast.Load()), node)


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _only_indices(tree: ast.AST) -> set[str]:
    subscripts = [node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
    inside = {id(part) for index in subscripts for part in ast.walk(index)}
    reads = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    return {node.id for node in reads} - {node.id for node in reads if id(node) not in inside}


def _assigned(loop: ast.For) -> set[str]:
    names = (node for statement in loop.body for node in ast.walk(statement) if isinstance(node, ast.Name))
    return {node.id for node in names if isinstance(node.ctx, ast.Store)}
