# SPDX-License-Identifier: Apache-2.0
"""Results of the overlap benchmark as they could be, for tests of what is said of them."""

from __future__ import annotations

from overlap_bench.cells import (
    COMMUNICATION,
    COMPARED,
    COMPUTE,
    DROPLESS,
    EXPERT_PARALLEL,
    ORDER,
    TENSOR_PARALLEL,
    Cell,
)
from overlap_bench.results import Result, summarise

STEPS = {
    "plain": 0.9,
    "inductor overlap": 0.85,
    "inductor passes": 0.86,
    "overlapped eager": 0.8,
    "chunked eager": 0.83,
    "hand-written": 0.91,
    "none": 0.84,
    "none, 2 pieces": 0.7,
    "none, pieces": 0.62,
    "full": 0.57,
    "full, 2 pieces": 0.565,
    "full, pieces": 0.56,
    "lag2": 0.58,
    COMPUTE: 0.55,
    COMMUNICATION: 0.275,
}
HEAVY = {"plain": 0, "hand-written": 0, "inductor overlap": 6, "inductor passes": 0, "none": 4, "full": 30}


def estimate(before, after, peak, peak_after):
    """What the scheduler says of one graph."""
    return {
        "unscheduled": {"seconds": 0.7 + before, "exposed_seconds": before, "peak_bytes": peak + 3},
        "before": {"exposed_seconds": before, "communication_seconds": 0.4, "peak_bytes": peak},
        "after": {"seconds": 1.0, "exposed_seconds": after, "communication_seconds": 0.4, "peak_bytes": peak_after},
    }


def handed(
    *,
    seconds=None,
    hidden=0.99,
    backward=0.96,
    error=0.0,
    ranks=2,
    busy=19.0,
    phase="prefill",
    cut_hidden=0.99,
    missing=(),
    peaks=None,
    resident=0,
    least=None,
):
    """What the ranks hand over; the last is 10 ms slower than the others, and has twice the exposure."""
    seconds = {name: s for name, s in {**STEPS, **(seconds or {})}.items() if name not in missing}
    names = [name for name in ORDER if name in seconds]

    def exposed(name, rank):
        part = {"full": (1 - hidden) / 1.5, "full, pieces": (1 - cut_hidden) / 1.5}.get(name, 0.5)
        figures = {"communication": 0.3, "exposed": 0.3 * part * (1 + rank), "waiting": 0.003, "compute": 0.5}
        if phase == "training":
            bare = (1 - backward) if name == "full" else 0.5
            figures["forward"] = {"communication": 0.1, "exposed": 0.0, "waiting": 0.0}
            figures["backward"] = {"communication": 0.2, "exposed": 0.2 * bare, "waiting": 0.001}
        return figures

    def of(rank):
        pairs = [(one, other) for one, other in COMPARED if one in seconds and other in seconds]
        return {
            "seconds": {name: [s, s + 0.002, s - 0.002, s + 0.01 * (rank == ranks - 1)] for name, s in seconds.items()},
            "checks": [
                {
                    "one": a,
                    "other": b,
                    "tensors": 2,
                    "worst": f"w{rank}",
                    "error": error if a == "full" and rank else 0.0,
                }
                for a, b in pairs
            ],
            "exposed": {name: exposed(name, rank) for name in names},
            "peak_bytes": {**dict.fromkeys(names, 10**8 + rank), **(peaks or {})},
            "busy": [10.0, 9.0, busy],
        }

    return {
        "ratio": 0.5,
        "network": {"rate": 10**9, "text": "2 hosts (network namespaces), 1 Gbit/s up and down each"},
        "ranks": [of(rank) for rank in range(ranks)],
        "exchanges": 12,
        "resident_bytes": resident,
        "compile_seconds": dict.fromkeys(names, 11.0),
        "code": {
            name: {"collectives": 12, "covered": min(12, HEAVY[name]), "heavy": HEAVY[name]}
            for name in names
            if name in HEAVY
        },
        "estimates": {"none": [], "full": [estimate(0.3, 0.1, 100, 104), estimate(0.6, 0.2, 100, 90)]},
        "model_bound": {
            "total": 0.61,
            "compute": 0.6,
            "communication": 0.3,
            "unhideable": 0.01,
            "slowed": 0.63,
            "slowing": 0.02,
        },
        "profile": {"name": "made up"},
        "shares": {"attention": 0.41, "shared": 0.07, "routed": 0.52},
        "least_makespans": {"full": least} if least else {},
        "largest_exchange": 28 * resident // 1000,
        "missing": dict.fromkeys(missing, "nobody wrote it"),
    }


def result(name="deepseek_v3/prefill/balanced/2/0.5", **wanted) -> Result:
    """Of a tensor-parallel cell without the variants that need expert parallelism."""
    cell = Cell.parse(name)
    wanted["missing"] = (*DROPLESS, *wanted.get("missing", ()))
    if cell.group.model in TENSOR_PARALLEL:
        wanted["missing"] = (*EXPERT_PARALLEL, *wanted["missing"])
    data = handed(phase=cell.group.phase, **wanted)
    return summarise(
        cell,
        data,
        about="a model",
        cores="one core for each rank",
        machine="a machine",
        when="2026-01-01 12:00",
        is_network=True,
    )
