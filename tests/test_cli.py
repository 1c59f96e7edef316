"""The command line: help, output for people and for programs, and every verb once from end to end."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import tomllib
from pathlib import Path

import pytest

import fathom
from fathom.cli import app
from fathom.core.flags import FLAGS
from kit import QUICK, cli, table, trained

VERBS = ("fit", "plan", "evaluate", "predict", "generate", "chat", "report", "runs", "compare", "list")
SHORT = ("--steps", "8", "--batch", "8", *QUICK)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table and two finished runs of it, `one` and `two`, whose rates differ."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FATHOM_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        table(folder / "t.csv")
        for name, rate in (("one", "0.01"), ("two", "0.001")):
            said = cli("fit", "t.csv", "--name", name, "--lr", rate, *SHORT)
            assert said.code == 0, said.err
    return folder


@pytest.fixture(autouse=True)
def _there(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in that folder."""
    monkeypatch.chdir(work)


def run_of(text: str) -> Path:
    """The run that a fit names at its end."""
    found = re.search(r"^Run\s+(\S+)$", text, re.MULTILINE)
    assert found, text
    return Path(found[1])


# ---------------------------------------------------------------- help


def test_help_begins_with_examples() -> None:
    """`fathom --help` and `fathom` alone show what to type first, and every verb."""
    said = cli("--help")
    assert said.code == 0
    assert "fathom fit digits" in said.out
    assert all(re.search(rf"\b{verb}\b", said.out) for verb in VERBS)
    assert "section.key=value" in said.out
    assert cli() == said


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    """Help of a verb is a sentence, its arguments and its options; `-h` is the same."""
    said = cli(verb, "--help")
    assert said.code == 0
    assert f"fathom {verb}" in said.out
    assert re.search(r"[A-Z][^.]{15,}\.", said.out)
    assert cli(verb, "-h").out == said.out
    assert said.err == ""


def test_help_of_fit_shows_every_flag() -> None:
    """One option for each flag, each with its line."""
    said = cli("fit", "--help")
    for name, flag in FLAGS.items():
        assert f"--{name}" in said.out
        assert flag.help.split()[0] in said.out
    assert "--resume" in said.out
    assert "--json" in said.out


def test_the_verbs_are_those_of_the_design() -> None:
    """No verb comes or goes unnoticed."""
    names = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    assert set(VERBS) <= names


def test_version() -> None:
    """One line on stdout."""
    said = cli("--version")
    assert said.code == 0
    assert re.fullmatch(r"fathom \d+\.\d+\S*\n", said.out)


def test_python_has_every_verb() -> None:
    """The verbs are functions of the same names (`list` is `fathom.listing`)."""
    for verb in VERBS:
        assert callable(getattr(fathom, "listing" if verb == "list" else verb))


# ---------------------------------------------------------------- programs read stdout


def test_json_is_all_of_stdout() -> None:
    """With --json every verb prints one JSON value and nothing else."""
    commands = {
        "fit": ("fit", "t.csv", *SHORT), "plan": ("plan", "t.csv", *SHORT), "evaluate": ("evaluate", "one"),
        "predict": ("predict", "one", "t.csv"), "runs": ("runs",), "compare": ("compare", "one", "two"),
        "list": ("list", "networks"),
    }  # fmt: skip
    for verb, words in commands.items():
        said = cli(*words, "--json")
        assert said.code == 0, (verb, said.err)
        assert json.loads(said.out), verb
        assert "\x1b" not in said.out


def test_json_of_fit_is_its_results() -> None:
    """The printed value is results.json and the run's folder."""
    printed = json.loads(cli("fit", "t.csv", "--json", *SHORT).out)
    saved = json.loads((Path(printed.pop("run")) / "results.json").read_text("utf-8"))
    saved.pop("sha256")
    assert printed == saved
    assert {"task", "seed", "splits", "test", "baseline", "seconds", "parameters"} <= set(printed)
    assert {"value", "low", "high"} <= set(printed["test"]["accuracy"])


def test_progress_is_not_on_stdout() -> None:
    """What was guessed goes to stderr; the result goes to stdout, without colour where nobody looks."""
    said = cli("fit", "t.csv", *SHORT)
    assert "The target is 'label'" in said.err
    assert "The target is 'label'" not in said.out
    assert "accuracy" in said.out
    assert "\x1b" not in said.out + said.err
    assert "epoch" not in said.err  # no line of progress without a terminal


# ---------------------------------------------------------------- verbs


def test_fit_ends_with_the_next_command() -> None:
    """Result beside baselines, one sentence, the run, and what to type next; that command works."""
    said = cli("fit", "t.csv", *SHORT)
    assert "majority" in said.out
    assert re.search(r"The network is (better|not better|worse)", said.out)
    run = run_of(said.out)
    assert (run / "report.html").stat().st_size < 1_000_000
    assert f"fathom predict {run} new.csv" in said.out
    assert cli("report", str(run)).code == 0


def test_fit_without_data_explains() -> None:
    """Nothing named: an example."""
    said = cli("fit")
    assert said.code == 2
    assert "fathom fit digits" in said.err


def test_keys_may_stand_first_and_flags_anywhere() -> None:
    """`fathom fit section.key=value --flag` takes the data from the keys."""
    said = cli("fit", "data.location=t.csv", "network.dropout=0.25", "--json", *SHORT)
    assert said.code == 0, said.err
    recipe = tomllib.loads((Path(json.loads(said.out)["run"]) / "recipe.toml").read_text("utf-8"))
    assert recipe["network"]["dropout"] == 0.25


def test_fit_and_plan_take_the_same_words() -> None:
    """What stands first may be a key of the recipe, for both."""
    words = ("data.location=t.csv", "network.dropout=0.25", "--json", *SHORT)
    made = json.loads(cli("plan", *words).out)
    assert tomllib.loads(made["recipe"])["network"]["dropout"] == 0.25
    helps = [cli(verb, "--help").out for verb in ("fit", "plan")]
    for shared in ("Folder, file, built-in set or recipe.toml.", "Any key of the recipe.", "--download"):
        assert all(shared in text for text in helps)


def test_plan_shows_choice_rivals_layers_and_cost() -> None:
    """The network and why, two rivals with pros and cons, the layer table, time and memory; nothing is written."""
    before = sorted(Path("runs").iterdir())
    said = cli("plan", "t.csv", *SHORT)
    assert said.code == 0, said.err
    assert "Network   table: " in said.out
    rivals = said.out[said.out.index("Rivals") : said.out.index("layer")]
    assert rivals.count(" + ") == 2
    assert rivals.count(" - ") == 2
    assert re.search(r"Linear\s+\d+\s+[\d,]+", said.out)
    assert "Time      about" in said.out
    assert "Memory    about" in said.out
    assert sorted(Path("runs").iterdir()) == before
    made = json.loads(cli("plan", "t.csv", "--json", *SHORT).out)
    assert made["parameters"] == sum(layer["parameters"] for layer in made["layers"])
    assert tomllib.loads(made["recipe"])["network"]["name"] == made["network"]


def test_a_recipe_repeats_a_run_exactly() -> None:
    """The written recipe is complete: the same weights, byte for byte, and the same results."""
    said = cli("fit", "runs/one/recipe.toml", "--name", "again")
    assert said.code == 0, said.err
    assert trained(Path("runs/again")) == trained(Path("runs/one"))
    one, again = (json.loads(Path(f"runs/{n}/results.json").read_text("utf-8")) for n in ("one", "again"))
    assert one["test"] == again["test"]
    assert one["baseline"] == again["baseline"]
    assert Path("runs/again/recipe.toml").read_text() == Path("runs/one/recipe.toml").read_text().replace(
        'name = "one"', 'name = "again"'
    )


def test_a_recipe_can_be_overridden() -> None:
    """Words on the command line win over the file, and a new budget replaces the old one."""
    said = cli("fit", "runs/one/recipe.toml", "--name", "longer", "--epochs", "2", "--seed", "5", "--json")
    assert said.code == 0, said.err
    recipe = tomllib.loads(Path("runs/longer/recipe.toml").read_text("utf-8"))
    assert recipe["training"]["epochs"] == 2
    assert recipe["training"]["seed"] == 5
    assert recipe["training"]["steps"] != 8


def test_runs_shows_every_run() -> None:
    """One line a run: name, task, network, result; unfinished and damaged ones are named so."""
    unfinished = Path("others/begun")
    unfinished.mkdir(parents=True)
    (unfinished / "recipe.toml").write_text("", "utf-8")
    said = cli("runs")
    assert re.search(r"^\s*one\b.*table.*0\.\d+ \(", said.out, re.MULTILINE) or ("one" in said.out and "table" in said.out)
    assert {line["name"] for line in json.loads(cli("runs", "--json").out)} >= {"one", "two"}
    assert "unfinished" in cli("runs", "--out", "others").out
    (unfinished / "results.json").write_text("{}", "utf-8")
    assert "damaged" in cli("runs", "--out", "others").out
    assert cli("runs", "--out", "nowhere").last.startswith("fathom: 'nowhere' does not exist; give the folder")
    assert "'t.csv' is a file" in cli("runs", "--out", "t.csv").last


def test_compare_shows_where_recipes_differ() -> None:
    """Metrics side by side, and the keys that differ only."""
    said = cli("compare", "one", "two")
    assert said.code == 0, said.err
    assert "accuracy" in said.out
    assert "learning_rate" in said.out
    compared = json.loads(cli("compare", "one", "two", "--json").out)
    assert compared["recipe"] == {"training.learning_rate": [0.01, 0.001]}
    assert len(compared["metrics"]["accuracy"]) == 2


@pytest.mark.parametrize(("kind", "name"), [
    ("networks", "resnet"), ("fields", "category"), ("sources", "tables"), ("algorithms", "supervised"),
    ("augmentations", "flip"),
])  # fmt: skip
def test_list_shows_every_kind(kind: str, name: str) -> None:
    """Each component with its hyperparameters."""
    assert name in cli("list", kind).out
    entries = json.loads(cli("list", kind, "--json").out)
    assert name in [entry["name"] for entry in entries]
    assert all(entry["summary"] for entry in entries)


def test_list_shows_pros_cons_and_papers() -> None:
    """What a user needs to choose a network."""
    said = cli("list")
    assert "dropout=" in said.out
    assert " + " in said.out
    assert "paper:" in said.out


def test_evaluate_on_other_data() -> None:
    """All rows of the other file are judged, beside baselines fitted on the run's training rows."""
    table(Path("other.csv"), 40, seed=3)
    printed = json.loads(cli("evaluate", "one", "other.csv", "--json").out)
    assert printed["rows"] == 40
    assert "majority class" in printed["baseline"]
    own = json.loads(cli("evaluate", "one", "--json").out)
    saved = json.loads(Path("runs/one/results.json").read_text("utf-8"))
    assert own["test"] == saved["test"]
    assert own["verdict"] == saved["verdict"]


def test_predict_writes_what_the_name_says() -> None:
    """The same answers as a table, JSON, CSV and Parquet."""
    from pyarrow import parquet

    table(Path("new.csv"), 5, seed=9)
    printed = json.loads(cli("predict", "one", "new.csv", "--json").out)
    assert [answer["input"] for answer in printed] == [f"row {i}" for i in range(1, 6)]
    assert all(abs(sum(answer["probabilities"].values()) - 1) < 1e-4 for answer in printed)
    shown = cli("predict", "one", "new.csv").out
    assert all(f"{answer['confidence']:.3f}" in shown for answer in printed)
    for name in ("a.csv", "a.parquet", "a.json"):
        said = cli("predict", "one", "new.csv", "-o", name)
        assert said.code == 0
        assert said.out == ""
        assert f"5 answers written to {name}" in said.err
    assert json.loads(Path("a.json").read_text("utf-8")) == printed
    with open("a.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["answer"] for line in lines] == [answer["answer"] for answer in printed]
    assert float(lines[0]["probabilities.yes"]) == printed[0]["probabilities"]["yes"]
    assert parquet.read_table("a.parquet").to_pylist()[0]["confidence"] == printed[0]["confidence"]


def test_seeds_make_members_under_one_run() -> None:
    """`--seeds 2`: two members and one aggregated result."""
    said = cli("fit", "t.csv", "--seeds", "2", "--json", *SHORT)
    assert said.code == 0, said.err
    printed = json.loads(said.out)
    run = Path(printed["run"])
    assert [member["name"] for member in printed["members"]] == ["seed-0", "seed-1"]
    assert sorted(path.name for path in (run / "members").iterdir()) == ["seed-0", "seed-1"]
    assert cli("predict", str(run), "t.csv", "--json").code == 0


def test_what_was_chosen_by_timing_is_told() -> None:
    """Another run may choose otherwise, its recipe repeats it; what the user chose is not told."""
    said = cli("fit", "t.csv", "--steps", 8, "--batch", 8, "training.device=cpu", "--name", "timed")
    told = "Another run may choose otherwise; this run's recipe.toml repeats it exactly."
    chosen = tomllib.loads(Path("runs/timed/recipe.toml").read_text("utf-8"))["training"]
    if len(os.sched_getaffinity(0)) > 1:
        assert f"Chosen by timing: {chosen['threads']} thread" in said.err
        assert told in Path("runs/timed/log.txt").read_text("utf-8")
    assert told not in cli("fit", "runs/timed/recipe.toml", "training.name=again").err
    assert told not in cli("fit", "t.csv", *SHORT).err
    assert "8 steps. Another" not in said.err


def test_a_damaged_run_is_no_success(tmp_path: Path) -> None:
    """`--resume` of a finished run whose weights rotted, and `report` of one whose results did, leave the page as it was."""
    for name in ("weights", "results"):
        shutil.copytree("runs/one", tmp_path / name)
    weights, page = tmp_path / "weights/model/weights.safetensors", tmp_path / "results/report.html"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    said = cli("fit", "--resume", tmp_path / "weights")
    assert said.code == 2
    assert "weights.safetensors is damaged" in said.last
    assert "finished" not in said.err
    (tmp_path / "results/results.json").write_text("{ rotten", "utf-8")
    before = page.read_bytes()
    said = cli("report", tmp_path / "results")
    assert said.code == 2
    assert "results.json is damaged" in said.last
    assert f"The page {page} stays as it was." in said.last
    assert page.read_bytes() == before


def test_runs_are_offered_from_the_folder_that_was_named(tmp_path: Path) -> None:
    shutil.copytree("runs/one", tmp_path / "elsewhere" / "first")
    said = cli("predict", tmp_path / "elsewhere" / "frist", "t.csv")
    assert f"Did you mean '{tmp_path}/elsewhere/first'?" in said.last
    said = cli("predict", tmp_path / "elsewhere" / "zzz", "t.csv")
    assert f"Runs in {tmp_path}/elsewhere/: first." in said.last
    assert "Did you mean 'runs/one'?" in cli("predict", "onne", "t.csv").last


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("dropout=0.5", " Did you mean network.dropout=0.5?"),
        ("epochs=5", " Did you mean training.epochs=5?"),
        ("flip=0.5", " Did you mean augment.flip=0.5?"),
        ("nonsense=1", ""),
        ("nonsense", ""),
    ],
)
def test_a_key_without_its_section_is_completed(word: str, meant: str) -> None:
    said = cli("fit", "t.csv", word)
    assert said.code == 2
    assert said.last == (
        f"fathom: '{word}' is not understood; write section.key=value, as in training.epochs=5.{meant}\n"
    )


def test_a_finished_run_goes_on_with_more_epochs() -> None:
    """`--resume` of a finished run says so; with a larger budget it trains on."""
    cli("fit", "t.csv", "--name", "more", *SHORT)
    said = cli("fit", "--resume", "runs/more")
    assert said.code == 0
    assert "is finished" in said.err
    assert cli("fit", "--resume", "more", "--steps", "16", "--json").code == 0
    assert json.loads(Path("runs/more/metrics.jsonl").read_text("utf-8").splitlines()[-1])["step"] == 16
