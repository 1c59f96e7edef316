"""One vector an input: what it is made of, that filling up never changes it, and that what is alike is near."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

import fathom
from fathom.console import print_embedding
from fathom.core.contract import Columns, Model, Predictor, Schema, TensorSet
from fathom.core.errors import DataError, FathomError
from fathom.core.prepare import encode
from fathom.core.registry import algorithms, fields, networks
from fathom.verbs.embed import COMPARED, Embedding, nearest, write_codes
from kit import QUICK, cli, table
from sequences import TEXTS, task

WAYS = {
    "language, transformer": ("language", "transformer", {"width": 16, "heads": 2, "layers": 1}),
    "language, gru": ("language", "gru", {"units": 8, "embedding": 8}),
    "masked, transformer": ("masked", "transformer", {"width": 16, "heads": 2, "layers": 1}),
    "masked, bert": ("masked", "bert", {}),
    "supervised, transformer": ("supervised", "transformer", {"width": 16, "heads": 2, "layers": 1}),
    "supervised, bert": ("supervised", "bert", {}),
    "supervised, lstm": ("supervised", "lstm", {"units": 8, "embedding": 8, "bidirectional": True}),
    "supervised, bag": ("supervised", "bag", {"pairs": 50}),
}


def built(algorithm: str, network: str, settings: dict[str, Any], schema: Schema) -> Predictor:
    torch.manual_seed(0)
    make = algorithms[algorithm].make
    models = {
        r: Model(part, networks[network].build(part, r, **settings)).eval() for r, part in make.roles(schema).items()
    }
    made: Predictor = make.deploy(schema, models)
    return made


def alone() -> tuple[Schema, TensorSet]:
    """A text that is learnt by itself."""
    field = fields["text"].make(["text"], level="character", length=32)
    columns = Columns({"text": TEXTS})
    field.fit([columns])
    schema = Schema({}, {"text": field})
    return schema, encode(schema, columns)[0]


@pytest.mark.parametrize("way", WAYS)
def test_filling_up_never_changes_a_vector(way: str) -> None:
    algorithm, network, settings = WAYS[way]
    schema, rows = task("text") if algorithm == "supervised" else alone()
    score = built(algorithm, network, settings, schema).scores["embed"]
    together = score(rows.batch(torch.arange(6)))
    assert together.ndim == 2
    for i in range(6):
        single = rows.batch(torch.tensor([i]))
        wide = {name: F.pad(value, (0, 5)) if name == "text" else value for name, value in single.items()}
        assert torch.allclose(score(single)[0], together[i], atol=1e-5)
        assert torch.allclose(score(wide)[0], together[i], atol=1e-5)


def test_a_language_model_gives_the_mean_of_what_its_head_reads() -> None:
    schema, rows = alone()
    predictor = built(*WAYS["language, transformer"], schema)
    batch = rows.batch(torch.tensor([0]))
    network: Any = predictor.layers["network"]
    states = network.decoder.read(batch["text"], network.start())[0]
    assert torch.allclose(network.head(states), predictor.forward(batch)["text"], atol=1e-5)
    assert torch.allclose(predictor.scores["embed"](batch), states.mean(1), atol=1e-5)


def test_a_text_longer_than_the_window_is_read_a_window_after_the_other() -> None:
    schema, _ = alone()
    predictor = built(*WAYS["language, gru"], schema)
    network: Any = predictor.layers["network"]
    tokens = torch.randint(6, 12, (1, 32 + 8), generator=torch.Generator().manual_seed(0))
    parts = [network.states(part)[0].sum(1) for part in tokens.split(32, 1)]
    assert torch.allclose(predictor.scores["embed"]({"text": tokens}), (parts[0] + parts[1]) / 40, atol=1e-5)


@pytest.mark.parametrize("way", ["language, transformer", "language, gru"])
def test_a_translation_gives_the_mean_over_its_source(way: str) -> None:
    schema, rows = task("translation")
    predictor = built(*WAYS[way], schema)
    batch = rows.batch(torch.tensor([3]))  # one word
    module: Any = predictor.layers["network"]
    assert torch.allclose(predictor.scores["embed"](batch), module.states(batch["text"])[0][:, 0], atol=1e-5)


def test_a_supervised_network_gives_what_its_head_reads() -> None:
    schema, rows = task("text and table")
    predictor = built("supervised", "transformer", {"width": 16, "heads": 2}, schema)
    batch = rows.batch(torch.arange(4))
    module: Any = predictor.layers["network"]
    codes = predictor.scores["embed"](batch)
    assert codes.shape == (4, 16 + 1)
    assert torch.allclose(module.head(codes), predictor.forward(batch)["class"], atol=1e-5)


def test_the_nearest_pairs_by_hand() -> None:
    vectors = np.array([[1.0, 0], [0, 2], [3, 3], [-1, 0]])
    found = nearest(vectors, 2)
    assert [(i, j) for i, j, _ in found] == [(0, 2), (1, 2)]
    assert found[0][2] == pytest.approx(0.5**0.5)
    assert nearest(vectors[:1]) == []
    assert np.isfinite(nearest(np.zeros((2, 3)))[0][2])


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    made = Embedding(["=1", "b"], np.array([[1.5, 2], [3, -4]], np.float32))
    for name in ("codes.npy", "codes.csv", "codes.parquet"):
        write_codes(made, tmp_path / name)
    assert np.array_equal(np.load(tmp_path / "codes.npy", allow_pickle=False), made.vectors)
    lines = list(csv.reader((tmp_path / "codes.csv").read_text("utf-8").splitlines()))
    assert lines == [["input", "d0", "d1"], ["'=1", "1.5", "2.0"], ["b", "3.0", "-4.0"]]
    assert pq.read_table(tmp_path / "codes.parquet").to_pylist()[1] == {"input": "b", "d0": 3.0, "d1": -4.0}
    with pytest.raises(DataError, match=r"Vectors cannot be written as '\.xlsx'; use \.npy, \.csv or \.parquet\."):
        write_codes(made, tmp_path / "codes.xlsx")


# ---------------------------------------------------------------- through the verbs

FOOD, SEA = ("bread", "soup", "cake", "rice"), ("ship", "wave", "sail", "port")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a masked run on texts about two things, and one on a table of numbers."""
    folder = tmp_path_factory.mktemp("embedded")
    lines = [
        f"we {v} {a} and {b} at {n}" for n in range(10) for k, v in ((FOOD, "eat"), (SEA, "see")) for a in k for b in k
    ]
    (folder / "texts.csv").write_text("text\n" + "\n".join(lines) + "\n", "utf-8")
    table(folder / "numbers.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FATHOM_CACHE", str(folder / "cache"))
        for words in (
            ("texts.csv", "--algorithm", "masked", "--target", "text", "--network", "transformer", "--name", "gaps",
             "--steps", "80", "--lr", "0.01", "network.width=16", "network.heads=2", "network.layers=1", "data.text.level=word"),
            ("numbers.csv", "--network", "mlp", "--name", "numbers", "--steps", "3"),
        ):  # fmt: skip
            said = cli("fit", *words, *QUICK)
            assert said.code == 0, said.err
    return folder


@pytest.fixture(autouse=True)
def _there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "work" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("work"))


def test_nearly_the_same_text_is_nearer_than_another(work: Path) -> None:
    codes = fathom.load("gaps").embed(
        "we eat bread and soup at 3", "we eat bread and cake at 3", "we see ship and sail at 3"
    )
    assert codes.dtype == np.float32
    assert codes.shape == (3, 16)
    (first, second, _) = nearest(codes, 1)[0]
    assert (first, second) == (0, 1)
    assert np.allclose(codes[:1], fathom.embed("gaps", "we eat bread and soup at 3"), atol=1e-5)


def test_the_command_line_shows_the_nearest(work: Path) -> None:
    said = cli("embed", "gaps", "we eat bread", "we eat cake", "we see ship")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0] == "3 vectors of 16 numbers"
    assert lines[4].split()[1:] == ["we", "eat", "bread", "we", "eat", "cake"]
    alone = cli("embed", "gaps", "we eat bread")
    assert alone.out == "1 vector of 16 numbers\n"


def test_pairs_of_very_many_are_not_searched_and_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_embedding({"names": [], "shape": (COMPARED + 1, 4), "nearest": nearest(np.ones((COMPARED + 1, 4)))})
    assert capsys.readouterr().out.splitlines() == [
        "2,001 vectors of 4 numbers",
        "Among so many the nearest pairs are not searched.",
    ]


def test_json_and_files(work: Path) -> None:
    told = json.loads(cli("embed", "gaps", "we eat bread", "--json").out)
    assert told[0]["input"] == "we eat bread"
    said = cli("embed", "gaps", "texts.csv", "-o", "codes.npy")
    assert said.err == "320 vectors written to codes.npy\n"
    assert np.load("codes.npy").shape == (320, 16)
    assert np.allclose(told[0]["vector"], fathom.embed("gaps", "we eat bread")[0], atol=1e-6)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("numbers", "numbers.csv"),
            "runs/numbers makes no vectors: its network (mlp) cannot be read before its last layer.",
        ),
        (("gaps", "numbers.csv"), "numbers.csv"),
        (("gaps", " "), "An empty text came, which says nothing."),
        (
            ("gaps", "texts.csv", "-o", "codes.json"),
            "Vectors cannot be written as '.json'; use .npy, .csv or .parquet.",
        ),
        (("gaps", "texts.csv", "-o", "texts.csv"), "texts.csv is one of the inputs and would be overwritten"),
    ],
)
def test_what_cannot_be_done_is_said(work: Path, words: tuple[str, ...], told: str) -> None:
    said = cli("embed", *words)
    assert said.code == 2
    assert told in said.err


def test_nothing_to_embed(work: Path) -> None:
    with pytest.raises(FathomError, match="embed needs something to turn into vectors"):
        fathom.embed("gaps")
