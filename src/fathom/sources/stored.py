"""Tables larger than memory should hold: streamed once into an Arrow file of the cache, then memory-mapped.

    stored(path, reading, size, write) -> table, notes

The file is named after the origin's path, size, time of change and a hash of its head and tail, so that a
changed origin is read anew. It is written beside and then renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from fathom.core.prepare import cache_folder
from fathom.core.run import disk_error

ABOUT = b"fathom"
EDGE = 1 << 16
VERSION = 2  # of what is written; a newer reader writes anew

Writer = Callable[[], tuple[pa.Schema, Iterator[pa.RecordBatch], list[str]]]


def stored(path: Path, reading: Mapping[str, Any], size: int, write: Writer) -> tuple[pa.Table, list[str]]:
    """The memory-mapped table of a large file.

    Args:
        path: the origin.
        reading: whatever else decides how it is read.
        size: bytes of the origin, for the error of a full disk.
        write: gives schema, batches and notes; called only where the cache holds nothing.

    Raises:
        RunError: the cache cannot be written.
    """
    place = cache_folder() / "tables" / f"{_key(path, reading)}.arrow"
    found = _open(place) if place.exists() else None
    if found is None:
        _write(place, size, write)
        found = _open(place)
        assert found is not None, f"{place} was just written"
    return found


def _key(path: Path, reading: Mapping[str, Any]) -> str:
    status = path.stat()
    digest = hashlib.sha256(f"{VERSION}|{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|".encode())
    digest.update(json.dumps(dict(reading), sort_keys=True).encode())
    with open(path, "rb") as file:
        digest.update(file.read(EDGE))
        file.seek(max(0, status.st_size - EDGE))
        digest.update(file.read(EDGE))
    return digest.hexdigest()[:32]


def _open(place: Path) -> tuple[pa.Table, list[str]] | None:
    """The table and its notes; None where the file is damaged."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(place))).read_all()
        notes = json.loads((table.schema.metadata or {})[ABOUT])
        return table.replace_schema_metadata(None), [str(note) for note in notes]
    except (pa.ArrowInvalid, OSError, KeyError, ValueError):
        return None


def _write(place: Path, size: int, write: Writer) -> None:
    beside = place.with_name(f".{place.name}.{os.getpid()}.part")
    schema, batches, notes = write()
    schema = schema.with_metadata({ABOUT: json.dumps(notes).encode()})
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch.replace_schema_metadata(schema.metadata))
        os.replace(beside, place)
    except OSError as error:
        raise disk_error(place, size, error) from error
    finally:
        beside.unlink(missing_ok=True)
