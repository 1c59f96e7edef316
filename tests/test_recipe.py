"""The recipe: every fault named at once with the nearest name, round trips, assignments, budgets, flags."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.core.errors import FathomError, RecipeError
from fathom.core.recipe import Recipe, flag_changes, merge, parse_assignment


@pytest.mark.parametrize("name", ["recipe", "errors", "tensors", "registry", "split", "run", "optimize", "flags"])
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(f"fathom.core.{name}")
    assert doctest.testmod(module).failed == 0
    if name in ("recipe", "errors"):
        assert doctest.testmod(module).attempted > 0


def faults(tree: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(tree)
    assert len(str(caught.value).splitlines()) == (len(caught.value.faults) + 1 if len(caught.value.faults) > 1 else 1)
    return caught.value.faults


def test_three_faults_are_named_at_once() -> None:
    found = faults(
        {"training": {"epoch": 5, "optimizer": "adamm"}, "network": {"name": "resnt"}, "trainig": {"epochs": 1}}
    )
    assert len(found) == 4
    text = "\n".join(found)
    for word in ("'training.epochs'", "'adamm'", "'resnet'", "'training'?"):
        assert word in text, text


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"trainng": {}}, ["There is no section 'trainng'", "Did you mean 'training'?"]),
        ({"training": {"learning_rat": 1}}, ["no key 'training.learning_rat'", "'training.learning_rate'?"]),
        ({"training": {"schedule": "cosin"}}, ["training.schedule = 'cosin'", "'linear'", "Did you mean 'cosine'?"]),
        ({"training": {"epochs": -1}}, ["training.epochs = -1", "greater than 0"]),
        ({"training": {"label_smoothing": 1.0}}, ["training.label_smoothing = 1.0", "less than 1"]),
        ({"training": {"algorithm": "supervise"}}, ["no algorithm 'supervise'", "'supervised'?"]),
        ({"network": {"name": "cnn", "dropot": 0.1}}, ["no key 'network.dropot'", "'network.dropout'?"]),
        ({"network": {"name": "cnn", "dropout": "much"}}, ["network.dropout = 'much'", "valid number"]),
        ({"network": 3}, ["network should be a table, but 3 came"]),
        ({"augment": {"flipp": 0.5}}, ["no augmentation 'flipp'", "'flip'?"]),
        ({"augment": {"flip": 2}}, ["augment.flip = 2", "from 0.0 to 1.0"]),
        ({"augment": {"shift": 0.1}}, ["augment.shift = 0.1", "counts pixels", "whole number"]),
        ({"augment": {"flip": "half"}}, ["augment.flip = 'half'", "from 0.0 to 1.0"]),
        ({"data": {"image": {"siz": 32}}}, ["no key 'data.image.siz'", "'data.image.size'?"]),
        ({"data": {"test": 1.5}}, ["data.test = 1.5", "less than 1"]),
        ({"stage": {"name": "x"}}, ["stage should be a list of tables"]),
        ({"stage": [{"step": 3}]}, ["no key 'stage[0].step'", "'stage[0].steps'?"]),
        ({"supervised": {"los": "mse"}}, ["no key 'supervised.los'", "'supervised.loss'?"]),
        ({"training": []}, ["training should be a table"]),
        ({"training": {"tokens": 100, "sampling": "balanced"}}, ["training.tokens", "training.sampling = balanced", "leave one"]),
    ],
)
def test_each_fault_says_what_came_and_the_nearest(tree: dict[str, Any], words: list[str]) -> None:
    (fault,) = faults(tree)
    for word in words:
        assert word in fault


def test_the_file_is_named_where_there_is_one() -> None:
    with pytest.raises(RecipeError, match=r"my\.toml: There is no section"):
        Recipe.parse({"x": {}}, where="my.toml")


@given(
    epochs=st.none() | st.floats(0.1, 1e3),
    optimizer=st.sampled_from(["sgd", "adam", "adamw", "rmsprop", "muon"]),
    rate=st.none() | st.floats(1e-9, 1e3, allow_subnormal=False),
    target=st.none() | st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1),
    types=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5), st.just("number")),
    dropout=st.floats(0, 0.9),
    hidden=st.lists(st.integers(1, 99), max_size=3),
    shift=st.integers(0, 9),
    image=st.fixed_dictionaries({}, optional={"image": st.just({"size": 32, "channels": 3})}),
)
def test_parse_reads_what_tables_and_toml_write(
    epochs: Any, optimizer: str, rate: Any, target: Any, types: Any, dropout: float, hidden: Any, shift: int, image: Any
) -> None:
    tree = {
        "data": {"target": target, "types": types, "validation": 0.2, "test": "held out/", **image},
        "network": {"name": "mlp", "hidden": hidden, "dropout": dropout},
        "training": {"epochs": epochs, "optimizer": optimizer, "learning_rate": rate, "algorithm": "supervised"},
        "augment": {"shift": shift},
        "stage": [] if epochs else [{"name": "head", "steps": 3, "rates": {"*": 0.0, "head.*": 1.0}}],
        "supervised": {"loss": {"y": "focal"}},
    }
    recipe = Recipe.parse(tree)
    assert Recipe.parse(recipe.tables()) == recipe
    assert Recipe.parse(tomllib.loads(recipe.toml())) == recipe


def test_an_algorithm_table_is_kept_without_its_name_said_twice() -> None:
    recipe = Recipe.parse({"supervised": {"loss": "focal"}})
    assert Recipe.parse(recipe.tables()).algorithm["loss"] == "focal"


def test_toml_files(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    recipe = Recipe.parse({"training": {"epochs": 3, "learning_rate": 1e-3}})
    path.write_text(recipe.toml(), "utf-8")
    assert Recipe.parse(Recipe.read(path)) == recipe
    path.write_text("[training\n", "utf-8")
    with pytest.raises(FathomError, match=r"not valid TOML: .*line 1"):
        Recipe.read(path)
    with pytest.raises(FathomError, match="cannot be read"):
        Recipe.read(tmp_path / "none.toml")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FathomError, match="cannot be read"):
        Recipe.read(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("training.nesterov=false", False),
        ("training.l2=1e-3", 0.001),
        ("training.epochs=-5", -5),
        ("network.hidden=64,32", [64, 32]),
        ("network.hidden=[64, 32]", [64, 32]),
        ("data.target=a,b", ["a", "b"]),
        ("data.target=-1, b", ["-1", "b"]),
        ('data.target="a, b"', "a, b"),
        ("data.target='1'", "1"),
        ("data.location=/data/a=b.csv", "/data/a=b.csv"),
        ("data.location=C:\\new\\table.csv", "C:\\new\\table.csv"),
        ("data.location=2024-01-31", "2024-01-31"),
        ("data.location=run#2", "run#2"),
        ("data.target=3#2", "3#2"),
        ('network.layers=["conv 32 3 relu", "flatten"]', ["conv 32 3 relu", "flatten"]),
        ("data.target= spaced name ", "spaced name"),
        ("data.target=", ""),
    ],
)
def test_assignments(text: str, value: Any) -> None:
    key, parsed = parse_assignment(text)
    assert key == text.partition("=")[0]
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.text())
def test_an_assignment_is_read_or_refused_but_never_breaks(raw: str) -> None:
    key, _ = parse_assignment(f"data.target={raw}")
    assert key == "data.target"


@pytest.mark.parametrize("text", ["epochs=5", "training.epochs", "=3", "5"])
def test_an_assignment_without_section_or_sign_is_refused(text: str) -> None:
    with pytest.raises(FathomError, match=r"not understood; write section\.key=value"):
        parse_assignment(text)


def test_budgets_replace_each_other_and_nothing_else() -> None:
    tree = {"training": {"epochs": 5, "batch": 8}}
    assert merge(tree, {"training.minutes": 1}) == {"training": {"minutes": 1, "batch": 8}}
    assert merge(tree, {"training.batch": 9}) == {"training": {"epochs": 5, "batch": 9}}
    assert tree == {"training": {"epochs": 5, "batch": 8}}, "the argument is left as it was"


def test_another_network_forgets_the_options_of_the_first() -> None:
    tree = {"network": {"name": "cnn", "channels": [8]}}
    assert merge(tree, {"network.name": "mlp"}) == {"network": {"name": "mlp"}}
    assert merge(tree, {"network.name": "cnn", "network.dropout": 0.5})["network"]["channels"] == [8]


def test_merge_refuses_what_has_no_place() -> None:
    with pytest.raises(FathomError, match=r"'epochs' is not a key of a recipe; write section\.key=value"):
        merge({}, {"epochs": 5})
    with pytest.raises(FathomError, match=r"'training\.epochs' is not a table"):
        merge({"training": {"epochs": 5}}, {"training.epochs.more": 1})
    assert merge({}, {"data.image.size": 32}) == {"data": {"image": {"size": 32}}}


def test_flags() -> None:
    assert flag_changes({"epochs": 5, "lr": None, "network.dropout": 0.5, "out": Path("here")}) == {
        "training.epochs": 5, "network.dropout": 0.5, "training.out": "here",
    }  # fmt: skip
    with pytest.raises(FathomError, match=r"no argument 'epoch'\. Did you mean 'epochs'\?"):
        flag_changes({"epoch": 5})


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(FathomError, match=r"'training\.epochs' is given twice, as 'epochs' and 'training\.epochs'"):
        flag_changes({"epochs": 5, "training.epochs": 6})
    assert flag_changes({"epochs": None, "training.epochs": 6}) == {"training.epochs": 6}


def test_two_budgets_at_once_are_refused() -> None:
    with pytest.raises(FathomError, match="'epochs' and 'minutes' both say how long to train"):
        flag_changes({"epochs": 5, "minutes": 1})


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"data": "iris"}, "data should be a table, but 'iris' came"),
        ({"data": {"fields": 5}}, "data.fields should be a table, but 5 came"),
        ({"data": {"number": 3}}, "data.number should be a table, but 3 came"),
        ({"data": {"fields": {"nmber": {}}}}, "There is no kind of field 'nmber' in data. Did you mean 'number'?"),
        ({"network": {"name": ["mlp", "cnn"]}}, "network.name = ['mlp', 'cnn'] is not allowed: it should be one name"),
        ({"supervised": 3}, "supervised should be a table, but 3 came"),
    ],
)
def test_values_of_another_shape_are_told(tree: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(tree)
    assert words in str(caught.value)


@pytest.mark.parametrize("section", ["data", "network", "training", "augment"])
def test_merge_refuses_a_section_that_is_no_table(section: str) -> None:
    with pytest.raises(RecipeError, match=f"{section} should be a table, but 'iris' came"):
        merge({section: "iris"}, {"training.epochs": 3})


WORDS = st.sampled_from(
    ["data", "network", "training", "augment", "stage", "supervised", "name", "layers", "fields", "number", "shift", "mlp",
     "target", "test", "types", "epochs", "steps", "rates", "algorithm", "limit", "loss", "x"]
)  # fmt: skip
PLAIN = st.one_of(st.integers(-2, 9), st.floats(), st.booleans(), WORDS, st.none())
TREES = st.dictionaries(
    WORDS,
    st.recursive(
        PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=5
    ),
    max_size=4,
)


@given(TREES)
def test_any_tree_is_read_or_refused_but_never_breaks(tree: dict[str, Any]) -> None:
    for read in (Recipe.parse, lambda given: merge(given, {"training.epochs": 3, "network.name": "mlp"})):
        with contextlib.suppress(FathomError):
            read(tree)


def test_paths_of_other_splits_hold_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test.csv").write_text("a\n1\n")
    monkeypatch.chdir(tmp_path)
    data = Recipe.parse({"data": {"test": "test.csv", "validation": "gone.csv"}}).data
    assert data.test == str((tmp_path / "test.csv").resolve())
    assert data.validation == "gone.csv", "what is not there is told by the name that came"
