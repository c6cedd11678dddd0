# SPDX-License-Identifier: Apache-2.0
"""The kernels of one program as one file for the compiler: reading Inductor's headers takes longer than any kernel.

In:    what `CppPythonBindingsCodeCache.load_async` is given: the text of one kernel with its bindings, and options.
Out:   the same functions. All texts that wait when the first of them is asked for are built as one, through Inductor's
       own builder, with its cache, its lock and its flags: ranks that compile the same program build it once.
Never: changes what a kernel computes. Each text has a namespace of its own; its two C names, which namespaces do not
       keep apart, get a number.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

INCLUDE = re.compile(r"^[ \t]*#[ \t]*include\b.*$", re.MULTILINE)
NAMES = ("kernel", "PyInit_kernel")
"""What each text defines with the linkage of C."""

Asked = tuple[str, str]
"""A text, and the options it is built with."""


class _Builds:
    """Texts that wait, and modules that were made of others; one of them for a process, as Inductor's cache is."""

    def __init__(self) -> None:
        self.waiting: dict[Asked, None] = {}
        self.made: dict[Asked, ModuleType] = {}

    def build(self, options: str, load: Callable[[str], ModuleType]) -> None:
        """All that wait with these options."""
        batch = [asked for asked in self.waiting if asked[1] == options]
        for asked in batch:  # also if they can not be built: no other program is to fail for that
            del self.waiting[asked]
        first = load(together([text for text, _ in batch]))
        for number, asked in enumerate(batch):
            self.made[asked] = first if number == 0 else _member(first, number)


def together(texts: list[str]) -> str:
    """One file; the first kernel keeps its names."""
    if len(texts) == 1:
        return texts[0]
    includes = dict.fromkeys(line.strip() for text in texts for line in INCLUDE.findall(text))
    parts = ["#define PY_SSIZE_T_CLEAN", *includes]
    for number, text in enumerate(texts):
        renamed = NAMES if number else ()
        parts += [f"#define {name} {name}_{number}" for name in renamed]
        parts += [f"namespace kernel_{number}_of_{len(texts)} {{", INCLUDE.sub("", text), "}"]
        parts += [f"#undef {name}" for name in renamed]
    return "\n".join(parts) + "\n"


def _member(first: ModuleType, number: int) -> ModuleType:
    """Another module of the library that `first` is from."""
    assert first.__file__ is not None
    spec = importlib.util.spec_from_file_location(f"{first.__name__}_{number}", first.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_BUILDS = _Builds()


@contextmanager
def kernels_in_one_build() -> Iterator[None]:
    """Within the block; where Inductor's private names are others, each kernel is built alone."""
    from torch._inductor import codecache

    cache = getattr(codecache, "CppPythonBindingsCodeCache", None)
    alone = getattr(cache, "load_async", None)
    if alone is None:
        yield
        return

    def load_async(main_code: str, device_type: str = "cpu", submit_fn: Any = None, **options: Any) -> Any:
        if options.get("optimized_code") is not None:
            return alone(main_code, device_type, submit_fn=submit_fn, **options)
        asked = main_code, repr((device_type, sorted(options.items())))
        if asked not in _BUILDS.made:
            _BUILDS.waiting[asked] = None

        def load() -> ModuleType:
            if asked not in _BUILDS.made:
                _BUILDS.waiting[asked] = None
                _BUILDS.build(asked[1], lambda text: alone(text, device_type, **options)())
            return _BUILDS.made[asked]

        return load

    with mock.patch.object(cache, "load_async", load_async):
        yield
