"""Delimited text (CSV, TSV) to typed Arrow columns, judged over every row and never over a sample.

    read_delimited(path, ...) -> Delimited(table, notes, line_of)

    survey      one pass over the bytes: encoding, NUL bytes, quotes, size
    find_dialect  delimiter, quoting, header, names, from the first records
    _parse      pyarrow splits the text into cells; all of them stay text
    Profile     what a column's text can be read as: whole numbers, numbers (three styles), dates, words
    convert     the text of a column as that type

A file larger than the budget is read twice, once to judge and once to convert, and lands in a memory-mapped
Arrow file. What cannot be read rightly is refused with its line: ragged rows, an open quote, NUL bytes.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from fathom.core.errors import DataError
from fathom.sources.stored import stored

MISSING = pa.array(["", "?", "NA", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL", "Null", "NaN", "nan", "NAN"])
NUMBER = r"^\s*[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?\s*$"
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
MOST_COLUMNS = 100_000
MOST_WORDS = 1_000  # a text column of at most this many different values is kept as codes
HEAD = 8 << 20  # bytes that the dialect is found in
CHUNK = 4 << 20
WIDE = 256  # more columns than this are looked at in groups
TOGETHER = 1 << 14  # cells of a group
GAPS = frozenset(MISSING.to_pylist())
BLANK = r"(?: *(?:\r\n|\n|\r))*"
PADDED = r"^\s*[+-]?0[0-9]"
COMMA = r"^[+-]?([1-9]\d{0,2}(\.\d{3})+|\d+)?(,\d+)?$"
THOUSANDS = r"^[+-]?([1-9]\d{0,2}(,\d{3})+|\d+)(\.\d+)?$"
DATE = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:?\d{2})?)?$"
STYLES = ("plain", "comma", "thousands")  # 1234.5 and 1.234,5 and 1,234.5
STYLE = "style"
MOMENTS = (pa.timestamp("us"), pa.timestamp("us", "UTC"))


@dataclass
class Survey:
    """What one pass over the bytes found.

    Args:
        encoding: name of the codec.
        size: bytes of text.
        quotes: how many double quotes.
        lines: how many line ends, as far as the pass has come.
        breaks: how many lines the file has.
        notes: sentences.
    """

    encoding: str
    size: int = 0
    quotes: int = 0
    lines: int = 0
    breaks: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Dialect:
    """How cells are set apart, and what the columns are called; `blank` lines stand before the first record."""

    delimiter: str
    quoting: bool
    header: bool
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    blank: int = 0


@dataclass
class Delimited:
    """A read file.

    Args:
        table: typed columns; the schema says of numbers in which style they are written (`style_of`).
        notes: sentences about what was guessed.
        line_of: row number from 0 -> line of the file, from 1.
    """

    table: pa.Table
    notes: list[str]
    line_of: Callable[[int], int]


def read_delimited(path: Path, reading: Mapping[str, str], budget: float) -> Delimited:
    """Read a delimited file.

    Args:
        path: plain or gzip.
        reading: column -> how it is to be read where not as its values suggest (see `Profile`).
        budget: bytes of text above which the table lives in a memory-mapped file.

    Raises:
        DataError: names the line, or the byte, that cannot be read.
    """
    found = survey(path)
    dialect = find_dialect(path, found)
    text = Text(path, found, dialect)

    def judge() -> tuple[list[Profile], list[pa.RecordBatch]]:
        profiles = [Profile(name, dialect.delimiter, reading.get(name)) for name in dialect.names]
        kept: list[pa.RecordBatch] = []
        for batch in text.batches():
            judge_batch(profiles, batch.columns)
            if found.size <= budget:
                kept.append(batch)
        text.check_quotes(profiles[0].rows)
        settle_styles(profiles)
        for profile in profiles:
            profile.require(path, text.line_of)
        return profiles, kept

    if found.size <= budget:
        profiles, kept = judge()
        batches = [convert_batch(profiles, kept.pop(0).columns) for _ in range(len(kept))]
        table = pa.table(
            [pa.chunked_array([part[i] for part in batches], p.type) for i, p in enumerate(profiles)],
            schema=pa.schema([profile.arrow_field() for profile in profiles]),
        )
        notes = column_notes(profiles)
    else:

        def write() -> tuple[pa.Schema, Iterator[pa.RecordBatch], list[str]]:
            profiles, _ = judge()
            schema = pa.schema([profile.arrow_field() for profile in profiles])

            def converted() -> Iterator[pa.RecordBatch]:
                for batch in text.batches():
                    yield pa.record_batch(convert_batch(profiles, batch.columns), schema=schema)

            return schema, converted(), column_notes(profiles)

        table, notes = stored(path, reading, found.size, write)
    return Delimited(table, [*found.notes, *dialect.notes, *notes], text.line_of)


# ---------------------------------------------------------------- bytes


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, unpacked where it is gzip (seen from its first bytes, not from its name)."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else open(path, "rb")  # type: ignore[return-value]


@contextlib.contextmanager
def unpacking(path: Path) -> Iterator[None]:
    """Turn the faults of reading and unpacking into one sentence."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file ({error}). Copy or fetch it again.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")  # bytes that Windows-1252 gives no meaning


def survey(path: Path) -> Survey:
    """One pass over the bytes.

    The encoding is that of the byte order mark; UTF-16 where half of the first bytes are NUL; UTF-8 where all
    bytes are valid; else Windows-1252, unless valid multi-byte UTF-8 stands before the first invalid byte.

    Raises:
        DataError: the file is empty, holds NUL bytes, or bytes of no encoding; names offset and line.
    """
    with unpacking(path), open_bytes(path) as file:
        first = file.read(CHUNK)
        if not first.strip():
            raise DataError(f"{path} is empty. Give a file with a header line and a line for each row.")
        found = _encoding(first)
        decoder = codecs.getincrementaldecoder(found.encoding)()
        multibyte, invalid, undefined = False, None, None
        returns, last = 0, b""
        chunk = first
        while chunk:
            if found.encoding == "utf-8" and b"\0" in chunk:
                place = chunk.index(b"\0")
                line = found.lines + chunk[:place].count(b"\n") + 1
                raise DataError(
                    f"{path} holds a NUL byte at offset {found.size + place} (line {line}), which text "
                    "never does. "
                    "Is it a text file? Export it again as UTF-8 CSV."
                )
            if invalid is None:
                invalid, seen = _decode(decoder, chunk, found)
                multibyte |= seen
            if undefined is None and not chunk.isascii() and (hit := UNDEFINED.search(chunk)):
                undefined = found.size + hit.start(), found.lines + chunk[: hit.start()].count(b"\n") + 1
            found.size += len(chunk)
            found.quotes += chunk.count(b'"')
            found.lines += chunk.count(b"\n")
            returns += chunk.count(b"\r")
            last = chunk
            chunk = file.read(CHUNK)
        if invalid is None:
            invalid, _ = _decode(decoder, b"", found)
    found.breaks = max(found.lines, returns) + (not last.rstrip(b"\0").endswith((b"\n", b"\r")))
    if invalid is not None:
        _fall_back(path, found, invalid, multibyte, undefined)
    return found


def _encoding(first: bytes) -> Survey:
    """The codec that the first bytes suggest."""
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return Survey("utf-16", notes=["The text is UTF-16."])
    head = first[:4096]
    if len(head) > 3 and head[1::2].count(0) > 0.4 * len(head[1::2]):
        return Survey("utf-16-le", notes=["The text is UTF-16 (little endian, without a mark)."])
    if len(head) > 3 and head[0::2].count(0) > 0.4 * len(head[0::2]):
        return Survey("utf-16-be", notes=["The text is UTF-16 (big endian, without a mark)."])
    return Survey("utf-8")


def _decode(decoder: Any, chunk: bytes, found: Survey) -> tuple[tuple[int, int, int] | None, bool]:
    """Feed the decoder; (offset, line, byte) of what it refuses, and whether it met multi-byte characters."""
    pending = decoder.getstate()[0]
    if found.encoding == "utf-8" and not pending and chunk.isascii() and chunk:
        return None, False
    try:
        decoder.decode(chunk, final=not chunk)
        return None, not chunk.isascii()
    except UnicodeDecodeError as error:
        place = max(error.start - len(pending), 0)
        data = error.object
        line = found.lines + chunk[:place].count(b"\n") + 1
        seen = not data[: error.start].isascii()
        return (found.size + error.start - len(pending), line, data[error.start]), seen


def _fall_back(
    path: Path,
    found: Survey,
    invalid: tuple[int, int, int],
    multibyte: bool,
    undefined: tuple[int, int] | None,
) -> None:
    """Take bytes that are not UTF-8 as Windows-1252, where that can be right."""
    offset, line, byte = invalid
    where = f"the byte 0x{byte:02x} at offset {offset} (line {line})"
    if found.encoding != "utf-8":
        raise DataError(f"{path} looks like UTF-16, but {where} does not fit. Save the file as UTF-8.")
    if multibyte:
        raise DataError(
            f"{path} is UTF-8 up to {where}, which is not valid UTF-8. The file is damaged or joined "
            "from files of "
            "different encodings; save it as UTF-8."
        )
    if undefined is not None:
        raise DataError(
            f"{path} is neither UTF-8 ({where}) nor Windows-1252 (offset {undefined[0]}, line "
            f"{undefined[1]}). "
            "Save the file as UTF-8."
        )
    found.encoding = "cp1252"
    found.notes.append(f"The text is not UTF-8 (first at line {line}); it is read as Windows-1252.")


# ---------------------------------------------------------------- dialect


def find_dialect(path: Path, found: Survey) -> Dialect:
    """Delimiter, quoting and header, from the first records.

    The delimiter is the one that cuts the header in two or more and most of the first records into as many.

    Raises:
        DataError: two columns have one name, or there are too many columns.
    """
    with unpacking(path), open_bytes(path) as file:
        data = file.read(HEAD)
    text = codecs.getincrementaldecoder(found.encoding)("replace").decode(data).removeprefix("\ufeff")
    blank = re.match(BLANK, text)[0]  # type: ignore[index]
    text = text[len(blank) :]
    whole = len(data) == found.size
    tabs = ".tsv" in path.suffixes or ".tab" in path.suffixes
    order = sorted(DELIMITERS, key=lambda sign: sign != "\t") if tabs else list(DELIMITERS)
    best, delimiter, records = (0.0, 1), order[0], _records(text, order[0], True, whole)
    for sign in order:
        rows = _records(text, sign, True, whole)
        width = len(rows[0]) if rows else 0
        if width < 2:
            continue
        share = sum(len(row) == width for row in rows) / len(rows)
        if (share, width) > best:
            best, delimiter, records = (share, width), sign, rows
    if not records:
        raise DataError(f"{path} is empty. Give a file with a header line and a line for each row.")
    quoting = found.quotes > 0 and not (delimiter == "\t" and _plain_tabs(text, whole))
    if found.quotes and not quoting:
        records = _records(text, delimiter, False, whole)
    notes = []
    if not quoting and found.quotes:
        notes.append("Cells are cut at tabs only; quotation marks are kept as text.")
    if delimiter != ("\t" if tabs else ",") and len(records[0]) > 1:
        notes.append(f"Columns are set apart by {DELIMITERS[delimiter]}.")
    if len(records[0]) > MOST_COLUMNS:
        raise DataError(
            f"{path} has {len(records[0]):,} columns; a table may have {MOST_COLUMNS:,}. If they are the "
            "samples of "
            "one thing (pixels, a spectrum), give them as an array in an .npz file with x and y."
        )
    header = has_header(records[0], records[1:])
    if not header:
        notes.append("There is no header line: the first line is data, so the columns are called column1, column2, ...")
    numbers = [name for name in records[0] if is_number(name)]
    if header and 2 * len(numbers) > len(records[0]):
        notes.append(
            f"The first line is taken as the names of the columns, although it holds numbers: {shorten(numbers)}."
        )
    names = _names(path, records[0], header, notes)
    lines = len(re.findall(r"\r\n|\n|\r", blank))
    return Dialect(delimiter, quoting, header, names, tuple(notes), lines)


def _records(text: str, delimiter: str, quoting: bool, whole: bool, most: int = 200) -> list[list[str]]:
    """The first records; the last of a text that is cut off is left out."""
    style = csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=style)  # type: ignore[arg-type]
    records: list[list[str]] = []
    with contextlib.suppress(csv.Error):  # a cell beyond the csv module's limit: what came before it is enough
        for row in reader:
            if row:
                records.append(row)
            if len(records) > most:
                return records[:most]
    return records if whole or len(records) < 2 else records[:-1]


def _plain_tabs(text: str, whole: bool) -> bool:
    """Whether quotation marks in a tab file are text: rows come out even without quoting, and cells
    are not wrapped."""
    plain = _records(text, "\t", False, whole, 10_000)
    if any(len(row) != len(plain[0]) for row in plain):
        return False
    marked = [cell for row in plain for cell in row if '"' in cell]
    wrapped = [cell for cell in marked if len(cell) > 1 and cell[0] == cell[-1] == '"']
    return len(wrapped) < len(marked)


def has_header(first: Sequence[str], rest: Sequence[Sequence[str]]) -> bool:
    """Whether the first record names the columns.

    It does not where every numeric column has a number on top, unless these are 0, 1, 2, ... or different
    whole numbers over values with a fraction. Words that mean missing are no values, and say nothing on top; where
    nothing else is on top, "?" and "NA" are data and empty cells are columns without a name.
    """
    columns = [[row[i] for row in rest if i < len(row) and row[i].strip() not in GAPS] for i in range(len(first))]
    numeric = [i for i, values in enumerate(columns) if values and all(map(is_number, values))]
    tops = [first[i].strip() for i in numeric if first[i].strip() not in GAPS]
    if not tops:
        return not any(first[i].strip() for i in numeric)
    if not all(map(is_number, tops)):
        return True
    numeric = [i for i in numeric if first[i].strip() not in GAPS]
    if len(tops) < 2 or not all(top.isdigit() for top in tops):
        return False
    if tops in ([str(i) for i in range(len(tops))], [str(i + 1) for i in range(len(tops))]):
        return True
    fractions = all(any("." in value for value in columns[i]) for i in numeric)
    return len(set(tops)) == len(tops) and fractions


def is_number(text: str) -> bool:
    """Whether a cell reads as a number, with a point or a comma."""
    return bool(re.match(NUMBER, text))


def _names(path: Path, first: Sequence[str], header: bool, notes: list[str]) -> tuple[str, ...]:
    if not header:
        return tuple(f"column{i + 1}" for i in range(len(first)))
    names = [name.strip() or f"column{i + 1}" for i, name in enumerate(first)]
    if unnamed := [name for name, given in zip(names, first, strict=True) if not given.strip()]:
        notes.append(f"The header leaves {len(unnamed)} columns without a name; they are called {shorten(unnamed)}.")
    twice = [f"'{name}' ({count} times)" for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: the header names {shorten(twice, 5)}. Every column needs a name of its own; rename "
            "them in line 1."
        )
    return tuple(names)


def shorten(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ---------------------------------------------------------------- cells


class Text:
    """The cells of a file, as text.

    Args:
        path: the file.
        found: of `survey`.
        dialect: of `find_dialect`.
    """

    def __init__(self, path: Path, found: Survey, dialect: Dialect) -> None:
        self.path = path
        self.found = found
        self.dialect = dialect
        self._open_end = False  # whether a cell of the last row holds a line end, as an open quote makes it
        if found.quotes % 2 and dialect.quoting:
            self._diagnose(ragged=False)  # an odd mark: an open quote, or an inch sign

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, some MB at a time; columns are called 0, 1, ...

        Raises:
            DataError: ragged rows, an open quote.
        """
        width = len(self.dialect.names)
        block = max(CHUNK, min(width * 640, 64 << 20))
        done = 0
        while True:
            try:
                for number, batch in enumerate(self._parse(block)):
                    last = batch.slice(batch.num_rows - 1).to_pylist()
                    self._open_end = any("\n" in cell or "\r" in cell for row in last for cell in row.values())
                    if number >= done:
                        yield batch
                        done = number + 1
                return
            except pa.ArrowInvalid as error:
                if "straddl" in str(error) and block < 1 << 30 and not done:
                    block = min(block * 8, 1 << 30)  # one record is longer than the block
                    continue
                self._diagnose(ragged=True)
                raise DataError(f"{self.path} cannot be read as a table: {error}.") from error

    def _parse(self, block: int) -> Iterator[pa.RecordBatch]:
        from pyarrow import csv as arrow_csv

        names = [str(i) for i in range(len(self.dialect.names))]
        read = arrow_csv.ReadOptions(
            column_names=names,
            skip_rows=self.dialect.blank,
            skip_rows_after_names=int(self.dialect.header),
            block_size=block,
            encoding=self.found.encoding,
        )
        parse = arrow_csv.ParseOptions(
            delimiter=self.dialect.delimiter,
            quote_char='"' if self.dialect.quoting else False,
            newlines_in_values=self.dialect.quoting,
        )
        plain = arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        with unpacking(self.path), open_bytes(self.path) as file:
            yield from arrow_csv.open_csv(file, read, parse, plain)

    def records(self, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
        """Records through the csv module, each with its first line: slow, for finding places."""
        style = csv.QUOTE_MINIMAL if self.dialect.quoting else csv.QUOTE_NONE
        with unpacking(self.path), open_bytes(self.path) as file:
            encoding = "utf-8-sig" if self.found.encoding == "utf-8" else self.found.encoding
            text = io.TextIOWrapper(file, encoding, newline="")
            line = len([text.readline() for _ in range(self.dialect.blank)])
            before = line
            reader = csv.reader(text, delimiter=self.dialect.delimiter, quoting=style, strict=strict)  # type: ignore[arg-type]
            try:
                for row in reader:
                    if row:
                        yield line + 1, row
                    line = before + reader.line_num
            except csv.Error as error:
                raise _OpenQuoteError(line + 1, str(error)) from error

    def line_of(self, row: int) -> int:
        """The line of the file where row `row` (from 0) begins."""
        wanted = row + int(self.dialect.header)
        with contextlib.suppress(_OpenQuoteError):
            for number, (line, _) in enumerate(self.records()):
                if number == wanted:
                    return line
        return wanted + 1

    def check_quotes(self, rows: int) -> None:
        """Look for stray quotes, where cells hold line ends: a stray pair joins lines in silence."""
        joined = self.found.breaks > rows + int(self.dialect.header)
        if self.dialect.quoting and (joined or self._open_end):
            self._diagnose(ragged=False)

    def _diagnose(self, ragged: bool) -> None:
        """Find the line that is wrong, and say so."""
        width = len(self.dialect.names)
        try:
            for line, row in self.records(strict=True):
                if ragged and len(row) != width:
                    raise DataError(
                        f"{self.path}, line {line}: {len(row)} cells were found, {width} are expected"
                        f"{' from the header' if self.dialect.header else ''}. "
                        f"Mend the line (a cell that holds {DELIMITERS[self.dialect.delimiter]} needs "
                        "quotation marks)."
                    )
        except _OpenQuoteError as error:
            what = "a quotation mark is opened and not closed"
            if "expected after" in error.reason:
                what = "text follows a closing quotation mark (a mark inside a cell is written twice)"
            raise DataError(f"{self.path}, line {error.line}: {what}. Mend the record that begins there.") from error


class _OpenQuoteError(Exception):
    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


# ---------------------------------------------------------------- types


class Profile:
    """What the text of one column can be read as.

    Args:
        name: of the column.
        delimiter: of the file; where it is a comma, a comma in a cell is taken as a decimal comma only if training
            had it so.
        reading: "number" or "text" where the type is given, "number:STYLE" where the style of training is known,
            "word" where dates are to stay text.
    """

    def __init__(self, name: str, delimiter: str = ",", reading: str | None = None) -> None:
        self.name = name
        self.delimiter = delimiter
        self.reading, _, self.learned = (reading or "").partition(":")
        self.unsure = False  # whether the numbers were written in two ways, as far as could be told
        self.rows = 0
        self.filled = 0
        self.missing: Counter[str] = Counter()
        styles = ["plain", "thousands"] if delimiter == "," and self.learned != "comma" else list(STYLES)
        self.styles = [] if self.reading == "text" else styles
        self.moments = [] if reading else list(MOMENTS)
        self.reading = "" if self.reading in ("word", "file") else self.reading
        self.whole = True
        self.padded = False
        self.words: dict[str, None] | None = {}  # in the order of their first row
        self.odd: tuple[int, str] | None = None  # the first cell that is no number, of a column read as numbers

    def add(self, column: pa.Array) -> None:
        """The next cells."""
        values = self._filled(column, count=True)
        known = values.drop_null()
        if len(known):
            self._numbers(values, known)
            self._moments(known)
            self._words(known)
        self.rows += len(column)
        self.filled += len(known)

    def add_plain(self, rows: int) -> None:
        """The next cells, known to be plain numbers; whole ones where `whole` is still true."""
        self.words, self.moments = None, []
        self.rows += rows
        self.filled += rows

    def _filled(self, column: pa.Array, count: bool = False) -> pa.Array:
        """The cells, with null for the words that mean missing."""
        if not count and not self.missing:
            return column
        gaps = pc.is_in(pc.ascii_trim_whitespace(column), value_set=MISSING)
        if not pc.any(gaps).as_py():
            return column
        if count:
            for entry in pc.value_counts(column.filter(gaps)).to_pylist():
                self.missing[entry["values"].strip()] += entry["counts"]
        return pc.if_else(gaps, pa.scalar(None, pa.string()), column)

    def _numbers(self, values: pa.Array, known: pa.Array) -> None:
        if not self.styles:
            return
        whole = "plain" in self.styles and (self.whole or "comma" in self.styles) and _integers(known) is not None
        alive = self.styles if whole else self._alive(known)
        if not alive and self.reading == "number" and self.odd is None:
            self.odd = self._first_odd(values)
        self.styles = alive
        self.whole = self.whole and whole
        if self.whole and not self.padded and not self.reading:
            self.padded = has_padding(known)

    def _alive(self, known: pa.Array) -> list[str]:
        """The styles in which all of these are numbers; plain numbers are never at odds with thousands separators."""
        plain = "plain" in self.styles and parse_numbers(known, "plain") is not None
        kept = {"plain": plain, "thousands": plain}
        return [style for style in self.styles if kept.get(style) or parse_numbers(known, style) is not None]

    def _first_odd(self, values: pa.Array) -> tuple[int, str]:
        for place, value in enumerate(values):
            word = value.as_py()
            if word is not None and all(parse_numbers(pa.array([word]), style) is None for style in self.styles):
                return self.rows + place, word
        return self.rows, str(values.drop_null()[0].as_py())  # each fits some style, but not all one style

    def _moments(self, known: pa.Array) -> None:
        if self.moments and pc.all(pc.match_substring_regex(known, DATE)).as_py():
            self.moments = [moment for moment in self.moments if _cast(known, moment) is not None]
        else:
            self.moments = []

    def _words(self, known: pa.Array) -> None:
        if self.words is None:
            return
        words = known.unique()
        if len(words) <= MOST_WORDS:
            self.words.update(dict.fromkeys(words.to_pylist()))
        if max(len(words), len(self.words)) > MOST_WORDS:
            self.words = None

    @property
    def type(self) -> pa.DataType:
        """The Arrow type that holds every value."""
        if self.filled == 0:
            return {"number": pa.float64(), "text": pa.string()}.get(self.reading, pa.null())
        if self.styles and not (self.padded and self.whole):  # digits with leading zeros are a name, no quantity
            return pa.int64() if self.whole else pa.float64()
        if self.moments:
            return self.moments[0]
        return pa.dictionary(pa.int32(), pa.string()) if self.words is not None else pa.string()

    def convert(self, column: pa.Array) -> pa.Array:
        """Cells as `type`."""
        values, kind = self._filled(column), self.type
        if pa.types.is_null(kind):
            return pa.nulls(len(values))
        if pa.types.is_dictionary(kind):
            words = pa.array(list(self.words or ()), pa.string())
            return pa.DictionaryArray.from_arrays(pc.index_in(values, value_set=words), words)
        if pa.types.is_string(kind):
            return values
        if pa.types.is_timestamp(kind):
            return pc.cast(values, kind)
        if pa.types.is_integer(kind):
            return _integers(values)
        return parse_numbers(values, self.styles[0] if self.styles else "plain")

    @property
    def proves(self) -> str | None:
        """The style that the numbers of this column can only be in: "point" or "comma"; None where both fit or none."""
        if not self.styles or self.filled == 0 or (self.whole and "plain" in self.styles):
            return None
        if self.styles == ["comma"]:
            return "comma"
        return None if "comma" in self.styles else "point"

    def settle(self, proven: str | None) -> None:
        """Keep one way to read numbers that could be read in two: that of training, else of the other columns.

        Without either, a number that can be plain is plain; a comma is a decimal comma between semicolons and a
        thousands separator elsewhere.
        """
        if self.proves is not None or "comma" not in self.styles or self.filled == 0 or self.whole:
            return
        self.unsure = True
        usual = "comma" if "plain" not in self.styles and self.delimiter == ";" else "point"
        learned = self.learned and ("comma" if self.learned == "comma" else "point")
        keep_comma = (learned or proven or usual) == "comma"
        self.styles = [style for style in self.styles if (style == "comma") == keep_comma]

    @property
    def style(self) -> str | None:
        """The style of numbers that are not whole, where the text alone could mean another number elsewhere."""
        if not self.styles or self.filled == 0 or not pa.types.is_floating(self.type):
            return None
        return None if self.styles[0] == "plain" and self.delimiter == "," else self.styles[0]

    def arrow_field(self) -> pa.Field:
        """Name, type and style."""
        return pa.field(self.name, self.type, metadata={STYLE: self.style} if self.style else None)

    def require(self, path: Path, line_of: Callable[[int], int]) -> None:
        """Refuse a column that is to be numbers and is not, or whose numbers could be others than those of training."""
        if self.unsure and self.learned == "comma" and self.delimiter == ",":
            raise DataError(
                f"{path}: column '{self.name}' was written with a decimal comma in training, and its numbers here can "
                "be read with a decimal comma or a decimal point. Write them without thousands separators and set "
                "the columns apart by semicolons, as in the training file."
            )
        if self.reading == "number" and self.filled and (self.odd is not None or not self.styles):
            row, word = self.odd or (0, "")
            raise DataError(
                f"{path}, line {line_of(row)}: column '{self.name}' is read as numbers, but '{word}' came. "
                f"Mend the cell, leave it empty, or set data.types.{self.name}=category."
            )

    def note(self) -> str | None:
        """A sentence where numbers are not written plainly."""
        if not self.styles or "plain" in self.styles or self.filled == 0:
            return None
        return "decimal comma" if self.styles[0] == "comma" else "thousands separators"


def has_padding(known: pa.Array) -> bool:
    """Whether some whole numbers have leading zeros, as 007 has."""
    for zero in ("0", "-0", "+0", " "):
        some = known.filter(pc.starts_with(known, zero))
        if len(some) and pc.any(pc.match_substring_regex(some, PADDED)).as_py():
            return True
    return False


def settle_styles(profiles: Sequence[Profile]) -> None:
    """Give each column of numbers one style, after all rows were seen; columns of one file are written alike."""
    proven = {profile.proves for profile in profiles} - {None}
    only = next(iter(proven)) if len(proven) == 1 else None
    for profile in profiles:
        profile.settle(only)


def style_of(item: pa.Field) -> str | None:
    """The style in which the numbers of a column of `Delimited` are written."""
    return ((item.metadata or {}).get(STYLE.encode()) or b"").decode() or None


def judge_batch(profiles: Sequence[Profile], columns: Sequence[pa.Array]) -> None:
    """Show each profile its cells; short columns of plain numbers are looked at many at once."""
    for group in _groups(profiles, columns):
        if not (len(group) > 1 and _judge_together(group)):
            for profile, column in group:
                profile.add(column)


def convert_batch(profiles: Sequence[Profile], columns: Sequence[pa.Array]) -> list[pa.Array]:
    """The cells of each column as its type."""
    converted: list[pa.Array] = []
    for group in _groups(profiles, columns):
        kinds = {profile.type for profile, _ in group}
        plain = kinds <= {pa.int64(), pa.float64()} and len(kinds) == 1 and not any(p.missing for p, _ in group)
        if len(group) > 1 and plain and all("plain" in profile.styles for profile, _ in group):
            joined = _cast(pa.concat_arrays([column for _, column in group]), kinds.pop())
            if joined is not None:
                rows = len(group[0][1])
                converted += [joined.slice(i * rows, rows) for i in range(len(group))]
                continue
        converted += [profile.convert(column) for profile, column in group]
    return converted


Group = list[tuple[Profile, pa.Array]]


def _groups(profiles: Sequence[Profile], columns: Sequence[pa.Array]) -> Iterator[Group]:
    """The columns one by one; of a short and wide batch a few thousand cells at once."""
    pairs = list(zip(profiles, columns, strict=True))
    wide = len(pairs) > WIDE and len(columns[0]) < TOGETHER // 2
    size = max(1, min(WIDE, TOGETHER // max(1, len(columns[0])))) if wide else 1
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def _judge_together(group: Group) -> bool:
    """Whether all of these columns are plain numbers without a gap; if so, their profiles know."""
    if any(profile.reading or "plain" not in profile.styles for profile, _ in group):
        return False
    cells = pa.concat_arrays([column for _, column in group])
    numbers = _cast(cells, pa.float64())
    if numbers is None or pc.any(pc.is_nan(numbers)).as_py():
        return False
    whole = all(profile.whole for profile, _ in group) and _cast(cells, pa.int64()) is not None
    if (not whole and any(profile.whole for profile, _ in group)) or (whole and has_padding(cells)):
        return False
    if not whole and any("comma" in profile.styles for profile, _ in group):
        return False
    for profile, column in group:
        profile.add_plain(len(column))
    return True


def _cast(values: pa.Array, kind: pa.DataType) -> pa.Array | None:
    try:
        return pc.cast(values, kind)
    except pa.ArrowInvalid:
        return None


def _integers(values: pa.Array) -> pa.Array | None:
    if (fast := _cast(values, pa.int64())) is not None:
        return fast
    return _cast(pc.replace_substring_regex(pc.ascii_trim_whitespace(values), r"^\+", ""), pa.int64())


def parse_numbers(values: pa.Array, style: str) -> pa.Array | None:
    """Text as float64, or None where some of it is no number in this style.

    Args:
        values: text, null where missing.
        style: "plain" (1234.5), "comma" (1.234,5) or "thousands" (1,234.5).
    """
    if style == "plain":
        fast = _cast(values, pa.float64())
        return fast if fast is not None else _cast(pc.ascii_trim_whitespace(values), pa.float64())
    trimmed = pc.ascii_trim_whitespace(values)
    pattern = COMMA if style == "comma" else THOUSANDS
    if not pc.all(pc.match_substring_regex(trimmed, pattern)).as_py():
        return _cast(trimmed, pa.float64()) if style == "thousands" else None
    if style == "comma":
        trimmed = pc.replace_substring(pc.replace_substring(trimmed, ".", ""), ",", ".")
    else:
        trimmed = pc.replace_substring(trimmed, ",", "")
    return _cast(trimmed, pa.float64())


def column_notes(profiles: Sequence[Profile]) -> list[str]:
    """Sentences about missing words and the way in which numbers are written."""
    missing: Counter[str] = Counter()
    styles: dict[str, list[str]] = {}
    for profile in profiles:
        missing.update(profile.missing)
        if style := profile.note():
            styles.setdefault(style, []).append(profile.name)
    notes = [f"Numbers with {style}: {shorten(names)}." for style, names in styles.items()]
    unsure = [profile for profile in profiles if profile.unsure and not profile.learned]
    for mark, names in (
        ("decimal comma", [p.name for p in unsure if p.styles == ["comma"]]),
        ("decimal point", [p.name for p in unsure if p.styles != ["comma"]]),
    ):
        if names:
            notes.append(
                f"Numbers such as 1.234 or 1,234 can be read in two ways; they are read with a {mark} in "
                f"{shorten(names)}. Where that is wrong, write them without thousands separators."
            )
    words = [f"'{word}' ({count:,})" for word, count in missing.most_common() if word]
    if words:
        notes.append(f"Read as missing: {shorten(words)}.")
    return notes
