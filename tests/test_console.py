"""What people are shown: nothing of theirs is markup, and small numbers keep their digits."""

from __future__ import annotations

import pytest

from fathom import console

ODD = "photo[a].png [/b] [bold]x[/bold] :smile:"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0004, "0.0004"),
        (-0.01234567, "-0.01235"),
        (0.0, "0"),
        (0.1234, "0.123"),
        (9.8765, "9.877"),
        (12.34, "12.3"),
        (12345.6, "12,346"),
    ],
)
def test_numbers_keep_their_digits(value: float, text: str) -> None:
    assert console.number(value) == text


def test_answers_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_answers([{"input": ODD, "answer": "[/b]", "confidence": 0.0004}])
    shown = capsys.readouterr().out
    assert ODD in shown
    assert "[/b]" in shown
    assert "0.0004" in shown


def test_names_of_runs_and_columns_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_runs([{"name": "run[a]", "state": "stopped [/b]"}], "runs")
    console.print_comparison(
        {
            "runs": ["one[a]", "[/b]"],
            "metrics": {},
            "seconds": [1.0, 2.0],
            "parameters": [1, 2],
            "recipe": {"[/k]": ["[a]", None]},
        }
    )
    shown = capsys.readouterr().out
    for word in ("run[a]", "stopped [/b]", "one[a]", "[/k]", "[a]"):
        assert word in shown


def test_notes_and_plans_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    results = {"test": {}, "primary": "accuracy", "verdict": f"better than {ODD}", "evaluation_notes": ["[/b] is gone"]}
    console.print_results(results)
    plan = {
        "lines": [f"Note      {ODD}"], "rivals": [], "layers": [], "parameters": 1, "seconds": 1.0, "steps": 1200,
        "threads": 1, "memory": 2**20,
    }  # fmt: skip
    console.print_plan(plan)
    shown = capsys.readouterr().out
    assert shown.count(ODD) == 2
    assert "Note: [/b] is gone" in shown
    assert "for 1,200 steps" in shown


def test_a_listing_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    entry = {
        "name": "net[a]", "year": 1999, "summary": "[/b] first", "pros": "[x]", "cons": "", "paper": "",
        "hyperparameters": [{"name": "sizes", "default": ["[/b]"], "help": "[y]"}],
    }  # fmt: skip
    console.print_listing([entry])
    shown = capsys.readouterr().out
    assert shown.startswith("net[a] (1999)  [/b] first\n")
    assert "+ [x]" in shown
    assert 'sizes=["[/b]"]  [y]' in shown
