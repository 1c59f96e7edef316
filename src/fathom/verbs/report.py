"""`fathom report`: the one offline page of a run, written again."""

from __future__ import annotations

from pathlib import Path

from fathom.analysis.report import write_report
from fathom.core.errors import DamagedError
from fathom.core.run import read_json
from fathom.verbs.result import Run, load


def report(run: Run | str | Path) -> Path:
    """Write report.html from what lies in the run folder.

    Args:
        run: finished or not.

    Returns:
        Where the page is.

    Raises:
        DamagedError: there is a page, and the results that it was written from have changed since.
    """
    folder = load(run).folder
    page = folder.file("report.html")
    try:
        if page.exists() and folder.file("results.json").exists():
            read_json(folder.file("results.json"))
    except DamagedError as error:
        raise DamagedError(f"{error} The page {page} stays as it was.") from error
    return write_report(folder)
