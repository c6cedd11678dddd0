# SPDX-License-Identifier: Apache-2.0
"""The reports of this process in one place: `farskip_compile.reports()`."""

from __future__ import annotations

from farskip_compile.records.compile import CompileReport, clear_reports, last_reports
from farskip_compile.records.schedule import ScheduleReport, clear_schedules, last_schedules

__all__ = ["Reports"]


class Reports:
    """The reports of this process, as they are when an attribute is read: at most the last 256 of each kind."""

    @property
    def compiles(self) -> tuple[CompileReport, ...]:
        """A report for each graph that the backend received, oldest first."""
        return last_reports()

    @property
    def schedules(self) -> tuple[ScheduleReport, ...]:
        """A report for each compiled graph with collectives that has run, oldest first."""
        return last_schedules()

    def clear(self) -> None:
        """Forget all reports."""
        clear_reports()
        clear_schedules()


def reports() -> Reports:
    """Return the reports of this process: `reports().compiles`, `reports().schedules`, `reports().clear()`."""
    return Reports()
