# SPDX-License-Identifier: Apache-2.0
"""What rewiring brings to the checkpoint, on hardware that is not here.

In:    settings with a hardware profile.
Out:   plain data: seconds of a step as written and rewired, and what is hidden; or the reason why there is no forecast.
Never: ends a healing because its model can't be simulated: that is said. Runs the model or needs the hardware.

A step is a prefill of 8 sequences of 2048 tokens over all ranks, as `farskip simulate` has it; that command has more
options, and says more.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from farskip_compile.errors import FarSkipError
from farskip_compile.healing.heal.settings import HealSettings
from farskip_compile.measure.simulate import Scenario, predict

NOT_ASKED = "none was asked for (--hardware h100 --ep 8, or another profile)"


def scenario_of(settings: HealSettings) -> Scenario:
    """What is predicted.

    Raises:
        ConfigError: the profile is unknown, or sizes do not divide.
    """
    assert settings.hardware is not None
    return Scenario(
        model=str(settings.checkpoint.resolve()),
        device=settings.hardware,
        ep=settings.ep,
        tp=settings.tp,
        phase=settings.phase,
        batch=8 * max(1, max(settings.ep, settings.tp) // settings.tp // 8),
        also=() if settings.connectivity in ("full", "none") else (settings.connectivity,),
    )


def forecast(settings: HealSettings) -> dict[str, Any]:
    """`reason` is empty if there is a forecast.

    Raises:
        ConfigError: the profile is unknown, or sizes do not divide: that was asked for wrongly.
    """
    if settings.hardware is None:
        return {"reason": NOT_ASKED}
    scenario = scenario_of(settings)
    try:
        with warnings.catch_warnings(action="ignore"):
            found = predict(scenario)
    except FarSkipError as error:
        return {"reason": f"{type(error).__name__}: {error.reason}"}
    except Exception as error:  # any: the model's own code runs on fake tensors
        return {"reason": f"{type(error).__name__}: {error}".splitlines()[0]}
    name = settings.connectivity if settings.connectivity in found.also else "farskip"
    rewired = found.orders[name]
    cluster = f"{scenario.ranks} x {scenario.profile.name}"
    return {
        "reason": "",
        "where": f"{cluster}, ep {scenario.ep}, tp {scenario.tp}, {scenario.exchanges}",
        "what": f"{scenario.phase} of {scenario.batch} sequences of {scenario.prompt} tokens",
        "written": found.written.seconds,
        "overlapped": found.scheduled.seconds,
        "rewired": rewired.seconds,
        "hidden_written": found.written.hidden,
        "hidden": rewired.hidden,
        "communication": found.written.communication,
    }


def in_words(found: Mapping[str, Any]) -> str:
    """One or two sentences."""
    if found["reason"]:
        return f"No forecast: {found['reason']}"
    gain, alone = found["written"] / found["rewired"], found["written"] / found["overlapped"]
    part = found["communication"] / found["written"]
    return (
        f"{found['what']} on {found['where']}: {gain:.2f} x with everything rewired, {alone:.2f} x by overlapping "
        f"alone; {part:.0%} of the step as written is communication, {max(found['hidden'], 0):.0%} of it hidden when "
        "rewired. An estimate, from the profile."
    )
