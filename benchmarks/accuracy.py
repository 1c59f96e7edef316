"""How good the networks get: the accuracy targets of docs/results/foundation.md, each run from its recipe.

    python benchmarks/accuracy.py                      every work
    python benchmarks/accuracy.py digits mnist-cnn     these

Each line is printed as a row of a Markdown table: the mean over seeds on the test rows with its interval, the single
seeds, the best baseline, and the seconds of training of one seed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import fathom
from fathom.core.callbacks import smaller_is_better

RECIPES = Path(__file__).parents[1] / "recipes"
DATA = "$FATHOM_DATA"

# name -> (data or recipe, seeds, flags and further keys)
WORKS: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "digits": ("digits", 10, {}),
    "mnist-cnn": (RECIPES / "digits-cnn.toml", 3, {}),
    "mnist-mlp": (RECIPES / "digits-mlp.toml", 3, {}),
    "mnist-mlp-quick": (RECIPES / "digits-mlp-quick.toml", 5, {}),
    "mnist-quick": (RECIPES / "digits-quick.toml", 5, {}),
    "mnist": ("mnist", 5, {}),
    "fashion-mnist": ("fashion-mnist", 1, {}),
    "cifar10": ("cifar10", 1, {}),
    "cats-vs-dogs": (f"{DATA}/cats-vs-dogs", 1, {}),
    "brain-mri": (f"{DATA}/brain-mri", 1, {}),
    "adult": (RECIPES / "adult.toml", 3, {}),
    "california-housing": (RECIPES / "california-housing.toml", 3, {}),
    "breast-cancer": ("breast-cancer", 3, {}),
    "diabetes": ("diabetes", 3, {}),
}


def _pair(name: str, kind: str = "csv") -> dict[str, Any]:
    """A UCR or UEA set: the official training and test files."""
    return {
        "data": f"{DATA}/ucr/{name}_train.{kind}.gz",
        "data.test": f"{DATA}/ucr/{name}_test.{kind}.gz",
        "target": "label",
    }


SETS = {
    "ArrowHead": "csv", "GunPoint": "csv", "ItalyPowerDemand": "csv", "OSULeaf": "csv",
    "BasicMotions": "jsonl", "JapaneseVowels": "jsonl",
}  # fmt: skip
IMDB = {"data.test": f"{DATA}/sentiment/imdb_test.csv.gz", "target": "label", "input": "text"}
REVIEWS = f"{DATA}/sentiment/imdb_train.csv.gz"
PATIENT = {"target": "in_hospital_death", "data.types": {"SAPS_I": "ignore", "SOFA": "ignore"}}


def etth1() -> Any:
    """The usual 20 months of 30 days: 12 to learn from, 4 to choose by, 4 to judge by."""
    from pyarrow import csv

    return csv.read_csv(f"{os.environ['FATHOM_DATA']}/energy/ETTh1.csv.gz").slice(0, 20 * 30 * 24)


def speeds() -> Any:
    """METR-LA with its time: the file has none, its page says 1 to 7 March 2012 in steps of five minutes."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import csv

    table = csv.read_csv(f"{os.environ['FATHOM_DATA']}/traffic/los_speed.csv.gz")
    start = np.datetime64("2012-03-01T00:00:00", "s")
    return table.append_column("time", pa.array(start + np.arange(len(table)) * np.timedelta64(300, "s")))


LOADS = {
    "time": "date",
    "target": "HUFL,HULL,MUFL,MULL,LUFL,LULL,OT",
    "data.series.past": 336,
    "data.validation": 0.2,
    "data.test": 0.2,
}
WORKS |= {name: ((pair := _pair(name, kind)).pop("data"), 3, pair) for name, kind in SETS.items()}
WORKS |= {
    "sentiment": (REVIEWS, 3, IMDB),
    "sentiment-rnn": (RECIPES / "sentiment-rnn.toml", 3, {}),
    "sentiment-lstm": (RECIPES / "sentiment-lstm.toml", 3, {}),
    "sentiment-gru": (RECIPES / "sentiment-gru.toml", 3, {}),
    "sentiment-transformer": (REVIEWS, 3, {**IMDB, "network": "transformer", "epochs": 3, "data.text.length": 256}),
    "patient": (f"{DATA}/patient", 5, PATIENT),
    "patient-lstm": (RECIPES / "patient-lstm.toml", 3, {}),
    "traffic": (
        speeds,
        3,
        {"horizon": 12, "time": "time", "network.waves": 12, "data.test": 0.2, "data.validation": 0.1},
    ),
    "metro": (
        f"{DATA}/traffic/metro_interstate_traffic.csv.gz",
        1,
        {"horizon": 24, "time": "date_time", "target": "traffic_volume"},
    ),
    **{f"etth1-{ahead}": (etth1, 1, {**LOADS, "horizon": ahead}) for ahead in (96, 192, 336, 720)},
    "market": (f"{DATA}/market/sp500.csv.gz", 1, {"horizon": 1, "time": "Date", "target": "Adj Close"}),
}


def main() -> None:
    """Run the works that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", choices=[[], *WORKS], help="all where none is named")
    parser.add_argument("--threads", type=int, help="CPU threads; a trial decides where not given")
    options = parser.parse_args()
    threads = {"training.threads": options.threads} if options.threads else {}
    names = options.works or list(WORKS)
    heads = [
        "work",
        "network",
        "parameters",
        "metric",
        "mean",
        "95 % interval",
        "seeds",
        "best baseline",
        "seconds",
        "verdict",
    ]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for name in names:
        data, seeds, keys = WORKS[name]
        with tempfile.TemporaryDirectory() as folder:
            run = fathom.fit(data() if callable(data) else data, **{"seeds": seeds, "out": folder, **threads, **keys})
            print(row(name, run.results, seeds), flush=True)


def row(name: str, results: dict[str, Any], seeds: int) -> str:
    """One row of the table."""
    metric = results["primary"]
    mine = results["test"][metric]
    members = [f"{member['test'][metric]['value']:.4f}" for member in results.get("members", [])]
    others = {name: table[metric]["value"] for name, table in results["baseline"].items() if metric in table}
    best = (min if smaller_is_better(metric) else max)(others, key=lambda other: others[other])
    cells = [
        name, results["network"]["name"], f"{results['parameters']:,}", metric, f"{mine['value']:.4f}",
        f"{mine['low']:.4f} to {mine['high']:.4f}", " ".join(members) or "one", f"{best} {others[best]:.4f}",
        f"{results['seconds']['train'] / seeds:.1f}", results["verdict"],
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
