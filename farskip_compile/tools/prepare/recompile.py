# SPDX-License-Identifier: Apache-2.0
"""A function compiled again, from another syntax tree.

Contract: a function and a tree of its source come in, a function goes out that is what Python would have made of the
tree at the same place: the same globals, cells, defaults, attributes, decorators, file and line numbers. Further names
that the tree reads are given as values and become cells of its own, so that no globals are written.
"""

from __future__ import annotations
import __future__

import ast
import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from types import CellType, CodeType, FunctionType
from typing import Any

FEATURES = {getattr(__future__, name).compiler_flag for name in __future__.all_feature_names}
FUTURE_FLAGS = functools.reduce(operator.or_, FEATURES) & ~inspect.CO_NESTED
"""The bits of a code object that `from __future__` sets."""


def recompiled(function: Callable[..., Any], tree: ast.FunctionDef, names: Mapping[str, Any]) -> Callable[..., Any]:
    """Return `function` with the body of `tree`.

    Args:
        function: the function, with its decorators.
        tree: the definition to compile in place of its own.
        names: values of the names that neither its globals nor its cells have.
    """
    plain: Any = inspect.unwrap(function)
    decorators = tree.decorator_list if plain is not function else []  # else they returned it as it was
    tree.decorator_list = []
    code = _code(plain, tree, names)
    cells = dict(zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True))
    cells |= {name: CellType(value) for name, value in names.items()}
    closure = tuple(cells[name] for name in code.co_freevars)
    new: Any = FunctionType(code, plain.__globals__, plain.__name__, plain.__defaults__, closure)
    new.__kwdefaults__, new.__doc__, new.__qualname__ = plain.__kwdefaults__, plain.__doc__, plain.__qualname__
    new.__module__ = plain.__module__
    new.__dict__.update({key: value for key, value in vars(plain).items() if key != "__wrapped__"})
    for decorator in reversed(decorators):
        expression = ast.fix_missing_locations(ast.Expression(decorator))
        new = eval(compile(expression, plain.__code__.co_filename, "eval"), plain.__globals__)(new)
    return new


def _code(plain: Any, tree: ast.FunctionDef, names: Iterable[str]) -> CodeType:
    """Return the code of the method.

    It is compiled inside a class of the same name (private names depend on it), and inside a function whose arguments
    are the cells.
    """
    owner = plain.__qualname__.split(".")[-2:-1]
    inside = bool(owner) and owner[0].isidentifier()
    cells = ", ".join(dict.fromkeys((*plain.__code__.co_freevars, *names)))
    module = ast.parse(f"def around({cells}):\n class {owner[0] if inside else 'Owner'}: ...")
    (around,) = module.body
    assert isinstance(around, ast.FunctionDef)
    (kind,) = around.body
    assert isinstance(kind, ast.ClassDef)
    if inside:
        kind.body = [tree]
    else:
        around.body = [tree]
    ast.fix_missing_locations(module)
    flags = plain.__code__.co_flags & FUTURE_FLAGS
    code = compile(module, plain.__code__.co_filename, "exec", flags=flags, dont_inherit=True)
    for name in ("around", *(owner if inside else ()), tree.name):
        code = next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name)
    return code
