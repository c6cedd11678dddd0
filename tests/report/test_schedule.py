# SPDX-License-Identifier: Apache-2.0
"""Reports of schedules reach whoever reads them."""

from __future__ import annotations

import json

from farskip_compile.records.schedule import (
    Predicted,
    ScheduleReport,
    clear_schedules,
    last_schedules,
    late,
    publish_schedule,
)
from tests.passes.test_runner import listening


def test_a_schedule_is_kept_and_in_the_structured_trace() -> None:
    clear_schedules()
    report = ScheduleReport("forward", {"0": ["all_reduce sum float32"]})
    with listening() as keep:
        publish_schedule(report)
    assert last_schedules() == (report,)
    assert keep.names == ["farskip_schedule"]
    told = json.loads(keep.texts[0])
    assert (told["phase"], told["orders"]) == ("forward", {"0": ["all_reduce sum float32"]})


def test_the_next_layer_finds_how_late_something_is() -> None:
    clear_schedules()
    for seconds in (0.5, 0.25):
        after = Predicted(1.0, 1.0, 1.0, 0.0, 0, 0, late_seconds=seconds)
        told = ScheduleReport("forward", after=after, leaves="one").to_json(short=True)
        publish_schedule(ScheduleReport.from_json(json.loads(json.dumps(told))))
    publish_schedule(ScheduleReport("forward", leaves="another"))  # not scheduled
    publish_schedule(ScheduleReport("forward", after=Predicted(1.0, 1.0, 1.0, 0.0, 0, 0)))  # leaves nothing
    assert (late("one"), late("another"), late("")) == (0.25, None, None)
    clear_schedules()  # on this rank alone, maybe
    assert late("one") == 0.25
