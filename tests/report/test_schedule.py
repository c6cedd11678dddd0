"""Reports of schedules reach whoever reads them."""

from __future__ import annotations

import json

from farskip_compile.report.schedule import ScheduleReport, clear_schedules, last_schedules, publish_schedule
from tests.passes.test_driver import listening


def test_a_schedule_is_kept_and_in_the_structured_trace() -> None:
    clear_schedules()
    report = ScheduleReport("forward", {"0": ["all_reduce sum float32"]})
    with listening() as keep:
        publish_schedule(report)
    assert last_schedules() == (report,)
    assert keep.names == ["farskip_schedule"]
    told = json.loads(keep.texts[0])
    assert (told["phase"], told["orders"]) == ("forward", {"0": ["all_reduce sum float32"]})
