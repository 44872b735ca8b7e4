"""Tables that tests measure are printed at the end, with many processes too: a test calls
``record_property("table", row)``."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = [
        str(value)
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, ())
        for name, value in getattr(report, "user_properties", ())
        if name == "table"
    ]
    if rows:
        terminalreporter.section("measured")
        for row in rows:
            terminalreporter.write_line(row)
