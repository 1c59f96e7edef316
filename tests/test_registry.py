"""The registry: names, knobs, nearest names, and import errors that are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from fathom.core.errors import FathomError, nearest, unknown
from fathom.core.registry import REGISTRIES, Registry, hyperparameter


def package(folder: Path, name: str, body: str, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("")
    (folder / name / "part.py").write_text(body)
    monkeypatch.syspath_prepend(str(folder))
    return name


def test_an_import_error_is_raised_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = package(tmp_path, "broken_parts", "import a_module_that_is_not_there", monkeypatch)
    things = Registry("thing", name)
    for _ in range(2):  # the second time too: a half-loaded registry would hide the cause
        with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
            things["anything"]


def test_a_module_of_the_folder_registers_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "import test_registry_things as t\n@t.things.register('one', pros='small')\ndef one(): 'First line.'\n"
    name = package(tmp_path, "good_parts", body, monkeypatch)
    (tmp_path / "test_registry_things.py").write_text(
        f"from fathom.core.registry import Registry\nthings = Registry('thing', '{name}')\n"
    )
    import test_registry_things

    entry = test_registry_things.things["one"]
    assert (entry.summary, entry.about) == ("First line.", {"pros": "small"})
    assert test_registry_things.things.names() == ["one"]


def test_a_name_is_taken_once() -> None:
    things = Registry("thing", "fathom.networks")

    @things.register("one")
    def one() -> None: ...

    with pytest.raises(FathomError, match="thing 'one' is registered twice"):
        things.register("one")(lambda: None)


def test_knobs_come_from_signature_and_class_body() -> None:
    things = Registry("thing", "fathom.networks")
    things._loaded = True  # its own entries only

    @things.register("function")
    def function(first: int, *, units: int = hyperparameter(8, search=[8, 16], help="how many")) -> int:
        return first + units

    class Parent:
        rate: float = hyperparameter(0.5)

    @things.register("class")
    class Child(Parent):
        depth: int = hyperparameter(2)

    assert things["function"].build(1, units=2) == 3
    assert things["function"].build(1) == 9
    assert things["function"].hyperparameters["units"].search == [8, 16]
    assert set(things["class"].hyperparameters) == {"rate", "depth"}
    with pytest.raises(FathomError, match=r"no key 'function.unit'. Did you mean 'function.units'"):
        things["function"].build(1, unit=2)
    with pytest.raises(FathomError, match=r"function.units = 'many' is not allowed: it should be a whole number"):
        things["function"].build(1, units="many")
    with pytest.raises(
        FathomError, match=r"There is no thing 'functoin'. Did you mean 'function'\? Known: class, function"
    ):
        things["functoin"]


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_entry_says_what_it_is_and_its_defaults_are_legal(kind: str) -> None:
    assert REGISTRIES[kind].names()
    for entry in REGISTRIES[kind]:
        assert entry.summary.endswith("."), f"{kind}: {entry.name} needs a first line of docstring"
        options, faults = entry.options({}, entry.name)
        assert faults == []
        assert {name: knob.default for name, knob in entry.hyperparameters.items()} == options
        for name, knob in entry.hyperparameters.items():
            assert knob.help, f"{kind}: {entry.name}.{name} needs a line of help"
            assert not knob.help.endswith("."), f"{kind}: {entry.name}.{name}: help has no full stop"
            for value in knob.search if isinstance(knob.search, list) else (knob.search or ())[:2]:
                assert entry.options({name: value}, entry.name)[1] == [], f"{entry.name}.{name}={value} is searched"


def test_networks_state_their_reasons() -> None:
    for entry in REGISTRIES["networks"]:
        assert {"reason", "pros", "cons", "paper", "suits"} <= set(entry.about), entry.name


def test_nearest_names() -> None:
    assert nearest("ResNt", ["cnn", "resnet"]) == "resnet"
    assert nearest("zzzz", ["cnn", "resnet"]) is None
    many = [f"name{i:02d}" for i in range(20)]
    assert unknown("thing", "qqq", many).endswith("name11 and 8 more.")
