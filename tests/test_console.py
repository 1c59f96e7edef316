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


LONG = "/data/ants-bees/val/ants/ants-devouring-remains-of-large-dead-insect-on-red-tile-in-Stellenbosch-South-Africa-DHD.jpg"


def test_a_long_path_leaves_the_answer_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_answers([{"input": LONG, "answer": "ants", "confidence": 0.7123, "probabilities": {"ants": 0.7123}}])
    shown = capsys.readouterr().out
    assert "answer   confidence" in shown
    assert "ants        0.712" in shown
    assert "..." in shown
    assert "Stellenbosch-South-Africa-DHD.jpg" in shown  # the end tells one file from another


def test_a_long_path_leaves_boxes_their_corners(capsys: pytest.CaptureFixture[str]) -> None:
    box = {"label": "platelets", "confidence": 0.9, "box": [10.2, 20.0, 1300.0, 1400.6]}
    console.print_answers([{"input": LONG, "answer": [box], "size": [2000, 1500]}])
    shown = capsys.readouterr().out
    for word in ("label", "x1 y1 x2 y2", "platelets", "0.900", "10 20 1300 1401", "South-Africa-DHD.jpg"):
        assert word in shown


def test_a_long_answer_stands_in_several_lines_and_a_short_name_stays(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(f"word{i}" for i in range(60))
    console.print_answers([{"input": "row 1", "answer": text, "confidence": 0.5}])
    shown = capsys.readouterr().out
    assert all(f"word{i}" in shown for i in range(60))
    assert "row 1" in shown
    assert "0.500" in shown


def test_very_many_answers_a_row_lose_no_character_of_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_answers([{"input": "row 1", **{f"target{i}.answer": "abcdefgh" for i in range(20)}}])
    shown = capsys.readouterr().out
    assert shown.replace(" ", "").replace("\n", "").count("a") >= 20 * 2  # of the heads and of the cells


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
