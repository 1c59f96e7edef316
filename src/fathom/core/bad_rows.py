"""Rows that cannot be read, and rows that are read otherwise than one might think: the first are named, a file lists all.

    BadRow            where it is, why, and whether it is used all the same
    told(rows)        the sentences for the console and the report
    write(path)       path, reason, used: one line a row
    BadRowsError      too many cannot be read; `listed` says where all of them stand

A run folder has them in bad-rows.csv, of its own rows, and in bad-rows-VERB.csv, of those that a later verb was given. What is
refused before there is a run folder stands in NAME-bad-rows.csv beside the runs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fathom.core.errors import DataError, RunError, count_text
from fathom.core.run import write_atomic

FILE = "bad-rows.csv"
SHOWN = 3  # rows that a sentence names


@dataclass(frozen=True)
class BadRow:
    """One row.

    Args:
        path: its file, or its number as "row 17".
        reason: what is wrong with it, or worth a look.
        used: whether it is learnt from or answered all the same.
    """

    path: str
    reason: str
    used: bool


def named(rows: Sequence[BadRow]) -> str:
    """The first rows with their reasons, and how many more there are."""
    shown = "; ".join(f"{row.path}: {row.reason}" for row in rows[:SHOWN])
    return shown + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")


def told(rows: Sequence[BadRow], file: str = FILE) -> list[str]:
    """Sentences: the rows that are left out; of those that are used one for each reason; and where all are listed.

    Args:
        rows: of a run, or of what a run is judged on.
        file: in the run's folder, which is to list them.
    """
    out = [row for row in rows if not row.used]
    notes = [f"{count_text(len(out), 'row')} {'is' if len(out) == 1 else 'are'} left out: {named(out)}."] if out else []
    for reason in dict.fromkeys(row.reason for row in rows if row.used):
        alike = [row for row in rows if row.used and row.reason == reason]
        first = alike[0].path if len(alike) == 1 else f"the first {alike[0].path}"
        notes.append(f"{count_text(len(alike), 'row')} to look at, {first}: {reason}.")
    return [*notes, f"{file} in the run's folder lists {_all_of(len(rows))}."] if rows else []


def _all_of(count: int) -> str:
    return "this row" if count == 1 else f"these {count:,} rows"


def write(path: Path, rows: Sequence[BadRow]) -> None:
    """One line a row, in the order of the rows.

    Raises:
        RunError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["path", "reason", "used"])
    writer.writerows([_as_path(row.path), row.reason, "yes" if row.used else "no"] for row in rows)
    write_atomic(path, text.getvalue().encode())


def _as_path(path: str) -> str:
    """The same path, so written that no spreadsheet runs it as a formula."""
    return f"./{path}" if path.startswith(("=", "+", "-", "@")) else path


class BadRowsError(DataError):
    """More rows cannot be read than may be left out.

    Args:
        what: how many of how many, and what cannot be done with them.
        rows: all of them.
        remedy: what to do, a sentence.
        place: where all of them are listed, a sentence; "" for nowhere.
    """

    def __init__(self, what: str, rows: Sequence[BadRow], remedy: str, place: str = "") -> None:
        self.what, self.rows, self.remedy = what, tuple(rows), remedy
        super().__init__(" ".join(part for part in (f"{what}: {named(rows)}.", place, remedy) if part))

    def listed(self, path: Path) -> BadRowsError:
        """The same, with all rows written to a file; where that cannot be written, the sentence says why."""
        try:
            write(path, self.rows)
            place = f"All are listed in {path}." if len(self.rows) > SHOWN else f"Listed in {path}."
        except RunError as error:
            place = f"They cannot be listed in a file: {error}"
        return BadRowsError(self.what, self.rows, self.remedy, place)


@contextmanager
def listing(path: Path) -> Iterator[None]:
    """Within, a refusal of rows lists all of them in a file."""
    try:
        yield
    except BadRowsError as error:
        raise error.listed(path) from error
