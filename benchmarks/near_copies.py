"""Groups of pictures that are nearly copies of each other, for `fathom fit FOLDER --group FILE`.

    python benchmarks/near_copies.py $FATHOM_DATA/brain-mri near.csv

A list of identical files misses the same picture coded anew. Here two pictures belong together where their grays, at 32 x 32
places, correlate by more than --above (0.99); groups are chained. The file has a line for each picture that has a companion.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from fathom.fields.image import open_picture, to_pixels

SIDE = 32
EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def grays(paths: list[Path]) -> np.ndarray:
    """(N, SIDE * SIDE) grays of each picture, of mean 0 and length 1."""
    pixels = np.stack([to_pixels(open_picture(str(path)), (1, SIDE, SIDE), "stretch").ravel() for path in paths])
    centered = pixels.astype(float) - pixels.mean(1, keepdims=True)
    return centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-9)


def groups(rows: np.ndarray, above: float) -> np.ndarray:
    """(N,) the group of each row, of rows (N, D) of length 1 that are chained by products above a bound."""
    return connected_components(csr_array(rows @ rows.T > above), directed=False)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--above", type=float, default=0.99)
    given = parser.parse_args()
    paths = sorted(path for path in given.folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    group = groups(grays(paths), given.above)
    sizes = np.bincount(group)
    with given.out.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["group", "file"])
        table.writerows(
            [number, path.relative_to(given.folder).as_posix()]
            for number, path in zip(group, paths, strict=True)
            if sizes[number] > 1
        )
    print(f"{(sizes > 1).sum()} groups of {sizes[sizes > 1].sum()} pictures among {len(paths)}: {given.out}")


if __name__ == "__main__":
    main()
