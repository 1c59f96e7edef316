"""What the text field holds in memory: a million short texts, against the bytes of their tokens.

    python benchmarks/memory_text.py --rows 1000000

The texts are sentences of the IMDB reviews, drawn with replacement. Learning the vocabulary and encoding go through
`prepare.fit` and `prepare.encode`, as in a run. The base is what the process holds when the texts are read and the
libraries are loaded. Growth is counted in anonymous pages and polled, so that what is held only for a moment counts too.
The aim is a growth of at most twice the bytes of the encoded tokens.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import re
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from growth import Memory

from fathom.core.contract import Columns, Schema
from fathom.core.prepare import encode, fit
from fathom.core.tensors import Ragged
from fathom.fields.text import Text

AIM = 2.0
MIB = 2**20


def sentences(folder: Path) -> pa.Array:
    """The sentences of the training reviews."""
    with gzip.open(folder / "sentiment" / "imdb_train.csv.gz", "rt", encoding="utf-8", newline="") as file:
        texts = [row["text"].replace("<br />", " ") for row in csv.DictReader(file)]
    return pa.array([part for text in texts for part in re.split(r"(?<=[.!?])\s+", text) if part])


def learn(texts: pa.ChunkedArray, level: str) -> tuple[Schema, Columns]:
    """Learn the vocabulary from all texts."""
    columns = Columns({"text": texts})
    schema = Schema({"text": Text(["text"], level=level)}, {})
    fit(schema, columns, np.arange(columns.rows))
    return schema, columns


def tokens(schema: Schema, columns: Columns) -> Ragged:
    """Encode all texts."""
    encoded = encode(schema, columns)[0].columns["text"]
    assert isinstance(encoded, Ragged), "texts are rows of unequal length"
    return encoded


def main() -> None:
    """Measure once and print one line a moment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--level", choices=["word", "character", "bytepair"], default="word")
    options = parser.parse_args()
    if not os.environ.get("FATHOM_DATA"):
        parser.error("FATHOM_DATA is not set. Set it to the folder that holds `sentiment`.")
    pool = sentences(Path(os.environ["FATHOM_DATA"]))
    drawn = np.random.default_rng(0).integers(0, len(pool), options.rows)
    texts = pa.chunked_array([pool.take(pa.array(drawn))])
    tokens(*learn(texts.slice(0, 2_000), options.level))  # loads the libraries and starts their threads

    base = Memory.now()["RssAnon"]
    watch = Memory()
    watch.start()
    start = time.perf_counter()
    learnt = learn(texts, options.level)
    growth = {"learning, largest": watch.peak["RssAnon"] - base, "learning, afterwards": Memory.now()["RssAnon"] - base}
    encoded = tokens(*learnt)
    seconds = time.perf_counter() - start
    growth |= {"all, largest": watch.peak["RssAnon"] - base, "all, afterwards": Memory.now()["RssAnon"] - base}

    size = encoded.values.numel() * encoded.values.element_size() / MIB
    offsets = encoded.offsets.numel() * encoded.offsets.element_size() / MIB
    print(
        f"{options.rows:,} texts of {texts.nbytes / MIB:.0f} MiB, {encoded.values.numel():,} {options.level} tokens of "
        f"{size:.0f} MiB (and {offsets:.0f} MiB of offsets), {seconds:.0f} s; base {base:.0f} MiB"
    )
    for moment, held in growth.items():
        verdict = "within" if held <= AIM * size else "above"
        print(f"growth, {moment}: {held:.0f} MiB, {held / size:.2f} times the tokens ({verdict} {AIM:g})")


if __name__ == "__main__":
    main()
