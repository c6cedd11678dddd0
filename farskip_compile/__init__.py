# SPDX-License-Identifier: Apache-2.0
"""`torch.compile(model, backend="farskip")` for MoE models; `farskip_compile.passes` is the top-level folder `passes/`.

Rewires the residual stream to the FarSkip form (arXiv 2511.11505): attention reads it without the routed experts of
the layer before, the feed-forward part without the attention of its own layer, so that expert-parallel and
tensor-parallel communication no longer stands in the way of compute. Weights stay as they are; the function changes.

Contract: `import farskip_compile` loads nothing else, not even torch: every name is loaded from its module when it is
first used. Once transformers is imported as well, before or after, its Auto classes load the checkpoints that only this
package may load; once PEFT is, its `generate` does not pass by what is compiled (`guard`). Another major version of
either than works (`versions`) is left as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from farskip_compile.compiler.backend import backend
    from farskip_compile.compiler.config import FarSkipConfig
    from farskip_compile.compiler.guard.forward import unguard
    from farskip_compile.declare import declare_op
    from farskip_compile.errors import ConfigError, FarSkipError, FarSkipWarning, OriginalWiringError
    from farskip_compile.manifest import Manifest, load_manifest
    from farskip_compile.records.compile import CompileReport, Outcome
    from farskip_compile.records.reports import reports
    from farskip_compile.records.schedule import ScheduleReport
    from farskip_compile.tools.describe import describe, save_manifest
    from farskip_compile.tools.explain import Explanation, explain
    from farskip_compile.tools.export import export
    from farskip_compile.tools.prepare import Preparation, prepare
    from farskip_compile.tools.regional import Regional, regional
    from farskip_compile.tools.status import Status, status

__all__ = [
    "CompileReport",
    "ConfigError",
    "Explanation",
    "FarSkipConfig",
    "FarSkipError",
    "FarSkipWarning",
    "Manifest",
    "OriginalWiringError",
    "Outcome",
    "Preparation",
    "Regional",
    "ScheduleReport",
    "Status",
    "backend",
    "declare_op",
    "describe",
    "explain",
    "export",
    "load_manifest",
    "prepare",
    "regional",
    "reports",
    "save_manifest",
    "status",
    "unguard",
]

_NAMES_BY_MODULE = {
    "compiler.backend": ("backend",),
    "compiler.config": ("FarSkipConfig",),
    "compiler.guard.forward": ("unguard",),
    "declare": ("declare_op",),
    "errors": (
        "ConfigError",
        "FarSkipError",
        "FarSkipWarning",
        "OriginalWiringError",
    ),
    "manifest": (
        "Manifest",
        "load_manifest",
    ),
    "records.compile": (
        "CompileReport",
        "Outcome",
    ),
    "records.reports": ("reports",),
    "records.schedule": ("ScheduleReport",),
    "tools.describe": (
        "describe",
        "save_manifest",
    ),
    "tools.explain": (
        "Explanation",
        "explain",
    ),
    "tools.export": ("export",),
    "tools.prepare": (
        "Preparation",
        "prepare",
    ),
    "tools.regional": (
        "Regional",
        "regional",
    ),
    "tools.status": (
        "Status",
        "status",
    ),
}
_HOME = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, or a submodule; looked up anew each time, so that this package holds no copy of either."""
    if (home := _HOME.get(name)) is not None:
        return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    if not name.startswith("__") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Once:
    """Finds nothing; once a module of another package is loaded, a function of ours is called."""

    def __init__(self, module: str, home: str, function: str) -> None:
        self.module, self.home, self.function = module, home, function

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_call(module: ModuleType) -> None:
                load(module)
                self.call()

            spec.loader.exec_module = load_and_call  # type: ignore[method-assign]
        return spec

    def call(self) -> None:
        from farskip_compile.versions import version_conflict

        conflict = version_conflict(self.module.partition(".")[0])
        if conflict is not None and conflict.is_other_major:
            return  # a module there may be another one; what needs the package says so
        getattr(importlib.import_module(f"{__name__}.{self.home}"), self.function)()


for _once in (
    _Once("transformers.configuration_utils", "compiler.guard.checkpoints", "watch_configurations"),
    _Once("transformers.modeling_utils", "compiler.guard.checkpoints", "watch_models"),
    _Once("transformers.modeling_utils", "compiler.guard.adapter_checkpoints", "watch_models"),
    _Once("transformers.trainer", "integrations.resume", "watch_resume"),
    _Once("peft", "compiler.guard.adapters", "watch_generate"),
    _Once("peft", "compiler.guard.adapter_checkpoints", "register_adapter_types"),
):
    if _once.module in sys.modules:
        _once.call()
    else:
        sys.meta_path.insert(0, _once)
