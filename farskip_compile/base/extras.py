# SPDX-License-Identifier: Apache-2.0
"""Packages that only some features need, and the command that installs each of them.

In:    what needs a package, and the package's name as it is imported.
Out:   a `MissingPackageError`, for a version that does not work too, whose way out is one `pip install`.
Never: imports a package to see whether it is there; imports torch unless something is missing.
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
import warnings
from typing import TYPE_CHECKING

from farskip_compile.versions import version_conflict

if TYPE_CHECKING:
    from farskip_compile.errors import MissingPackageError

INSTALLED_BY = {
    "transformers": "farskip-compile[hf]",
    "accelerate": "farskip-compile[hf]",
    "matplotlib": "farskip-compile[plot]",
    "datasets": "farskip-compile[distill]",
    "safetensors": "farskip-compile[distill]",
    "lm_eval": "farskip-compile[eval]",
    "hypothesis": "farskip-compile[testing]",
    "torchtitan": "farskip-compile[titan]",
    "tensorboard": "tensorboard",
    "triton": "triton",
    "vllm": "vllm",
}
"""By name of the module: an extra of this package, or the package itself where no extra brings it."""
EXTRAS = {
    "hf": ("transformers",),
    "plot": ("matplotlib",),
    "distill": ("transformers", "datasets", "safetensors"),
    "eval": ("lm_eval", "transformers"),
}
"""The modules without which a command that needs an extra can do nothing."""
SPELLED = {"lm_eval": "lm-eval", "vllm": "vLLM"}


def is_missing(package: str) -> bool:
    """Return whether `package` can't be imported because it is not installed."""
    return importlib.util.find_spec(package) is None


def pip_install(package: str, *, extra: str = "") -> str:
    """Return the command that installs `package`, with all that `extra` brings if that is given."""
    return f"pip install {shlex.quote(f'farskip-compile[{extra}]' if extra else INSTALLED_BY[package])}"


def why_not(what: str, package: str) -> str:
    """Return why `what` can't use `package`: not installed, or in a version that does not work; empty if it can."""
    if is_missing(package):
        return f"{what} needs {SPELLED.get(package, package)}"
    return str(version_conflict(package) or "")


def missing(what: str, package: str, *, extra: str = "") -> MissingPackageError:
    """Return the error that `what` needs `package`."""
    from farskip_compile.errors import MissingPackageError

    return MissingPackageError(
        f"{what} needs {SPELLED.get(package, package)}", way_out=pip_install(package, extra=extra)
    )


def need(what: str, *packages: str, extra: str = "") -> None:
    """Refuse to go on without `packages`, which `extra` brings if that is given.

    Raises:
        MissingPackageError: one of them is not installed, or in a version that does not work.
    """
    for package in packages:
        if reason := why_not(what, package):
            from farskip_compile.errors import MissingPackageError

            raise MissingPackageError(reason, way_out=pip_install(package, extra=extra))


def is_in_use(package: str) -> bool:
    """Return whether `package` is imported, in a major version that works."""
    return package in sys.modules and ((conflict := version_conflict(package)) is None or not conflict.is_other_major)


def check_version(package: str) -> None:
    """Refuse another major version of `package` than works; warn of any other version outside of the range.

    Raises:
        MissingPackageError: the major version is another one.
    """
    if (conflict := version_conflict(package)) is None:
        return
    from farskip_compile.errors import FarSkipWarning, MissingPackageError

    if conflict.is_other_major:
        requirement = shlex.quote(conflict.package + conflict.wanted)
        raise MissingPackageError(str(conflict), way_out=f"pip install {requirement}")
    warnings.warn(str(conflict), FarSkipWarning, stacklevel=2)
