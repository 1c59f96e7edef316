"""`fathom report`: the one offline page of a run, written again."""

from __future__ import annotations

from pathlib import Path

from fathom.analysis.report import write_report
from fathom.verbs.result import Run, load


def report(run: Run | str | Path) -> Path:
    """Write report.html from what lies in the run folder.

    Args:
        run: finished or not.

    Returns:
        Where the page is.
    """
    return write_report(load(run).folder)
