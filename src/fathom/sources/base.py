"""What the sources share: columns that are read once, kinds that are guessed once, and the names of parts.

Guessed    a source writes `_read` and `_setting`; columns, schema, parts and notes follow
PARTS      the words that name a part of the data, in folders, files and dicts
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from fathom.core.contract import Columns, Index, Schema, Source
from fathom.core.recipe import Data
from fathom.sources.guess import Setting, guess

PARTS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "validation": "validation", "valid": "validation", "val": "validation",
}  # fmt: skip


class Guessed(Source):
    """A source whose columns are held once read, and whose kinds are guessed from them.

    Attributes:
        reading_notes: sentences about how the rows were read.
    """

    def __init__(self, location: Any, options: Data) -> None:
        super().__init__(location, options)
        self.reading_notes: list[str] = []
        self._columns: Columns | None = None
        self._schema: Schema | None = None
        self._splits: dict[str, Index] = {}
        self._guessed: list[str] = []

    @abstractmethod
    def _read(self) -> Columns:
        """All rows; parts that the data names go to `_splits`."""

    @abstractmethod
    def _setting(self, columns: Columns) -> Setting:
        """What is known before the kinds are guessed."""

    def _guess_options(self, columns: Columns) -> Data:
        """The recipe's table, as `guess` shall read it."""
        return self.options

    def _judge_by_validation(self) -> None:
        """Take a given validation part as the test where none is given."""
        if "validation" in self._splits and "test" not in self._splits and "train" in self._splits:
            self._splits["test"] = self._splits.pop("validation")
            self.reading_notes.append(
                "There is no test part: the given validation part is the test, and a new one is cut from train."
            )

    def columns(self) -> Columns:
        """All rows."""
        if self._columns is None:
            self._columns = self._read()
        return self._columns

    def schema(self) -> Schema:
        """The guessed kinds."""
        columns = self.columns()
        if self._schema is None:
            self._schema, self._guessed = guess(columns, self._guess_options(columns), self._setting(columns))
        return self._schema

    def given_splits(self) -> dict[str, Index]:
        """The parts that the data itself names."""
        self.columns()
        return self._splits

    def notes(self) -> list[str]:
        """How the rows were read, what was guessed and left out."""
        self.schema()
        return [*self.reading_notes, *self._guessed]
