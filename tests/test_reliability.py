"""Safety of work: kills, signals, two processes at once, rot, order of writes, numbers that are not finite, hostile
files, odd environments.

Runs that are killed are real processes (kit.Killable). Their steps are written one by one
(training.checkpoint_seconds=0), so that a kill may fall anywhere: between steps, inside a write, in the middle of an
epoch, while the result is judged.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fathom
from fathom.core import run as files
from fathom.core.callbacks import Checkpoint, History
from fathom.core.errors import FathomError, NonFiniteError, RunError
from fathom.core.run import CheckpointStore, RunFolder, load_tensors, read_json, save_tensors, sealed_json, write_atomic
from kit import QUICK, Killable, cli, damaged, table, trained

EVERY_STEP = "training.checkpoint_seconds=0"
# Everything that has a state: moving average, best weights, early stopping, dropout, momentum, a schedule.
STATEFUL = (
    "--epochs", "20", "--batch", "8", "--lr", "0.003", "--network", "mlp", "network.dropout=0.3", "training.average=0.9",
    "training.early_stopping=3", "training.keep=best", "training.l2=1e-4", "training.optimizer=adamw",
    "training.schedule=cosine", EVERY_STEP, *QUICK,
)  # fmt: skip


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted, in its own process; `t.csv` lies beside `runs/`."""
    folder = tmp_path_factory.mktemp("straight")
    table(folder / "t.csv")
    said = Killable(folder, "fit", "t.csv", "--name", "run", *STATEFUL).said()
    assert said.code == 0, said.err
    return folder / "runs" / "run"


def beside(straight: Path, folder: Path) -> Path:
    """A fresh folder with the same table."""
    shutil.copy(straight.parent.parent / "t.csv", folder)
    return folder


def resumed(folder: Path) -> Path:
    """The run of this folder, taken to its end."""
    said = Killable(folder, "fit", "--resume", "run").said()
    assert said.code == 0, said.err
    return folder / "runs" / "run"


# ---------------------------------------------------------------- kills


def test_the_straight_run_repeats_itself(straight: Path, tmp_path: Path) -> None:
    """What the kills are compared with: it was ended by early stopping, and a second process makes the same bytes."""
    assert len(trained(straight)[1]) < 20
    said = Killable(beside(straight, tmp_path), "fit", "t.csv", "--name", "run", *STATEFUL).said()
    assert said.code == 0
    assert trained(tmp_path / "runs" / "run") == trained(straight)


def killed_and_resumed(straight: Path, folder: Path, draw: random.Random) -> tuple[int, int]:
    """Kill a run at random moments until it ends, then compare.

    Returns:
        Kills, and how many of them fell into training or later.
    """
    beside(straight, folder)
    run = folder / "runs" / "run"
    kills = inside = 0
    words: tuple[str, ...] = ("fit", "t.csv", "--name", "run", *STATEFUL)
    while kills < 3:
        process = Killable(folder, *words)
        process.until(run / "recipe.toml")
        if kills < 2:
            process.until(run / "metrics.jsonl")  # most kills fall into training
        process.process.join(draw.uniform(0, 0.35))
        if not process.process.is_alive():
            break
        process.kill()
        kills += 1
        inside += (run / "checkpoints").exists()
        words = ("fit", "--resume", "run")
    assert trained(resumed(folder)) == trained(straight)
    assert (run / "report.html").exists()
    assert not list(run.rglob("*.part"))
    return kills, inside


def test_a_killed_run_ends_with_the_same_bytes(straight: Path, tmp_path: Path) -> None:
    """Six or so SIGKILLs at random moments, on runs that were resumed before too."""
    draw = random.Random(0)
    kills = inside = 0
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        more, within = killed_and_resumed(straight, tmp_path / str(number), draw)
        kills, inside = kills + more, inside + within
    assert kills >= 3
    assert inside >= 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_killed_runs_end_with_the_same_bytes(straight: Path, tmp_path: Path) -> None:
    """Forty and more."""
    draw = random.Random(1)
    kills = number = 0
    while kills < 40:
        (tmp_path / str(number)).mkdir()
        kills += killed_and_resumed(straight, tmp_path / str(number), draw)[0]
        number += 1


@pytest.mark.parametrize("step", [1, 4, 6, 15, -1])
def test_cut_at_a_step(step: int, straight: Path, tmp_path: Path) -> None:
    """Cut behind the first step, inside an epoch, at its end (epochs have 6 steps), and after early stopping ended it."""
    run = Path(shutil.copytree(straight, tmp_path / "runs" / "run"))
    beside(straight, tmp_path)
    store = CheckpointStore(run / "checkpoints")
    for name in ("results.json", "report.html", "model", "metrics.jsonl"):
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    if step > 0:
        shutil.rmtree(run / "checkpoints")
        _checkpoint_of(straight, tmp_path, store, step)
    else:
        shutil.copy(straight / "metrics.jsonl", run)
    assert trained(resumed(tmp_path)) == trained(straight)


def _checkpoint_of(straight: Path, folder: Path, store: CheckpointStore, step: int) -> None:
    """The checkpoint that the run wrote at a step: train again, and keep that one."""
    (folder / "again").mkdir()
    process = Killable(beside(straight, folder / "again"), "fit", "t.csv", "--name", "run", *STATEFUL)
    wanted = folder / "again" / "runs" / "run" / "checkpoints" / f"step-{step:09d}.safetensors"
    store.folder.mkdir()
    while process.process.is_alive() and not (store.folder / wanted.name).exists():
        try:
            os.link(wanted, store.folder / wanted.name)
        except FileNotFoundError:
            time.sleep(0.0002)
    process.kill()
    assert store.load()[0] is not None, "the checkpoint was missed"


def test_sigterm_saves_and_leaves(straight: Path, tmp_path: Path) -> None:
    """Exit code 130 and the command to go on with; even where no checkpoint was due. The resumed run is equal."""
    words = [word if word != EVERY_STEP else "training.checkpoint_seconds=600" for word in STATEFUL]
    process = Killable(beside(straight, tmp_path), "fit", "t.csv", "--name", "run", *words)
    assert process.until(tmp_path / "runs" / "run" / "metrics.jsonl")
    process.send(signal.SIGTERM)
    said = process.said()
    assert said.code == 130, said
    assert "SIGTERM came: the work is saved. Go on with: fathom fit --resume" in said.err
    assert len(CheckpointStore(tmp_path / "runs" / "run" / "checkpoints").paths()) == 1
    assert trained(resumed(tmp_path)) == trained(straight)


def test_the_second_signal_stops_at_once(tmp_path: Path) -> None:
    """The handler saves on the first signal, gives the old handlers back, and lets a second one through."""
    history = History(10, None, lambda: 0.0)
    checkpoint = Checkpoint(CheckpointStore(tmp_path), dict, 600, history)
    before = signal.getsignal(signal.SIGTERM)
    with checkpoint.on_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
        os.kill(os.getpid(), signal.SIGTERM)
        assert checkpoint.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_two_processes_get_two_folders(straight: Path, tmp_path: Path) -> None:
    """Both train, each in its own folder."""
    beside(straight, tmp_path)
    words = ("fit", "t.csv", "--steps", "6", *QUICK)
    both = [Killable(tmp_path, *words, "--seed", str(i)) for i in range(3)]
    assert [process.wait() for process in both] == [0, 0, 0]
    made = RunFolder.all(tmp_path / "runs")
    assert sorted(path.name for path in made) == ["t-1", "t-2", "t-3"]
    assert sorted(fathom.load(path).results["seed"] for path in made) == [0, 1, 2]


def test_a_folder_is_trained_in_by_one_process(straight: Path, tmp_path: Path) -> None:
    """A second process on the same run is refused by name, and the first is not harmed."""
    beside(straight, tmp_path)
    process = Killable(
        tmp_path, "fit", "t.csv", "--name", "run", *STATEFUL, "--epochs", "2000", "training.early_stopping=0"
    )
    assert process.until(tmp_path / "runs" / "run" / "checkpoints")
    said = Killable(tmp_path, "fit", "--resume", "run").said() if process.process.is_alive() else None
    assert process.kill() == -signal.SIGKILL
    assert said is not None
    assert said.code == 2
    assert "Another process is training in runs/run" in said.err


# ---------------------------------------------------------------- rot


def loads(run: Path) -> dict[str, Callable[[], object]]:
    """File of a run -> what reads it."""
    store = CheckpointStore(run / "checkpoints")

    def checkpoints() -> object:
        state, notes = store.load()
        if notes:
            raise RunError(notes[0])
        return state

    return {
        "model/weights.safetensors": lambda: fathom.load(run).module,
        "model/model.json": lambda: fathom.load(run).module,
        "results.json": lambda: fathom.load(run).results,
        "schema.json": lambda: read_json(run / "schema.json"),
        "environment.json": lambda: read_json(run / "environment.json"),
        f"checkpoints/{store.paths()[-1].name}": checkpoints,
    }


def test_rot_is_found_in_every_file(straight: Path, tmp_path: Path) -> None:
    """Flips, cuts and zeroed stretches: named at load, and never loaded in silence with another content."""
    run = Path(shutil.copytree(straight, tmp_path / "run"))
    draw = random.Random(2)
    for name, load in loads(run).items():
        load()  # no false alarm
        for _ in range(12):
            with damaged(run / name, draw) as how, pytest.raises(RunError, match=Path(name).name):
                pytest.fail(f"loaded in silence: {how}: {load()!r}"[:300])
        load()


def test_every_byte_of_a_small_file_counts(tmp_path: Path) -> None:
    """A bit of each byte of a sealed JSON file and of a small tensor file, turned; and a cut at every third place."""
    write_atomic(tmp_path / "a.json", sealed_json({"a": [1, 2.5, "x"], "b": {"c": None}}))
    save_tensors(tmp_path / "a.safetensors", {"w": torch.arange(6.0).reshape(2, 3), "i": torch.tensor(3)}, {"k": "v"})
    draw = random.Random(3)
    for name, load in (("a.json", read_json), ("a.safetensors", load_tensors)):
        whole = (tmp_path / name).read_bytes()
        turned = [
            (i, whole[:i] + bytes([whole[i] ^ 1 << draw.randrange(8)]) + whole[i + 1 :]) for i in range(len(whole))
        ]
        cut = [(i, whole[:i]) for i in range(0, len(whole) - 1, 3)]
        for place, content in turned + cut:
            (tmp_path / name).write_bytes(content)
            with pytest.raises(RunError, match="damaged"):
                pytest.fail(f"byte {place} of {name}: {load(tmp_path / name)}")


def test_a_cut_line_of_metrics_is_left_out(straight: Path, tmp_path: Path) -> None:
    """metrics.jsonl is a log: the whole lines before the cut are read."""
    run = Path(shutil.copytree(straight, tmp_path / "run"))
    text = (run / "metrics.jsonl").read_text("utf-8")
    whole = fathom.load(run).history
    (run / "metrics.jsonl").write_text(text[:-10], "utf-8")
    assert fathom.load(run).history == whole[:-1]


@pytest.mark.parametrize(
    "name", ["recipe.toml", "metrics.jsonl", "log.txt", "results.json", "schema.json", "environment.json"]
)
def test_no_verb_trips_over_a_zeroed_file(name: str, straight: Path, tmp_path: Path) -> None:
    """A file of zeros: every verb says what is damaged, or does not need it; none shows a traceback."""
    run = Path(shutil.copytree(straight, tmp_path / "runs" / "run"))
    (run / name).write_bytes(bytes((run / name).stat().st_size))
    made = str(beside(straight, tmp_path) / "t.csv")
    for words in (
        ("runs",),
        ("report", "run"),
        ("predict", "run", made),
        ("compare", "run", "run"),
        ("evaluate", "run"),
    ):
        said = cli(*words)
        assert said.code in (0, 2), (words, said)
        assert said.code == 0 or name in said.last, (words, said.last)


# ---------------------------------------------------------------- order of writes


def test_file_then_rename_then_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut shows the old file or the new one: its bytes are on the disk before its name is."""
    order: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        order.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        order.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", recorded_fsync)
    monkeypatch.setattr(files.os, "replace", recorded_replace)
    CheckpointStore(tmp_path / "checkpoints").save({"w": torch.ones(2), "n": 1}, 7)
    name = "step-000000007.safetensors"
    assert [(what, re.sub(r"\.\d+\.part$", "", where).lstrip(".")) for what, where in order] == [
        ("fsync", name), ("rename", name), ("fsync", "checkpoints"),
    ]  # fmt: skip


@pytest.mark.parametrize("fails", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails, the old content stays and nothing else is left."""
    path = tmp_path / "a.json"
    write_atomic(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        if fails == "write":
            patch.setattr("builtins.open", fail)
        else:
            patch.setattr(files.os, fails, fail)
        with pytest.raises(RunError, match="Input/output error"):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    """Old ones go only when two newer ones are whole."""
    store = CheckpointStore(tmp_path)
    for step in range(5):
        store.save({"n": step, "w": torch.full((3,), float(step))}, step)
    assert [path.name[-14:-12] for path in store.paths()] == ["03", "04"]
    state, notes = store.load()
    assert state is not None
    assert (state["n"], notes) == (4, [])


def test_a_damaged_checkpoint_pushes_out_no_good_one(tmp_path: Path) -> None:
    """Whole at step 1, damaged at step 2: what is saved next must leave the one of step 1 as the second."""
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save({"n": step, "w": torch.full((3,), float(step))}, step)
    rotten = store.paths()[-1]
    rotten.write_bytes(rotten.read_bytes()[:-5])
    state, notes = store.load()
    assert state is not None
    assert state["n"] == 1
    assert len(notes) == 1
    assert rotten.with_name(f"{rotten.name}.damaged").exists(), "set aside, not thrown away"
    newer = store.save({"n": 3, "w": torch.zeros(3)}, 3)
    assert [path.name[-13:-12] for path in store.paths()] == ["1", "3"]
    newer.write_bytes(newer.read_bytes()[:-5])
    assert (store.load()[0] or {})["n"] == 1, "there is still a whole one"


def test_every_checkpoint_damaged_is_told_each_time(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save({"n": 1}, 1)
    store.paths()[0].write_bytes(b"rot")
    for _ in range(2):
        with pytest.raises(RunError, match=r"Every checkpoint in .* is damaged"):
            store.load()


@pytest.mark.parametrize("about", [{"format": "2"}, {}])
def test_a_checkpoint_of_another_format_is_refused(about: dict[str, str], tmp_path: Path) -> None:
    """It is not damage: an older one must not quietly take its place."""
    store = CheckpointStore(tmp_path)
    store.save({"n": 1}, 1)
    save_tensors(tmp_path / "step-000000002.safetensors", {}, {"state": '{"n": 2}', **about})
    with pytest.raises(RunError, match=r"step-000000002.* of format (2|None); this Fathom reads format 1"):
        store.load()


# ---------------------------------------------------------------- not finite


class Poisoned(nn.Module):
    """A layer whose weight becomes NaN at a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 4), nn.Linear(4, 2)
        self.calls, self.step = 0, step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 2) -> (B, 2)."""
        self.calls += self.training
        if self.training and self.calls == self.step:
            with torch.no_grad():
                self.second.weight[0, 0] = float("nan")
        return self.second(torch.relu(self.first(x)))


ROWS = np.random.default_rng(0).random((80, 2)).astype(np.float32)
ANSWERS = np.where(ROWS[:, 0] > ROWS[:, 1], "yes", "no")
SOON = {"steps": 40, "batch": 8, "device": "cpu", "training.threads": 1, EVERY_STEP.partition("=")[0]: 0.0}


def test_a_weight_that_is_not_finite_stops_the_step(tmp_path: Path) -> None:
    """The first bad step ends training and names the layer; the checkpoints before it hold finite weights."""
    with pytest.raises(NonFiniteError, match=r"layer '.*second'") as caught:
        fathom.fit((ROWS, ANSWERS), network=Poisoned(30), name="run", **SOON)
    assert caught.value.exit_code == 2
    step = int(re.search(r"at step (\d+)", str(caught.value))[1])  # type: ignore[index]
    state, notes = RunFolder(Path("runs/run")).checkpoints.load()
    assert state is not None
    assert notes == []
    assert state["clock"]["total"] == step - 1  # no lag
    for tensor in state["algorithm"]["models"]["model"].values():
        assert bool(torch.isfinite(tensor).all())


def test_an_infinite_input_names_the_row() -> None:
    """An infinity that is made from sound data is traced to its row."""
    rows = ROWS.copy()
    rows[13, 1] = np.inf
    with pytest.raises(FathomError, match=r"row 1[34]") as caught:
        fathom.fit((rows, ANSWERS), name="run", **SOON)
    assert "inf" in str(caught.value) or "not finite" in str(caught.value)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_exploding_rate_is_named(optimizer: str, tmp_path: Path) -> None:
    """The cause is the rate, and a smaller one is proposed."""
    table(tmp_path / "t.csv")
    words = ("--lr", "1e30", f"training.optimizer={optimizer}", "--steps", "60", "--batch", "8", EVERY_STEP, *QUICK)
    said = cli("fit", "t.csv", *words)
    assert said.code == 2
    assert re.search(r"Training stopped at step \d+: .* is not finite", said.last)
    assert "learning rate 1e+30 is likely too high; try --lr 0.01," in said.last
    state, _ = RunFolder(Path("runs/t-1")).checkpoints.load()
    assert state is None or all(bool(torch.isfinite(t).all()) for t in state["algorithm"]["models"]["model"].values())


# ---------------------------------------------------------------- hostile files


class Canary:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def evil(canary: Path) -> bytes:
    """A pickle that fires."""
    return pickle.dumps(Canary(canary))


def test_the_canary_fires(tmp_path: Path) -> None:
    """The attack works where somebody unpickles; else the next test would prove nothing."""
    pickle.loads(evil(tmp_path / "fired"))
    assert (tmp_path / "fired").exists()


def torch_zip(path: Path, canary: Path) -> None:
    torch.save(Canary(canary), path)


def object_array(path: Path, canary: Path) -> None:
    x = np.empty(2, object)
    x[:] = [Canary(canary)] * 2
    np.savez(path, x=x, y=np.arange(2))


def pickle_in_npz(path: Path, canary: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", evil(canary))
        archive.writestr("y.npy", evil(canary))


def arrow_extension(path: Path, canary: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    about = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": evil(canary)}
    schema = pa.schema([pa.field("a", pa.int64(), metadata=about), pa.field("label", pa.string())])
    parquet.write_table(pa.table([[1, 2, 3] * 9, ["x", "y", "z"] * 9], schema=schema), path)


DATA_ATTACKS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "object array": ("d.npz", object_array),
    "pickle named npz": ("d.npz", lambda path, canary: path.write_bytes(evil(canary)) and None),
    "pickle inside npz": ("d.npz", pickle_in_npz),
    "pickle named parquet": ("d.parquet", lambda path, canary: path.write_bytes(evil(canary)) and None),
    "extension type": ("d.parquet", arrow_extension),
    "pickle named csv": ("d.csv", lambda path, canary: path.write_bytes(evil(canary)) and None),
    "pickle named jsonl": ("d.jsonl", lambda path, canary: path.write_bytes(evil(canary)) and None),
    "pickle named toml": ("r.toml", lambda path, canary: path.write_bytes(evil(canary)) and None),
    "torch file as data": ("d.pt", torch_zip),
}


@pytest.mark.parametrize("name", DATA_ATTACKS)
def test_data_never_run_code(name: str, tmp_path: Path) -> None:
    """Refused in a sentence, or read as plain data; the canary stays silent."""
    file, write = DATA_ATTACKS[name]
    write(tmp_path / file, tmp_path / "fired")
    said = cli("fit", file, "--target", "label", "--steps", "2", *QUICK)
    assert not (tmp_path / "fired").exists()
    assert said.code == 2 or name == "extension type", said
    assert "Traceback" not in said.err


@pytest.mark.parametrize("line", [
    '_target_ = "pathlib.Path.touch"', 'class_path = "pathlib.Path"', '"a.b:c" = 1', '"../x" = 1', '__class__ = "os.system"',
    'name = "os.system"', 'name = "../../mlp"', "layers = [\"__import__('pathlib').Path('fired').touch()\"]",
    'layers = ["dense 8 __import__"]', 'hidden = "__import__(\'pathlib\').Path(\'fired\').touch()"',
])  # fmt: skip
def test_a_recipe_names_no_code(line: str, tmp_path: Path) -> None:
    """Names are looked up in the registry; keys and layers are words."""
    table(tmp_path / "t.csv")
    name = "" if line.startswith(("name", "layers")) else 'name = "mlp"\n'
    (tmp_path / "r.toml").write_text(f'[data]\nlocation = "t.csv"\n[network]\n{name}{line}\n', "utf-8")
    said = cli("fit", "r.toml", "--steps", "2", *QUICK)
    assert said.code == 2, said
    assert "Traceback" not in said.err
    assert not (tmp_path / "fired").exists()


@pytest.mark.parametrize("attack", ["pickle", "torch", "checkpoint", "network", "kind", "algorithm", "hyperparameter"])
def test_a_run_folder_never_runs_code(attack: str, straight: Path, tmp_path: Path) -> None:
    """Weights that are pickles; a model.json, sealed anew, that names code."""
    run, canary = Path(shutil.copytree(straight, tmp_path / "runs" / "run")), tmp_path / "fired"
    beside(straight, tmp_path)
    about = read_json(run / "model" / "model.json")
    words = ["predict", "run", "t.csv"]
    if attack == "pickle":
        (run / "model" / "weights.safetensors").write_bytes(evil(canary))
    elif attack == "torch":
        torch_zip(run / "model" / "weights.safetensors", canary)
    elif attack == "checkpoint":
        for path in CheckpointStore(run / "checkpoints").paths():
            path.write_bytes(evil(canary))
        (run / "results.json").unlink()
        words = ["fit", "--resume", "run"]
    elif attack == "network":
        about["network"]["name"] = "pathlib.Path.touch"
    elif attack == "kind":
        text = json.dumps(about["schema"]).replace('"number"', '"pathlib.Path"')
        about["schema"] = json.loads(text)
    elif attack == "algorithm":
        about["algorithm"] = "os.system"
    else:
        about["network"]["_target_"] = "pathlib.Path.touch"
    if words[0] == "predict":
        write_atomic(run / "model" / "model.json", sealed_json(about))
    said = cli(*words)
    assert said.code == 2, said
    assert "Traceback" not in said.err
    assert not canary.exists()


def header(content: bytes, length: int | None = None, body: bytes = b"") -> bytes:
    """A safetensors file: eight bytes of length, the header, the data."""
    return struct.pack("<Q", len(content) if length is None else length) + content + body


def entry(**changes: Any) -> dict[str, Any]:
    """One tensor of a header."""
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}


HOSTILE = {
    "empty": b"",
    "short": b"\x10\x00",
    "length beyond the file": header(b"{}", 10**6),
    "length of 2^63": header(b"{}", 2**63),
    "length of 2^64-1": header(b"{}", 2**64 - 1),
    "no JSON": header(b"[1, 2"),
    "no UTF-8": header(b"\xff\xfe{}"),
    "a list": header(b"[]"),
    "overlap": header(json.dumps({"a": entry(), "b": entry()}).encode(), body=bytes(4)),
    "hole": header(json.dumps({"a": entry(data_offsets=[8, 12])}).encode(), body=bytes(12)),
    "beyond the data": header(json.dumps({"a": entry(shape=[1000], data_offsets=[0, 4000])}).encode(), body=bytes(4)),
    "backwards": header(json.dumps({"a": entry(data_offsets=[4, 0])}).encode(), body=bytes(4)),
    "negative": header(json.dumps({"a": entry(shape=[-1])}).encode(), body=bytes(4)),
    "overflow": header(json.dumps({"a": entry(shape=[2**62, 2**62])}).encode(), body=bytes(4)),
    "shape is not bytes": header(json.dumps({"a": entry(shape=[2])}).encode(), body=bytes(4)),
    "unknown type": header(json.dumps({"a": entry(dtype="OBJECT")}).encode(), body=bytes(4)),
    "trailing": header(json.dumps({"a": entry()}).encode(), body=bytes(400)),
    "twice": header(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), body=bytes(4)),
    "deep": header(b'{"a":' * 100_000),
    "10^5 entries": header(json.dumps({str(i): entry(shape=[0], data_offsets=[0, 0]) for i in range(100_000)}).encode()),
    "no seal": header(json.dumps({"a": entry()}).encode(), body=bytes(4)),
    "another's seal": header(json.dumps({"__metadata__": {"sha256": "0" * 64}, "a": entry()}).encode(), body=bytes(4)),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_quickly(name: str, tmp_path: Path) -> None:
    """No crash, no hang, no memory: a sentence."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(HOSTILE[name])
    start = time.perf_counter()
    with pytest.raises(RunError, match=r"w\.safetensors"):
        load_tensors(path)
    assert time.perf_counter() - start < 5


def test_formulas_are_harmless_in_csv(straight: Path, tmp_path: Path) -> None:
    """Cells that a spreadsheet would run get an apostrophe; numbers stay numbers (OWASP ASVS 1.2.10)."""
    import csv

    from fathom.verbs.predict import write_answers

    signs = ("=", "+", "-", "@", "\t", "\r", "\0")
    answers = [{"input": f"{sign}cmd|' /C calc'!A1", "answer": f"{sign}1+1", "confidence": -0.5} for sign in signs]
    write_answers(answers, tmp_path / "a.csv")
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(answers)
    for line, answer in zip(lines, answers, strict=True):
        assert line["input"] == "'" + str(answer["input"])
        assert line["answer"] == "'" + str(answer["answer"])
        assert line["confidence"] == "-0.5"


def test_formulas_in_headers_are_harmless(tmp_path: Path) -> None:
    """A class named like a formula stands in the header of its probability."""
    from fathom.verbs.predict import write_answers

    write_answers([{"input": "row 1", "probabilities": {"=1+1": 0.5}}, {"=2+2": 1}], tmp_path / "a.csv")
    first = (tmp_path / "a.csv").read_text("utf-8").splitlines()[0]
    assert first == "input,probabilities.=1+1,'=2+2"


# ---------------------------------------------------------------- odd environments


@pytest.mark.parametrize("changed", [
    {"HOME": "/nonexistent", "FATHOM_CACHE": ""}, {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"}, {"NO_COLOR": "1"},
    {"TERM": "dumb", "COLUMNS": "20"}, {"TMPDIR": "/nonexistent"},
], ids=lambda changed: "+".join(changed))  # fmt: skip
def test_odd_environments(changed: dict[str, str], straight: Path, tmp_path: Path) -> None:
    """No home, no language, no colour, narrow terminal, no folder for temporary files: it works."""
    folder = tmp_path / "päth with spaces 🐍"
    folder.mkdir()
    process = Killable(beside(straight, folder), "fit", "t.csv", "--steps", "4", *QUICK, **changed)
    said = process.said()
    assert said.code == 0, said.err
    assert "\x1b" not in said.out + said.err


def test_no_home_at_all(straight: Path, tmp_path: Path) -> None:
    """A real process, HOME unset, plain C locale, closed stdin: the result is on stdout and no colour."""
    beside(straight, tmp_path)
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-m", "fathom.cli", "fit", "t.csv", "--steps", "4", "--json", *QUICK],
        cwd=tmp_path, env=kept, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] > 0
    assert done.stderr == b""


def test_paths_of_every_kind(tmp_path: Path) -> None:
    """Spaces, signs, emoji and quotes in the names of folder, file and run."""
    folder = tmp_path / "a folder 🐍" / 'it\'s "quoted" [1]'
    folder.mkdir(parents=True)
    made = table(folder / "my tàble #1.csv")
    said = cli("fit", str(made), "--out", str(folder / "all runs"), "--steps", "4", "--json", *QUICK)
    assert said.code == 0, said.err
    run = json.loads(said.out)["run"]
    assert cli("predict", run, str(made), "-o", str(folder / "answers 🐍.csv")).code == 0
    assert cli("report", run).code == 0
    assert cli("fit", str(Path(run) / "recipe.toml"), "--out", str(folder / "all runs")).code == 0
    assert cli("runs", "--out", str(folder / "all runs")).code == 0


def test_data_that_cannot_be_written(straight: Path, tmp_path: Path) -> None:
    """A read-only data folder stays as it is: nothing is written beside the data."""
    folder = tmp_path / "data"
    folder.mkdir()
    beside(straight, folder)
    folder.chmod(0o500)
    before = sorted(folder.iterdir())
    said = cli("fit", str(folder / "t.csv"), "--steps", "4", *QUICK)
    folder.chmod(0o700)
    assert said.code == 0, said.err
    assert sorted(folder.iterdir()) == before


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FATHOM_CACHE below a file: pictures are decoded again each time."""
    from PIL import Image

    for i in range(24):
        path = tmp_path / "photos" / ("cats", "dogs")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)).save(path)
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("FATHOM_CACHE", str(tmp_path / "file" / "cache"))
    assert cli("fit", "photos", "--steps", "3", *QUICK).code == 0


def test_the_working_folder_goes_away(straight: Path, tmp_path: Path) -> None:
    """Names of data are made absolute: a run is resumed and judged from anywhere."""
    run = Path(shutil.copytree(straight, tmp_path / "elsewhere"))
    said = cli("evaluate", str(run), "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["test"] == read_json(run / "results.json")["test"]
