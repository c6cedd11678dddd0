# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies: generated models and graphs, as this package's own tests use them.

    cases, configs            decoders of every sort with routed experts, and wishes for their connectivity
    parallel_cases            the same for two ranks
    networks                  residual networks whose connectivity table is known by construction
    programs                  tasks, collectives and memory, for schedulers

`GeneratedCase.oracle` is a FarSkip form written by hand, and `evaluate` computes a network without any graph: results
to compare with that know nothing of the compiler. Needs hypothesis: `pip install 'farskip-compile[testing]'`.
"""

import importlib.util

if importlib.util.find_spec("hypothesis") is None:
    raise ImportError("farskip_compile.testing.strategies needs hypothesis: pip install 'farskip-compile[testing]'")

from farskip_compile.testing.strategies.architectures import cases, configs, nothing_to_leave_out, parallel_cases
from farskip_compile.testing.strategies.network_drawing import networks
from farskip_compile.testing.strategies.network_graph import capture, evaluate
from farskip_compile.testing.strategies.programs import programs

__all__ = [
    "capture",
    "cases",
    "configs",
    "evaluate",
    "networks",
    "nothing_to_leave_out",
    "parallel_cases",
    "programs",
]
