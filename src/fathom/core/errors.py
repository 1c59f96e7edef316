"""Errors that people read: what came, what is allowed, where, and what to do.

Every fault that a user can cause is a `FathomError`. The command line prints its text and exits with code 2;
only `--debug` shows a traceback. `nearest` finds the name that was probably meant.

    FathomError          any of them
    ├── RecipeError      one or more wrong keys or values, all named at once
    ├── DataError        the data cannot be read or used
    ├── RunError         a run folder, checkpoint or model file is missing, damaged or does not fit
    │   └── DamagedError its content is not what was written
    ├── NonFiniteError   training met NaN or infinity
    └── Interrupted      SIGTERM or SIGINT: the work was saved (exit code 130)
RowFaults is different: the encoder's way to hand back the rows that it could not read.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

CLOSE = 0.62  # of difflib: 'resnt' is near 'resnet'; 'nope' is not near 'wine'


class FathomError(Exception):
    """A sentence for the user. `exit_code` is what the command line returns."""

    exit_code = 2


class RecipeError(FathomError):
    """One or more faults in a recipe: `faults` holds a sentence each."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = list(faults)
        count = len(self.faults)
        head = "" if count == 1 else f"{count} faults in the recipe:\n  "
        super().__init__(head + "\n  ".join(self.faults))


class DataError(FathomError):
    """The data cannot be read or used."""


class RunError(FathomError):
    """A run folder, checkpoint or model file is missing, damaged or does not fit."""


class DamagedError(RunError):
    """A file of a run cannot be parsed, or its content is not what was written."""


class NonFiniteError(FathomError):
    """Training met a loss or gradient that is not a number or infinite."""


class Interrupted(FathomError):
    """A signal stopped the run after its work was saved."""

    exit_code = 130


class RowFaults(Exception):
    """Rows that an encoder could not read, with the reason of each.

    Args:
        reasons: row number within the encoded columns -> why it could not be read.
        partial: the encoded rows; the faulty ones hold zeros.
    """

    def __init__(self, reasons: Mapping[int, str], partial: Any) -> None:
        super().__init__(f"{len(reasons)} rows could not be read")
        self.reasons = dict(reasons)
        self.partial = partial


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name that is most like `name`, or None where nothing is near."""
    options = [str(option) for option in allowed]
    section = name[: name.rfind(".") + 1]  # what all share makes nothing alike
    shared = len(section) if all(option.startswith(section) for option in options) else 0
    by_lower = {option[shared:].lower(): option for option in options}
    wanted = name[shared:].lower()
    found = difflib.get_close_matches(wanted, by_lower, n=1, cutoff=CLOSE)
    found = found or [option for option in by_lower if wanted in option.split("_")][:1]  # "rate" is "learning_rate"
    return by_lower[found[0]] if found else None


def hint(name: str, allowed: Iterable[str]) -> str:
    """The nearest name in brackets, with a space before it; nothing where none is near."""
    guess = nearest(name, allowed)
    return f" (nearest: {guess})" if guess else ""


def unknown(what: str, name: str, allowed: Iterable[str], where: str = "") -> str:
    """The sentence for a name that is not known.

    >>> unknown("network", "resnt", ["cnn", "resnet"])
    "There is no network 'resnt'. Did you mean 'resnet'? Known: cnn, resnet."
    """
    options = sorted({str(option) for option in allowed})
    guess = nearest(name, options)
    shown = ", ".join(options[:12]) + (f" and {len(options) - 12} more" if len(options) > 12 else "")
    sentence = f"There is no {what} '{name}'{' in ' + where if where else ''}."
    sentence += f" Did you mean '{guess}'?" if guess else ""
    return sentence + (f" Known: {shown}." if options else "")


def count_text(count: int, one: str) -> str:
    """A number with its noun.

    >>> count_text(1, "row"), count_text(1200, "row"), count_text(2, "class")
    ('1 row', '1,200 rows', '2 classes')
    """
    many = f"{one}es" if one.endswith("s") else f"{one}s"
    return f"{count:,} {one if count == 1 else many}"


PLAIN = {
    ", unable to parse string as a number": "",
    ", unable to parse string as an integer": "",
    ", unable to interpret input": "",
    ", got a number with a fractional part": ", without a fraction",
    "a valid tuple": "a list, as [32]",
    "a valid list": "a list",
    "a valid dictionary": "a table",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid integer": "a whole number",
}


def plain(message: str) -> str:
    """What pydantic says, without the words of Python."""
    for python, words in PLAIN.items():
        message = message.replace(python, words)
    return message
