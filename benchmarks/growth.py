"""How time and memory grow with the data: tables from 10^5 to 10^7 rows, pictures from 10^3 to 10^5 files.

    python benchmarks/growth.py table 100000 1000000 10000000
    python benchmarks/growth.py images 1000 10000 100000

Each size runs in a process of its own: prepare, then one epoch. Memory is what the process holds itself (anonymous pages
above what it held before, polled); pages of memory-mapped files are the system's to take back and are shown apart.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = 8


def write_table(path: Path, rows: int) -> None:
    """A CSV of numbers, one category and a target, written in pieces."""
    import pyarrow as pa
    from pyarrow import csv

    generator = np.random.default_rng(0)
    writer = None
    for start in range(0, rows, 500_000):
        count = min(500_000, rows - start)
        values = generator.normal(size=(count, COLUMNS)).round(4)
        columns: dict[str, Any] = {f"x{i}": values[:, i] for i in range(COLUMNS)}
        columns["color"] = generator.choice(["red", "green", "blue"], count)
        columns["y"] = np.where(values.sum(1) > 0, "yes", "no")
        table = pa.table(columns)
        writer = writer or csv.CSVWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def write_images(folder: Path, count: int) -> None:
    """Small PNG files in two class folders."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for name in ("dark", "light"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        pixels = generator.integers(0, 128, (16, 16, 3), np.uint8) + np.uint8(100 * (i % 2))
        Image.fromarray(pixels).save(folder / ("light" if i % 2 else "dark") / f"{i}.png", compress_level=1)


class Memory(threading.Thread):
    """Polls what the process holds, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = {"RssAnon": 0.0, "RssFile": 0.0}

    @staticmethod
    def now() -> dict[str, float]:
        lines = Path("/proc/self/status").read_text().splitlines()
        return {
            k: int(v.split()[0]) / 1024
            for k, _, v in (line.partition(":") for line in lines)
            if k in ("RssAnon", "RssFile")
        }

    def run(self) -> None:
        while True:
            self.peak = {name: max(self.peak[name], value) for name, value in self.now().items()}
            time.sleep(0.02)


def one(location: Path, memory: float) -> dict[str, Any]:
    """Prepare and train one epoch in this process."""
    from fathom.core.contract import epoch_steps
    from fathom.core.device import Device, threads
    from fathom.core.diagnose import non_finite
    from fathom.core.loop import train
    from fathom.verbs.assemble import build, open_task

    device = Device.choose("cpu")
    before = Memory.now()["RssAnon"]
    watch = Memory()
    watch.start()
    start = time.perf_counter()
    network = {"name": "mlp"} if location.is_file() else {"name": "cnn", "channels": [8]}
    training = {"batch": 1024 if location.is_file() else 64, "epochs": 1, "threads": 1}
    task = open_task(str(location), {"data": {"memory": memory}, "network": network, "training": training})
    prepared = time.perf_counter() - start
    rows = len(task.prepared.splits["train"])
    with threads(1):
        assembly = build(task, device)
        start = time.perf_counter()
        train(assembly.algorithm, assembly.algorithm.stages(task.prepared.sets), [], assembly.clock, device, non_finite)
        trained = time.perf_counter() - start
    assert assembly.clock.total == epoch_steps(rows, training["batch"])
    return {
        "rows": task.prepared.columns.rows,
        "prepare_us": prepared / task.prepared.columns.rows * 1e6,
        "train_us": trained / rows * 1e6,
        "anonymous_mib": watch.peak["RssAnon"] - before,
        "file_mib": watch.peak["RssFile"],
    }


def main() -> None:
    """Run every size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["table", "images", "one"])
    parser.add_argument("sizes", nargs="+")
    parser.add_argument("--memory", type=float, default=0.25, help="GiB that data.memory allows")
    options = parser.parse_args()
    if options.kind == "one":
        print(json.dumps(one(Path(options.sizes[0]), options.memory)))
        return
    allowed = f"data.memory = {options.memory * 1024:.0f}"
    print(f"| rows | prepare, us a row | train, us a row | own memory, MiB ({allowed}) | mapped files, MiB |")
    print("|---|---|---|---|---|")
    for size in map(int, options.sizes):
        with tempfile.TemporaryDirectory() as folder:
            location = Path(folder) / ("rows.csv" if options.kind == "table" else "pictures")
            (write_table if options.kind == "table" else write_images)(location, size)
            command = [sys.executable, __file__, "one", str(location), "--memory", str(options.memory)]
            environment = {"FATHOM_CACHE": f"{folder}/cache", "PATH": "/usr/bin"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                sys.exit(done.stderr)
            figures = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {figures['rows']:,} | {figures['prepare_us']:.2f} | {figures['train_us']:.2f} "
                f"| {figures['anonymous_mib']:.0f} | {figures['file_mib']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
