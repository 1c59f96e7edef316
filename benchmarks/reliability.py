"""Two promises, measured: a killed run resumes bit for bit, and rot in a run folder is never loaded in silence.

    python benchmarks/reliability.py --kills 200 --faults 500

Kills: training runs as a process of its own and is killed (SIGKILL) at a random moment, resumed, killed again, up to
three times, and then taken to its end. Every step writes a checkpoint, so that many kills fall into a write. A kill
counts as resumable where the next resume goes on, and as equal where the final weights (as bytes) and every line of
metrics.jsonl (less its wall time) are those of a run that nothing interrupted. The two tasks have all that has a state:
dropout, augmentation, moving average, best weights, early stopping, momentum, a schedule.

Faults: a flipped bit, a cut or a zeroed stretch at a random place of a random file of a finished run; then what reads
that file is asked for it. "Without effect" means that the content read is the same (a cut final line end).
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kit import QUICK, Killable, damaged, table, trained

EVERY_STEP = "training.checkpoint_seconds=0"
TASKS = {
    "table, mlp": (
        "t.csv", "--epochs", "20", "--batch", "8", "--lr", "0.003", "--network", "mlp", "network.dropout=0.3",
        "training.average=0.9", "training.early_stopping=3", "training.keep=best", "training.l2=1e-4",
        "training.schedule=cosine", EVERY_STEP, *QUICK,
    ),
    "digits, cnn": (
        "digits", "--limit", "200", "--epochs", "3", "--batch", "16", "augment.shift=1",
        "augment.mixup=0.2", "training.optimizer=sgd", "--lr", "0.05", "training.keep=best", EVERY_STEP, *QUICK,
    ),
}  # fmt: skip


@dataclass
class Kills:
    """What became of the kills of one task; `seconds` is how long a run takes, the shortest seen so far."""

    seconds: float
    sent: int = 0
    resumable: int = 0
    equal: int = 0
    where: Counter[str] = field(default_factory=Counter)


def moment(run: Path) -> str:
    """Into what a kill fell."""
    if not (run / "checkpoints").exists():
        return "before training"
    if any(run.rglob(".*.part")):
        return "inside a write"
    return "after training" if (run / "model").exists() else "in training"


def straight(folder: Path, words: tuple[str, ...]) -> tuple[Path, float]:
    """A run that nothing interrupts, and the seconds from its folder to its end."""
    process = Killable(folder, "fit", *words, "--name", "run")
    process.until(folder / "runs" / "run" / "recipe.toml")
    start = time.monotonic()
    said = process.said()
    assert said.code == 0, said.err
    return folder / "runs" / "run", time.monotonic() - start


def chain(folder: Path, words: tuple[str, ...], wanted: object, most: int, draw: random.Random, kills: Kills) -> None:
    """Kill, resume, kill ... and compare the end."""
    run = folder / "runs" / "run"
    command: tuple[str, ...] = ("fit", *words, "--name", "run")
    sent = 0
    while sent < most:
        process = Killable(folder, *command)
        process.until(run / "recipe.toml")
        start = time.monotonic()
        process.process.join(draw.uniform(0, kills.seconds))
        if not process.process.is_alive():
            kills.seconds = min(kills.seconds, time.monotonic() - start)  # else a slow first run spoils the draw
            break
        process.kill()
        sent += 1
        kills.where[moment(run)] += 1
        command = ("fit", "--resume", "run")
    said = Killable(folder, "fit", "--resume", "run").said()
    kills.sent += sent
    if said.code == 0:
        kills.resumable += sent
        kills.equal += sent * (trained(run) == wanted)
    else:
        print(said.err, file=sys.stderr)


def measure_kills(count: int, folder: Path, draw: random.Random) -> dict[str, Kills]:
    """`count` kills, divided among the tasks."""
    result = {}
    for name, words in TASKS.items():
        place = folder / name.replace(", ", "-")
        (place / "straight").mkdir(parents=True)
        table(place / "straight" / "t.csv")
        run, seconds = straight(place / "straight", words)
        wanted, kills, number = trained(run), Kills(seconds), 0
        while kills.sent < count // len(TASKS):
            one = place / str(number)
            one.mkdir()
            table(one / "t.csv")
            chain(one, words, wanted, min(3, count // len(TASKS) - kills.sent), draw, kills)
            number += 1
        result[name] = kills
    return result


def readers(run: Path) -> dict[str, Callable[[], object]]:
    """File -> what reads it, as something that can be compared."""
    import fathom
    from fathom.core.errors import RunError
    from fathom.core.run import CheckpointStore, read_json

    store = CheckpointStore(run / "checkpoints")

    def model() -> object:
        bundle = fathom.load(run).bundle
        return json.dumps(bundle.about, sort_keys=True), [
            (name, tensor.numpy().tobytes()) for name, tensor in bundle.models["model"].state_dict().items()
        ]

    def checkpoint() -> object:
        state, notes = store.load()
        if notes:
            raise RunError(notes[0])
        return repr(state)

    found: dict[str, Callable[[], object]] = {
        "model/weights.safetensors": model,
        "model/model.json": model,
        "schema.json": lambda: read_json(run / "schema.json"),
        "results.json": lambda: fathom.load(run).results,
    }
    return found | {f"checkpoints/{store.paths()[-1].name}": checkpoint}


def measure_faults(count: int, folder: Path, draw: random.Random) -> dict[str, Counter[str]]:
    """`count` random faults over the files of a finished run; as many loads of the whole files are false alarms."""
    from fathom.core.errors import RunError

    table(folder / "t.csv")
    run, _ = straight(folder, TASKS["table, mlp"])
    result: dict[str, Counter[str]] = {}
    files = readers(run)
    for name, read in files.items():
        whole, seen = read(), Counter[str]()
        for _ in range(count // len(files)):
            with damaged(run / name, draw) as how:
                try:
                    value = read()
                except RunError as error:
                    seen["found" if Path(name).name in str(error) else "found, unnamed"] += 1
                else:
                    seen["without effect" if value == whole else "in silence"] += 1
                    if value != whole:
                        print(f"loaded in silence: {how}", file=sys.stderr)
            seen["false alarms"] += read() != whole
        result[name] = seen
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"{time.strftime('%Y-%m-%d')}, {platform.platform()}, seed {given.seed}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"\n{'killed runs':<28}{'kills':>7}{'resumable':>11}{'bit-equal':>11}   where they fell")
        for task, kills in measure_kills(given.kills, folder, random.Random(given.seed)).items():
            where = ", ".join(f"{count} {place}" for place, count in kills.where.most_common())
            print(f"{task:<28}{kills.sent:>7}{kills.resumable:>11}{kills.equal:>11}   {where}")
        (folder / "rot").mkdir()
        columns = ("found", "found, unnamed", "without effect", "in silence", "false alarms")
        print(f"\n{'damaged file':<44}" + "".join(f"{column:>16}" for column in columns))
        for file, seen in measure_faults(given.faults, folder / "rot", random.Random(given.seed)).items():
            print(f"{file:<44}" + "".join(f"{seen[column]:>16}" for column in columns))


if __name__ == "__main__":
    main()
