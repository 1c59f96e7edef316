"""Short forms of recipe keys, the same on the command line and in `fathom.fit(...)`. A test freezes this table.

It stands alone so that `fathom --help` reads it without anything heavy.
"""

from __future__ import annotations

from typing import NamedTuple


class Flag(NamedTuple):
    """One alias of one recipe key."""

    key: str
    type: type
    help: str


FLAGS = {
    "target": Flag("data.target", str, "Column to predict; several with commas. Guessed where not given."),
    "input": Flag("data.input", str, "Columns to learn from. All others where not given."),
    "time": Flag("data.time", str, "Column that orders the rows; the last become the test split."),
    "horizon": Flag("data.horizon", int, "Moments to forecast; the rows are then a series."),
    "group": Flag("data.group", str, "Column whose equal values stay in one split."),
    "valid": Flag("data.validation", str, "Share of the rows for validation, or a file or folder of them."),
    "test": Flag("data.test", str, "Share of the rows for the test, or a file or folder of them."),
    "limit": Flag("data.limit", int, "Use only this many rows."),
    "network": Flag("network.name", str, "See: fathom list networks."),
    "from": Flag("network.from", str, "Run folder or .safetensors file whose weights the network begins with."),
    "algorithm": Flag("training.algorithm", str, "See: fathom list algorithms."),
    "epochs": Flag("training.epochs", float, "Passes over the training rows."),
    "steps": Flag("training.steps", int, "Batches in all."),
    "minutes": Flag("training.minutes", float, "Wall time of training."),
    "batch": Flag("training.batch", int, "Rows a step."),
    "lr": Flag("training.learning_rate", float, "Largest learning rate of the schedule."),
    "seed": Flag("training.seed", int, "Of everything random."),
    "seeds": Flag("training.seeds", int, "Train this many members, each from another seed; with folds each divides anew."),
    "folds": Flag("training.folds", int, "Cross-validate over this many parts."),
    "device": Flag("training.device", str, "auto, cpu, cuda, cuda:1, mps."),
    "name": Flag("training.name", str, "Name of the run folder."),
    "out": Flag("training.out", str, "Folder of run folders."),
}
