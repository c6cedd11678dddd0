# SPDX-License-Identifier: Apache-2.0
"""Private PyTorch APIs are used in `farskip_compile/_compat` only, and the installed torch has all of them.

The package itself is not imported here: where a version of torch has dropped a name, importing it may fail for want of
just that name, while these tests say which one it is and which file needs it.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import logging
import re
import textwrap
import types
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import fx, nn

from tests._compat.private_apis import COMPAT, PACKAGE, Source, Use, files, names_by_string, private, read

TABLES = names_by_string()
NOT_PYTORCHS = frozenset(["_apply_gate", "_experts_implementation", "_fields", "_replace"])
"""Attributes with an underscore of transformers' models and of named tuples."""
VLLMS = frozenset(
    [
        "_CONFIG_FORMAT_TO_CONFIG_PARSER",
        "_forward_entry",
        "_fse_fuse_gate",
        "_groups",
        "_layer",
        "_maybe_reduce_shared_expert_output",
        "_select_forward",
        "_shared_experts",
    ]
)
"""vLLM's, which its plugin alone may touch; whether they are there is for `make vllm` to see."""
PUBLIC = (
    *(str, bytes, int, dict, list, set, frozenset, tuple),
    *(types.FrameType, types.CodeType, types.MethodType, types.FunctionType, BaseException, logging.Logger, re.Match),
    *(fx.Node, fx.Graph, fx.GraphModule, nn.Module, torch.Tensor, torch.SymInt, dist.ProcessGroup, dist.Store),
)
"""Classes whose attributes may be read."""
PUBLIC_NAMES = frozenset(
    [
        *("is_Integer", "is_integer", "free_symbols", "lhs", "rhs", "xreplace"),  # of sympy's expressions
        *("filename", "lineno", "line"),  # of traceback's frames
        *("total_seconds",),  # of a timedelta
        *("nonlocals",),  # of inspect's closures
    ]
)
OWN_OPERATORS = ("torch.ops.farskip.", "torch.ops.vllm.", "torch.ops.vllm_ir.", "torch.ops._C.")
"""And vLLM's, in its plugin."""


@pytest.fixture(autouse=True)
def fresh_compiler():
    """In place of the one of the suite, which imports the package."""


def version() -> tuple[int, int]:
    major, minor = re.match(r"(\d+)\.(\d+)", torch.__version__).groups()
    return int(major), int(minor)


def numbers(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


def expected_here(name: str) -> bool:
    first, last = TABLES["VERSIONS"].get(name, ("0.0", None))
    return numbers(first) <= version() and (last is None or version() <= numbers(last))


def find(full: str) -> object:
    """The object called `full`. Raises AttributeError if there is none."""
    found: object = torch
    done = "torch"
    for part in full.split(".")[1:]:
        if isinstance(found, types.ModuleType) and not hasattr(found, part):
            try:
                importlib.import_module(f"{done}.{part}")
            except ImportError as error:
                raise AttributeError(f"{done} has no {part}") from error
        found = getattr(found, part)
        done = f"{done}.{part}"
        if done in TABLES["CLASSES"]:
            found = find(TABLES["CLASSES"][done])
    return found


def has(full: str) -> bool:
    try:
        find(full)
    except AttributeError:
        return False
    return True


@functools.cache
def members(cls: type) -> frozenset[str]:
    """What objects of `cls` have: members, annotations, and what its source assigns to `self`."""
    found = set(dir(cls))
    for base in cls.__mro__:
        found |= set(inspect.get_annotations(base))
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):  # not written in Python
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return frozenset(found)


def present(name: str) -> bool:
    """Whether the installed torch has it: a full name; or, behind a colon, an attribute of a class or a key."""
    owner, _, rest = name.partition(":")
    if not rest:
        return has(owner)
    if not has(owner):
        return False
    found = find(owner)
    if owner in TABLES["CONFIG_KEYS"]:
        return rest in found.get_config_copy() or hasattr(found, rest)  # an alias is in no copy
    if owner in TABLES["MARKS"]:
        return rest in inspect.getsource(found)
    return isinstance(found, type) and rest in members(found)


def compat() -> list[Source]:
    return [read(path) for path in files(COMPAT)]


def needed() -> list[Use]:
    """Every name of PyTorch that `_compat` needs, and every operator that the package names; the first use of each."""
    uses = [use for source in compat() for use in source.names]
    uses += [use for path in files(*PACKAGE) for use in read(path).names if use.name.startswith("torch.ops.")]
    places: dict[str, Use] = {}
    for source in sorted(compat(), key=lambda source: source.path.name == "names.py"):  # last: the list is no use
        for use in [*source.unknown, *source.strings]:
            places.setdefault(use.name, use)
    for table in ("CONFIG_KEYS", "ATTRIBUTES", "MARKS"):
        for owner, listed in TABLES[table].items():
            uses += [Use(f"{owner}:{name}", places[name].file, places[name].line) for name in listed]
    first: dict[str, Use] = {}
    for use in sorted(uses):
        if not use.name.startswith(OWN_OPERATORS):
            first.setdefault(use.name, use)
    return list(first.values())


def test_the_installed_torch_has_every_private_name_that_is_used():
    """In a form that `make compat` reads: one line a name."""
    missing = [use for use in needed() if expected_here(use.name) and not present(use.name)]
    lines = "\n".join(f"missing: {use}" for use in missing)
    assert not missing, f"torch {torch.__version__} lacks what this package uses, or calls it otherwise:\n{lines}"


def test_names_of_other_versions_are_not_there_yet_or_no_longer():
    """Otherwise `VERSIONS` is wrong, or a name has come back."""
    wrong = [name for name in TABLES["VERSIONS"] if present(name) and not expected_here(name)]
    assert wrong == []
    assert set(TABLES["VERSIONS"]) <= {use.name for use in needed()}


def test_what_is_read_off_private_objects_is_listed():
    """Else a renamed attribute would show only when it is reached, deep in a compile."""
    listed = {name for table in ("ATTRIBUTES", "MARKS") for names in TABLES[table].values() for name in names}
    own = {name for source in compat() for name in source.own}
    unlisted = [
        str(use)
        for source in compat()
        for use in source.unknown
        if use.name not in listed | own | PUBLIC_NAMES and not any(hasattr(cls, use.name) for cls in PUBLIC)
    ]
    assert unlisted == [], "add them to farskip_compile/_compat/names.py, with their class"


def test_what_is_listed_is_used():
    used = {use.name for source in compat() for use in [*source.unknown, *source.strings]}
    used |= {use.name.rpartition(".")[2] for source in compat() for use in source.names}
    listed = {name for table in ("ATTRIBUTES", "MARKS") for names in TABLES[table].values() for name in names}
    assert listed - used == set()


def is_module(full: str) -> bool:
    try:
        return importlib.util.find_spec(full) is not None
    except (ImportError, AttributeError):
        return False


def outside() -> list[Path]:
    return [path for path in files(*PACKAGE) if COMPAT not in path.parents]


def offences(path: Path) -> list[str]:
    """Private names that a file outside of `_compat` touches."""
    source = read(path)
    found = [str(use) for use in source.names if private(use.name)]
    found += [
        str(use)
        for use in source.unknown
        if use.name.startswith("_")
        and not use.name.startswith("__")
        and use.name not in source.own | NOT_PYTORCHS | (VLLMS if path.parent.name == "vllm" else frozenset())
    ]
    return found


@pytest.mark.parametrize("folder", PACKAGE, ids=lambda folder: folder.name)
def test_private_names_are_touched_in_compat_only(folder: Path):
    assert [text for path in outside() if folder in path.parents for text in offences(path)] == []


def test_compat_hands_out_no_private_module():
    """Through one, every private name in it could be reached from anywhere."""
    for source in compat():
        handed_out = set(source.exports) & set(_all_of(source.path))
        assert [name for name in handed_out if is_module(source.exports[name])] == []
    imported = [
        f"{path.name}: {name}"
        for path in outside()
        for module, name in _imports_from_compat(path)
        if (full := read(module).exports.get(name)) is not None and is_module(full)
    ]
    assert imported == []


def test_keys_of_configurations_are_written_in_one_place():
    """A key of Inductor's is asked for under the name that `names.py` gives it."""
    keys = {key for names in TABLES["CONFIG_KEYS"].values() for key in names}
    known = {key for key in find("torch._inductor.config").get_config_copy() if len(key) >= 12}
    written = [
        str(use)
        for path in files(*PACKAGE)
        if path != COMPAT / "names.py"
        for use in read(path).strings
        if use.name in keys | known
    ]
    assert written == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import torch\ntorch._grouped_mm", ["torch._grouped_mm"]),
        ("import torch\ntorch.a._b.c(1)", ["torch.a._b.c"]),
        ("from torch._x import y", ["torch._x.y"]),
        ("import torch.distributed._functional_collectives as fc\nfc.wait", [
            "torch.distributed._functional_collectives", "torch.distributed._functional_collectives.wait",
        ]),
        ("import torch as t\nddp = t.nn.DDP\nddp._active()", ["torch.nn.DDP._active"]),
        ("import torch\ngetattr(torch, '_C')", ["torch._C"]),
        ("from torch.fx.experimental import symbolic_shapes", ["torch.fx.experimental.symbolic_shapes"]),
        ("def f(op):\n    return op._schema.arguments", ["_schema"]),
        ("def f(module):\n    return hasattr(module, '_forward_hooks')", ["_forward_hooks"]),
        ("def f(module):\n    module._modules['a'] = 1", ["_modules"]),
    ],
)  # fmt: skip
def test_an_access_is_seen(tmp_path: Path, text: str, names: list[str]):
    file = tmp_path / "file.py"
    file.write_text(text)
    assert [offence.split(" (")[0] for offence in offences(file)] == names


@pytest.mark.parametrize(
    "text",
    [
        "'torch._inductor.config'",
        '"""Uses torch._dynamo."""',
        "import torch\ntorch.ops.aten._softmax\ntorch.__version__",
        "class A:\n    def __init__(self):\n        self._x = 1\n\n    def f(self, other):\n        return other._x",
        "import numpy\nnumpy._x",
    ],
)
def test_a_text_or_an_own_name_is_no_access(tmp_path: Path, text: str):
    file = tmp_path / "file.py"
    file.write_text(text)
    assert offences(file) == []


@pytest.mark.parametrize(
    "name",
    [
        "torch._inductor.config:no_such_key",
        "torch._inductor.scheduler.BaseSchedulerNode:no_such_attribute",
        "torch._inductor.scheduler.NoSuchNode:ancestors",
        "torch._dynamo.no_such_module.name",
        "torch._dynamo.exc.NoSuchError",
        "torch.ops.aten.no_such_operator",
    ],
)
def test_a_name_that_is_not_there_is_missed(name: str):
    assert not present(name)


def _all_of(path: Path) -> list[str]:
    """What `__all__` of a file names."""
    listed = re.search(r"__all__ = \[(.*?)\]", path.read_text(), re.DOTALL)
    return re.findall(r'"(\w+)"', listed.group(1)) if listed else []


def _imports_from_compat(path: Path) -> list[tuple[Path, str]]:
    """Files of `_compat` and names in them that `path` imports."""
    found = []
    text = path.read_text()
    for module, one, many in re.findall(
        r"^\s*from farskip_compile\._compat([\w.]*) import (?:\(([^)]*)\)|(.*))$", text, re.M
    ):
        file = COMPAT / f"{module.strip('.') or '__init__'}.py"
        found += [(file, name) for name in re.findall(r"\w+", re.sub(r"#.*", "", one or many))]
    return found
