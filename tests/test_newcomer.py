"""What a newcomer gets wrong at the command line and in Python: each is told in a sentence, or simply works."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn

import fathom
from fathom.analysis.evaluate import results as judged
from fathom.console import print_runs
from fathom.core.contract import Schema, TensorSet
from fathom.core.errors import FathomError, hint, nearest
from fathom.core.recipe import Recipe
from fathom.core.registry import fields
from fathom.verbs.listing import listing
from fathom.verbs.predict import check_output
from kit import QUICK, cli, table

BRIEF: dict[str, Any] = {"epochs": 1, "training.threads": 1, "training.device": "cpu"}
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(80, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)


def frame(rows: int = 80, **more: Any) -> pa.Table:
    columns = {"u": RANDOM.normal(size=rows), "city": [("rome", "paris")[i % 2] for i in range(rows)]}
    return pa.table({**columns, "y": [("no", "yes")[i] for i in RANDOM.integers(0, 2, rows)], **more})


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a table, `one`, one of gray pictures, `gray`, and one that has only begun."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FATHOM_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        table(folder / "t.csv")
        assert cli("fit", "t.csv", "--name", "one", "--steps", "4", *QUICK).code == 0
        for i in range(24):
            path = folder / "pictures" / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(RANDOM.integers(0, 255, (8, 8), dtype=np.uint8)).save(path)
        assert cli("fit", "pictures", "--name", "gray", "--steps", "4", *QUICK).code == 0
        (folder / "runs/begun").mkdir()
        (folder / "runs/begun/recipe.toml").write_text("", "utf-8")
    return folder


@pytest.fixture(autouse=True)
def _there(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    monkeypatch.setenv("FATHOM_CACHE", str(work / "cache"))


# ---------------------------------------------------------------- predict


def test_answers_never_overwrite_their_input() -> None:
    before = Path("t.csv").read_bytes()
    said = cli("predict", "one", "t.csv", "-o", "./t.csv")
    assert said.code == 2
    assert "is one of the inputs and would be overwritten" in said.last
    assert Path("t.csv").read_bytes() == before


def test_a_wrong_ending_is_told_before_anything_is_computed() -> None:
    said = cli("predict", "no such run", "t.csv", "-o", "answers.xls")
    assert "Answers cannot be written as '.xls'; use .csv, .parquet or .json." in said.last
    Path("folder.csv").mkdir()
    with pytest.raises(FathomError, match="is a folder; name a file"):
        check_output(Path("folder.csv"))


def test_json_is_printed_beside_a_file() -> None:
    said = cli("predict", "one", "t.csv", "-o", "answers.json", "--json")
    assert json.loads(said.out) == json.loads(Path("answers.json").read_text("utf-8"))


def test_rows_of_several_files_are_named_by_their_file() -> None:
    table(Path("a.csv"), 2, seed=5)
    table(Path("b.csv"), 3, seed=6)
    names = [answer["input"] for answer in json.loads(cli("predict", "one", "a.csv", "b.csv", "--json").out)]
    assert names == ["a.csv row 1", "a.csv row 2", "b.csv row 1", "b.csv row 2", "b.csv row 3"]
    assert [answer["input"] for answer in fathom.load("one").predict(["a.csv"])] == ["row 1", "row 2"]


def test_a_dash_reads_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    table(Path("a.csv"), 2, seed=5)

    class Piped:
        buffer = io.BytesIO(Path("a.csv").read_bytes())

    expected = cli("predict", "one", "a.csv", "--json").out
    monkeypatch.setattr(sys, "stdin", Piped())
    assert cli("predict", "one", "-", "--json").out == expected


def test_what_no_training_row_had_is_noted() -> None:
    run = fathom.fit(frame(), name="cities", **BRIEF)
    new, known, missing = run.predict({"u": 1.0, "city": "oslo"}, {"u": 1.0, "city": "rome"}, {"u": 1.0, "city": None})
    assert new["note"] == "No training row has 'oslo' as its city."
    assert "note" not in known
    assert "note" not in missing
    with Path("oslo.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("u", "city"), *[(i / 7, "oslo") for i in range(7)]])
    said = cli("predict", "cities", "oslo.csv", "--json")
    assert said.err.count("Note      ") == 6
    assert "and 2 more" in said.err


def test_a_color_picture_on_a_gray_model_is_noted() -> None:
    Image.fromarray(RANDOM.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save("color.png")
    Image.fromarray(np.repeat(RANDOM.integers(0, 255, (8, 8, 1), dtype=np.uint8), 3, 2)).save("gray.png")
    color, gray = fathom.load("gray").predict(["color.png", Path("gray.png")])
    assert color["note"] == "The picture has colors; this model was trained on gray ones."
    assert "note" not in gray


class Series:
    """What pandas gives for one row of a frame."""

    ndim = 1

    def to_dict(self) -> dict[str, float]:
        return {"u": 1.0, "city": "rome"}


def test_a_list_of_rows_and_a_series_are_rows() -> None:
    run = fathom.fit(frame(), **BRIEF)
    row = {"u": 1.0, "city": "rome"}
    assert run.predict(Series()) == run.predict(row)
    assert run.predict([row, row]) == run.predict(row, row)
    assert len(run.predict([1.0, "rome"])) == 1, "a list of values is one row"


@pytest.mark.parametrize(
    ("given", "kind"), [(Y, int), (Y == 1, bool), (np.array(["no", "yes"])[Y], str), (Y.astype(float), int)]
)
def test_answers_come_back_in_the_type_that_came_in(given: Any, kind: type) -> None:
    run = fathom.load(fathom.fit((X, given), **BRIEF).path)
    answers = [answer["answer"] for answer in run.predict(X[:9])]
    assert all(type(answer) is kind for answer in answers)
    assert set(answers) <= {kind(value) for value in np.unique(given)}


# ---------------------------------------------------------------- fit


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fathom.fit((X, Y), network=nn.Linear), "network= is the class Linear; give a module made from it"),
        (lambda: fathom.fit((X, Y), network={"name": "mlp"}), "network= is a dict; give a name or your own nn.Module"),
        (lambda: fathom.fit(X, Y), r"Give x and y together, as one pair: fathom\.fit\(\(x, y\)\)"),
        (lambda: fathom.plan(X, Y), "Give x and y together"),
        (lambda: fathom.fit(" "), "Nothing to learn from"),
        (lambda: fathom.fit((X, Y), lr=float("inf")), "learning_rate = inf is not allowed: it should be a finite number"),
        (lambda: fathom.fit((X, Y), epochs=True), "training.epochs = True is not allowed: it should be a number"),
        (lambda: fathom.fit((X, Y), **{"network.name": "mlp", "network.dropout": True}), "network.dropout = True"),
        (lambda: fathom.fit((X, Y), **{"augment.flip": True}), "augment.flip = True is not allowed"),
        (lambda: fathom.fit((X, Y), **{"training.threads": 5000}), r"threads = 5000 is more than the \d+ cores here"),
        (lambda: fathom.fit((X, Y), target=frame()), "data.target = a ChunkedArray is not allowed: it should be text"),
        (lambda: fathom.fit("t.csv", test=frame()), "test= holds data in memory, and the training data lie elsewhere"),
        (
            lambda: fathom.fit(pa.Table.from_arrays([pa.array(Y), pa.array(Y)], names=["a", "a"])),
            "the frame names a more than once. Every column needs a name of its own",
        ),
    ],
)
def test_each_mistake_is_a_sentence(call: Any, words: str) -> None:
    before = sorted(Path("runs").iterdir())
    with pytest.raises(FathomError, match=words):
        call()
    assert sorted(Path("runs").iterdir()) == before


def test_frames_for_validation_and_test() -> None:
    run = fathom.fit(frame(60), valid=frame(30), test=frame(40), **BRIEF)
    assert run.results["splits"] == {"train": 60, "validation": 30, "test": 40}
    assert fathom.fit((X, Y), test=(X + 1, Y), **BRIEF).results["splits"]["test"] == 80
    with pytest.raises(FathomError, match="the test frame lacks the column 'u'"):
        fathom.fit(frame(), test=frame().drop_columns(["u"]), **BRIEF)


def test_runs_of_data_in_memory_are_called_data_or_as_the_module() -> None:
    assert fathom.fit((X, Y), **BRIEF).path.name.startswith("data-")
    assert fathom.fit({"x": X, "y": Y}, **BRIEF).path.name.startswith("data-")
    assert fathom.fit((X, Y), network=nn.Linear(3, 2), **BRIEF).path.name == "Linear-1"


def test_columns_named_by_numbers() -> None:
    run = fathom.fit(pa.table({"0": X[:, 0], "4": Y}), target=4, **BRIEF)
    assert list(run.schema.targets) == ["4"]


def test_download_is_an_argument() -> None:
    assert fathom.fit("iris", download=True, **BRIEF).recipe.data.download


def test_a_resume_takes_no_other_data() -> None:
    said = cli("fit", "iris", "--resume", "one")
    assert said.code == 2
    assert "goes on with its own data" in said.last
    assert "Leave 'iris' out" in said.last
    assert cli("fit", "t.csv", "--resume", "one").code == 0


def test_the_fault_of_a_recipe_is_told_before_its_missing_data() -> None:
    Path("bad.toml").write_text("[trainng]\nepochs = 1\n", "utf-8")
    assert "There is no section 'trainng'. Did you mean 'training'?" in cli("fit", "bad.toml").last
    Path("good.toml").write_text("[training]\nepochs = 1\n", "utf-8")
    assert "The recipe names no data" in cli("fit", "good.toml").last


def test_a_copy_of_the_target_is_noted() -> None:
    number = RANDOM.normal(size=80)
    made = fathom.plan(pa.table({"u": X[:, 0], "twin": number, "z": number}), target="z", **BRIEF)
    assert any("twin alone decides 'z' in every row" in line for line in made["lines"])
    made = fathom.plan(pa.table({"u": X[:, 0], "twin": Y, "y": Y}), target="y", **BRIEF)
    assert any("twin alone decides 'y' in every row" in line for line in made["lines"])


def test_the_module_takes_plain_tensors() -> None:
    run = fathom.fit((X, Y), **BRIEF)
    rows = torch.from_numpy(X[:5])
    plain = run.module(rows)
    assert plain.shape == (5, 2)
    assert torch.equal(plain, run.module({"numbers": rows})["y"])
    with pytest.raises(FathomError, match="The network reads numbers, but 2 tensors came"):
        run.module(rows, rows)


def test_folds_speak_of_the_run_and_not_of_a_member() -> None:
    said = cli("fit", "t.csv", "--folds", "3", "--name", "f3", "--steps", "2", *QUICK)
    assert "rows in the first of 3 folds" in said.err
    assert "fathom predict runs/f3 new.csv" in said.out
    results = json.loads(Path("runs/f3/results.json").read_text("utf-8"))
    assert results["seconds"]["prepare"] > 0
    card = Path("runs/f3/model/README.md").read_text("utf-8")
    assert "`fathom evaluate f3 DATA`" in card
    assert results["verdict"] in card
    assert "fathom evaluate f3 DATA" in Path("runs/f3/members/fold-1/model/README.md").read_text("utf-8")
    before = sorted(Path("runs").iterdir())
    assert "needs at least 500 different rows" in cli("fit", "t.csv", "--folds", "500", "--limit", "50").last
    assert sorted(Path("runs").iterdir()) == before


# ---------------------------------------------------------------- runs and listings


def test_the_runs_that_are_not_shown_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(8):
        Path(f"runs/r{i}").mkdir(parents=True)
        Path(f"runs/r{i}/recipe.toml").touch()
    assert cli("predict", "zzz", "new.csv").last.strip().endswith("and 3 more.")


@pytest.mark.parametrize("words", [("predict", "begun", "t.csv"), ("evaluate", "begun"), ("compare", "one", "begun")])
def test_a_run_without_results_says_how_to_go_on(words: tuple[str, ...]) -> None:
    assert "fathom fit --resume runs/begun" in cli(*words).last


def test_runs_in_a_folder_that_is_none() -> None:
    assert cli("runs", "--out", "nope").last.startswith("fathom: 'nope' does not exist")
    assert "'t.csv' is a file" in cli("runs", "--out", "t.csv").last


@pytest.mark.parametrize("width", [120, 80, 60])
def test_runs_fit_on_narrow_screens(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    monkeypatch.setattr("fathom.console.console", lambda: Console(width=width, file=sys.stdout))
    line = {"name": "breast-cancer-12", "state": "finished", "task": "table classification", "network": "perceptron"}
    estimate = {"metric": "accuracy", "value": 0.95, "low": 0.91, "high": 0.97, "seconds": 12.5}
    print_runs([{**line, **estimate}], "runs")
    shown = capsys.readouterr().out
    assert "accuracy 0.950 (0.910 to 0.970)" in shown
    assert ("seconds" in shown) is (width == 120)


def test_list_shows_every_key_of_a_recipe() -> None:
    shown = cli("list", "keys").out
    for key in ("data.image.size=", "training.learning_rate=", "augment.flip=", "network.dropout=", "supervised.loss="):
        assert key in shown
    known = {knob["name"] for entry in listing("keys") for knob in entry["hyperparameters"]}
    assert {f"training.{name}" for name in Recipe.parse({}).training.model_fields_set} <= known
    for kind, name in (("optimizers", "adamw"), ("schedules", "one_cycle"), ("losses", "huber")):
        assert name in cli("list", kind).out
    assert "`fathom plan DATA` shows those of your data" in cli("list", "networks").out


def test_plan_shows_the_settings_of_the_network() -> None:
    said = cli("plan", "t.csv", "--network", "mlp", "network.dropout=0.25", *QUICK)
    assert "Settings  " in said.out
    assert "network.dropout=0.25" in said.out


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"image": {"size": 16}}, "There is no section 'image'. Did you mean 'data.image.size'?"),
        ({"network": {"name": "mlp", "hidden": 3}}, "it should be a list, as [32]"),
        ({"data": {"test": 2}}, "it should be less than 1, or a file or folder"),
        ({"training": {"epochs": "ten"}}, "training.epochs = 'ten' is not allowed: it should be a valid number."),
        ({"training": {"seed": "x"}}, "it should be a whole number"),
        ({"data": {"types": 3}}, "it should be a table"),
        ({"data": {"location": {"a": 1}}}, "data.location = a table is not allowed: it should be text"),
    ],
)
def test_faults_of_a_recipe_speak_no_python(tree: dict[str, Any], words: str) -> None:
    with pytest.raises(FathomError) as caught:
        Recipe.parse(tree)
    assert words in str(caught.value)


def test_suggestions_are_near() -> None:
    assert nearest("nope", ["wine", "iris"]) is None
    assert nearest("training.foo", ["training.clip", "training.folds"]) is None
    assert nearest("training.epoch", ["training.epochs", "training.steps"]) == "training.epochs"
    assert hint("x", ["long"]) == ""
    assert hint("rom", ["rome"]) == " (nearest: rome)"


def test_errors_of_the_command_line_are_sentences() -> None:
    assert "Did you mean 'fit'? See: fathom --help" in cli("fitt").last
    assert "it should be a valid number. See: fathom fit --help" in cli("fit", "t.csv", "--epochs", "x").last
    assert "The recipe nope.toml cannot be read: No such file or directory." in cli("fit", "nope.toml").last


def test_objects_in_npz_files_are_told_without_pickle() -> None:
    np.savez("objects.npz", x=np.array([{}, 1], object), y=np.array([0, 1]))
    said = cli("fit", "objects.npz")
    assert "it holds Python objects; save numbers or words" in said.last
    assert "pickle" not in said.last


# ---------------------------------------------------------------- results


def test_each_target_has_a_sentence_and_rare_classes_a_note() -> None:
    targets = {}
    for name, classes in (("y", ["ant", "bee"]), ("w", ["cat", "dog"])):
        targets[name] = fields["category"].make([name])
        targets[name].state = {"classes": classes, "vocabularies": [classes]}
    truth = torch.arange(40) % 2
    rare = (torch.arange(40) == 7).long()
    data = TensorSet({"y": truth, "w": rare})
    outputs = {"y": torch.nn.functional.one_hot(truth, 2) * 5.0, "w": torch.nn.functional.one_hot(rare, 2) * 5.0}
    trivial = {"majority class": {"y": torch.zeros(40, 2), "w": torch.zeros(40, 2)}}
    told = judged(outputs, trivial, data, Schema({}, targets), 0, "y.accuracy", resamples=50)
    assert told["others"] == ["w.auprc"]  # one row of forty
    assert "accuracy of 'y'" in told["verdict"]
    assert "AUPRC of 'w'" in told["verdict"]
    assert any("'dog' on 1" in note for note in told["notes"])
