"""A prediction as plain data.

Contract: for `json.dumps`; seconds and bytes, nothing rounded.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from farskip_compile.simulate.exposed import exposed_rows
from farskip_compile.simulate.predict import Prediction, StepResult

ORDERS = ("written", "scheduled", "published", "farskip")


def prediction_json(found: Prediction) -> dict[str, Any]:
    """All of a prediction but its tasks."""
    scenario = found.scenario
    return {
        "scenario": {
            "model": scenario.architecture.name,
            "source": scenario.architecture.source,
            "device": scenario.profile.name,
            "profile": scenario.profile.digest(),
            "phase": str(scenario.phase),
            "ranks": scenario.ranks,
            "ep": scenario.ep,
            "tp": scenario.tp,
            "batch": scenario.batch,
            "prompt": scenario.prompt,
            "exchange": scenario.exchanges,
            "products": scenario.products,
            "skew": scenario.skew,
            "layers": scenario.layers,
            "interference": scenario.interference,
            "measured": scenario.measured,
            "slower": scenario.slower,
        },
        "imbalance": found.imbalance,
        "compute_slower": found.slower,
        "parameters": found.parameters,
        "nodes": found.nodes,
        "rewired": found.rewired,
        "orders": {name: _step(getattr(found, name)) for name in ORDERS},
        "speedup": {
            "scheduled": found.scheduled_speedup,
            "published": found.published_speedup,
            "farskip": found.speedup,
        },
        "seconds_taken": dict(found.took),
    }


def _step(step: StepResult) -> dict[str, Any]:
    return {
        "seconds": step.seconds,
        "compute": step.compute,
        "communication": step.communication,
        "exposed": step.exposed,
        "hidden": step.hidden,
        "peak_bytes": step.peak_bytes,
        "phases": {
            one.phase: {
                "seconds": one.timeline.makespan,
                "compute": one.timeline.compute,
                "communication": one.timeline.communication,
                "exposed": one.timeline.exposed,
                "collectives": [asdict(row) for row in exposed_rows(one)],
            }
            for one in step.phases
        },
    }
