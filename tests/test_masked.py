"""Masked-token pretraining: what is hidden, what is learnt from it, how it is judged, and what a later run takes over."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import fathom
from fathom.algorithms.masked import asked, guesses
from fathom.analysis.language import written
from fathom.core.contract import ROW, Clock, Columns, Context, Field, Model, Schema, Stage, TensorSet
from fathom.core.errors import FathomError
from fathom.core.prepare import encode
from fathom.core.recipe import Recipe
from fathom.core.registry import algorithms, fields, networks
from fathom.fields.masking import drawn, fixed, hide, plain
from fathom.fields.text import END, PAD, SPECIAL, START
from fathom.fields.text_metrics import language
from kit import QUICK, cli
from sequences import KINDS, TEXTS, task

SMALL = {"transformer": {"width": 16, "heads": 2, "layers": 1}, "bert": {}}
V = 40
ROWS = st.lists(st.lists(st.integers(1, V - 1), min_size=1, max_size=30), min_size=1, max_size=6)


def padded(rows: list[list[int]]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def text_task(texts: list[str] = TEXTS, **options: Any) -> tuple[Schema, TensorSet]:
    """A text that is learnt by itself: its fitted schema and its rows."""
    field = fields["text"].make(["text"], **{"level": "word", "length": 32, **options})
    columns = Columns({"text": texts})
    field.fit([columns])
    schema = Schema({}, {"text": field})
    rows, faults = encode(schema, columns)
    assert not faults
    return schema, rows


def model_of(schema: Schema, network: str = "transformer", seed: int = 0) -> Model:
    torch.manual_seed(seed)
    part = algorithms["masked"].make.roles(schema)["model"]
    return Model(part, networks[network].build(part, "model", **SMALL[network])).eval()


def made(schema: Schema, share: float = 0.15, **training: Any) -> Any:
    recipe = Recipe.parse({"training": {"batch": 4, "steps": 5, "learning_rate": 0.01, "seed": 7, **training}})
    context = Context(schema, {"model": model_of(schema)}, recipe, Clock(), torch.device("cpu"))
    return algorithms["masked"].make(context, share=share)


# ---------------------------------------------------------------- what is hidden


@given(ROWS, st.integers(0, 100), st.floats(0.05, 0.9))
def test_a_share_of_each_row_is_to_be_guessed_and_special_tokens_never(
    rows: list[list[int]], step: int, share: float
) -> None:
    tokens = padded(rows)
    given_, wanted = hide(tokens, drawn(tokens.shape, 0, step), V, share)
    able = tokens >= len(SPECIAL)
    count = (wanted != PAD).sum(1)
    assert count.tolist() == [min(n, max(1, round(float(torch.tensor(n) * share)))) for n in able.sum(1).tolist()]
    assert torch.equal(wanted[wanted != PAD], tokens[wanted != PAD])
    assert bool(able[wanted != PAD].all())
    assert torch.equal(given_[wanted == PAD], tokens[wanted == PAD])
    assert bool((given_[wanted != PAD] >= len(SPECIAL)).all())
    assert int(given_.max()) <= V  # the number of a hidden token is one past the vocabulary


def test_eight_of_ten_are_hidden_one_is_changed_one_stays() -> None:
    tokens = torch.full((400, 100), 7)
    given_, wanted = hide(tokens, drawn(tokens.shape, 0, 0), 1_000, 0.15)
    chosen = given_[wanted != PAD]
    assert len(chosen) == 400 * 15
    hidden, same = float((chosen == 1_000).float().mean()), float((chosen == 7).float().mean())
    assert hidden == pytest.approx(0.8, abs=0.02)
    assert same == pytest.approx(0.1, abs=0.015)
    others = chosen[(chosen != 7) & (chosen != 1_000)]
    assert len(others.unique()) > 300
    assert int(others.min()) >= len(SPECIAL)


def test_training_hides_others_at_every_step_and_the_same_at_the_same_step() -> None:
    shape = torch.Size([4, 20])
    assert torch.equal(drawn(shape, 1, 3), drawn(shape, 1, 3))
    assert not torch.equal(drawn(shape, 1, 3), drawn(shape, 1, 4))
    assert not torch.equal(drawn(shape, 1, 3), drawn(shape, 2, 3))


@given(st.lists(st.integers(6, V - 1), min_size=1, max_size=12), st.integers(0, 1_000), st.integers(0, 9))
def test_measuring_hides_the_same_whatever_stands_beside_a_row(row: list[int], number: int, more: int) -> None:
    alone, numbers = torch.tensor([row]), torch.tensor([number])
    wide = F.pad(alone, (0, more)).expand(3, -1)
    beside = torch.tensor([number + 1, number, 5])
    one = hide(alone, fixed(numbers, len(row)), V)
    other = hide(wide, fixed(beside, len(row) + more), V)
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine[0], theirs[1, : len(row)])


def test_rows_lose_their_frame() -> None:
    tokens = torch.tensor([[START, 9, 8, 7, END], [START, 6, END, PAD, PAD]])
    assert plain(tokens, continuous=False).tolist() == [[9, 8, 7], [6, PAD, PAD]]
    assert plain(tokens, continuous=True) is tokens


def test_batches_go_on_where_they_stopped() -> None:
    for options in ({}, {"level": "character", "continuous": True, "length": 8}):
        schema, rows = text_task(["the cat sat on the mat. " * 2] * 12, **options)
        stage = Stage("train", 6, rows)
        whole = list(islice(made(schema).batches(stage, 0), 6))
        later = list(islice(made(schema).batches(stage, 4), 2))
        for one, other in zip(whole[4:], later, strict=True):
            assert one.keys() == other.keys() == {"text", "text (masked)"}
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_long_text_is_cut_anywhere_and_an_epoch_is_all_its_tokens() -> None:
    schema, rows = text_task(["abcdefgh" * 10] * 5, level="character", continuous=True, length=16)
    batch = next(made(schema).batches(Stage("train", 1, rows), 0))
    assert batch["text"].shape == (4, 16)
    assert made(schema).epoch(schema, rows, made(schema).context.recipe.training) == 400 // (4 * 16)


# ---------------------------------------------------------------- the networks


@pytest.mark.parametrize("name", SMALL)
def test_every_token_is_seen_from_both_sides(name: str) -> None:
    schema, _ = text_task()
    model = model_of(schema, name)
    tokens = torch.tensor([[6, 7, 8, 9]])
    logits = model(tokens)
    assert logits.shape == (1, 4, schema.targets["text"].size)  # type: ignore[attr-defined]
    for place, seen in ((0, 3), (3, 0)):
        other = tokens.clone()
        other[0, place] = 10
        assert not torch.allclose(model(other)[0, seen], logits[0, seen], atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_filling_up_changes_no_guess(name: str) -> None:
    schema, _ = text_task()
    model, size = model_of(schema, name), schema.targets["text"].size  # type: ignore[attr-defined]
    tokens = torch.tensor([[6, size, 8]])
    assert torch.allclose(model(F.pad(tokens, (0, 4)))[:, :3], model(tokens), atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_a_supervised_run_has_the_parameters_of_the_encoder_under_the_same_names(name: str) -> None:
    """What `--from` copies: all but the last layers, and what stands for hidden tokens."""
    schema, _ = text_task()
    labelled = Schema({"text": schema.targets["text"]}, {"class": task("text")[0].targets["class"]})
    reads = Model(labelled, networks[name].build(labelled, "model", **SMALL[name]))
    mine = {key: value.shape for key, value in model_of(schema, name).state_dict().items()}
    theirs = {key: value.shape for key, value in reads.state_dict().items()}
    shared = {key for key in mine if theirs.get(key) == mine[key]}
    alone = {"module.hidden", *(key for key in mine if key.startswith("module.guess."))}
    assert set(mine) - shared == alone
    new = {"transformer": ("module.head.",), "bert": ("module.head.", "module.pooler.")}[name]
    assert all(key.startswith(new) for key in set(theirs) - shared)
    assert any("embed" in key for key in shared)


def test_places_are_gathered_before_the_last_layer_with_equal_results() -> None:
    schema, rows = text_task()
    model, batch = model_of(schema), rows.batch(torch.arange(6))
    tokens = plain(batch["text"], False)
    size = schema.targets["text"].size  # type: ignore[attr-defined]
    given_, wanted = hide(tokens, fixed(batch[ROW], tokens.shape[1]), size, 0.4)
    logits, there = guesses(model, given_, wanted, int((wanted != PAD).sum(1).max()))
    whole = model(given_)
    assert torch.allclose(logits[there != PAD], whole[wanted != PAD], atol=1e-5)
    assert torch.equal(there[there != PAD], wanted[wanted != PAD])


def test_a_module_of_ones_own_needs_logits_alone() -> None:
    schema, rows = text_task()
    size = schema.targets["text"].size  # type: ignore[attr-defined]
    own = torch.nn.Sequential(torch.nn.Embedding(size + 1, 8), torch.nn.Linear(8, size))
    model = Model(asked(schema), own)
    predictor = algorithms["masked"].make.deploy(schema, {"model": model})
    assert predictor.scores["masked"](rows.batch(torch.arange(6))).shape == (6, 4)
    assert "embed" not in predictor.scores


@pytest.mark.parametrize("name", ["gru", "gpt", "bag", "pretrained"])
def test_other_networks_say_that_they_cannot(name: str) -> None:
    schema, _ = text_task()
    with pytest.raises(FathomError) as caught:
        networks[name].build(asked(schema), "model")
    if name != "pretrained":
        assert "'text' (text) should tell 'text (masked)' (text). What fits: transformer, bert" in str(caught.value)


# ---------------------------------------------------------------- loss and measures


def test_the_loss_is_the_mean_over_hidden_tokens() -> None:
    schema, rows = text_task()
    algorithm = made(schema, share=0.5)
    batch = next(algorithm.batches(Stage("train", 1, rows), 0))
    logits = algorithm.model.eval()({"text": batch["text"]})["text (masked)"]
    wanted = batch["text (masked)"]
    expected = F.cross_entropy(logits[wanted != PAD], wanted[wanted != PAD])
    assert float(algorithm.step(batch)["loss"]) == pytest.approx(expected.item(), rel=1e-5)


def test_what_is_validated_depends_on_no_batch_and_no_step() -> None:
    schema, rows = text_task()
    algorithm = made(schema)
    predictor = algorithm.predictor()
    together = predictor.scores["masked"](rows.batch(torch.arange(6)))
    single = torch.cat([predictor.scores["masked"](rows.batch(torch.tensor([i]))) for i in range(6)])
    assert torch.allclose(together, single, atol=1e-5)
    assert algorithm.validate(rows) == algorithm.validate(rows)
    nats, tokens, _, right = together.sum(0).tolist()
    told = algorithm.validate(rows)
    assert told["loss"] == pytest.approx(nats / tokens)
    assert told["perplexity"] == pytest.approx(math.exp(nats / tokens))
    assert told["masked_accuracy"] == pytest.approx(right / tokens)


def test_metrics_of_hidden_tokens_by_hand() -> None:
    rows = torch.tensor([[2.0, 2, 0, 1], [6.0, 4, 0, 1]])
    found = {name: float(value) for name, value in language(rows).items()}
    assert found == pytest.approx({"masked_accuracy": 2 / 6, "perplexity": math.exp(8 / 6)})
    weighted = language(rows, torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    assert weighted["masked_accuracy"].tolist() == pytest.approx([0.5, 0.25])


def test_the_baseline_knows_how_often_each_token_comes() -> None:
    """Witten and Bell 1991 without a context: P(w) = (count(w) + kinds / V) / (tokens + kinds)."""
    schema, rows = text_task()
    predictor = made(schema).predictor()
    told = written(predictor, {}, {"train": rows, "test": rows})
    field: Any = schema.targets["text"]
    count = Counter(token for text in TEXTS for token in field.codec.encode([text])[0].tolist())
    total, kinds = count.total(), len(count)
    batch = rows.batch(torch.arange(len(TEXTS)))
    tokens = plain(batch["text"], False)
    wanted = hide(tokens, fixed(batch[ROW], tokens.shape[1]), field.size)[1]
    nats = [
        -sum(math.log((count[token] + kinds / field.size) / (total + kinds)) for token in row if token != PAD)
        for row in wanted.tolist()
    ]
    found = told.baselines["unigram frequencies"]["text"]
    assert found[:, 0].tolist() == pytest.approx(nats, rel=1e-6)
    assert torch.equal(found[:, 1], (wanted != PAD).sum(1).double())
    commonest = min(token for token in count if count[token] == max(count.values()))
    assert torch.equal(found[:, 3], (wanted == commonest).sum(1).double())
    assert torch.equal(found[:, 1], told.outputs["text"][:, 1])


# ---------------------------------------------------------------- through the verbs

ANIMALS = ("cat", "dog", "owl", "fox")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts that tell each word twice, and a run on them."""
    folder = tmp_path_factory.mktemp("masked")
    lines = [
        f"the {a} sees one {b} , says {a} to {b} number {n} .\tx" for n in range(8) for a in ANIMALS for b in ANIMALS
    ]
    (folder / "texts.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n", "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FATHOM_CACHE", str(folder / "cache"))
        said = cli(
            "fit", "texts.tsv", "--target", "text", "--algorithm", "masked", "--network", "transformer", "--name", "gaps",
            "--steps", "120", "--lr", "0.01", "--batch", "16", "network.width=32", "network.heads=2", "network.layers=2",
            "data.text.level=word", *QUICK,
        )  # fmt: skip
        assert said.code == 0, said.err
        (folder / "said").write_text(said.out, "utf-8")
    return folder


@pytest.fixture
def _there(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)


@pytest.mark.usefixtures("_there")
def test_gaps_are_filled_better_than_by_the_commonest_word() -> None:
    run = fathom.load("gaps")
    test, baseline = run.metrics["test"], run.metrics["baseline"]["unigram frequencies"]
    assert run.results["better"] == "better"
    assert float(test["masked_accuracy"]) > float(baseline["masked_accuracy"]) + 0.3
    assert float(test["perplexity"]) < float(baseline["perplexity"]) / 2
    assert run.results["task"] == "masked language model"
    assert "sample" not in run.results
    assert "memory" not in run.results, "a gap is guessed from both sides: there is no end to count from"
    assert {"validation/loss", "validation/masked_accuracy", "validation/perplexity"} <= run.history[-1].keys()


@pytest.mark.usefixtures("_there")
def test_the_table_gave_its_texts_alone() -> None:
    run = fathom.load("gaps")
    assert not run.schema.inputs
    assert list(run.schema.targets) == ["text"]
    assert run.recipe.data.input == []


@pytest.mark.usefixtures("_there")
def test_a_run_is_judged_again_with_equal_figures() -> None:
    again = fathom.load("gaps").evaluate()
    assert again["test"] == fathom.load("gaps").results["test"]
    other = fathom.load("gaps").evaluate("texts.tsv")
    assert other["rows"] == 128
    assert "unigram frequencies" in other["baseline"]


@pytest.mark.usefixtures("_there")
def test_the_report_shows_gaps_and_what_is_put_there() -> None:
    page = Path("runs/gaps/report.html").read_text("utf-8")
    assert "[...]" in page
    assert "Masked accuracy" in page or "masked accuracy" in page
    first = fathom.load("gaps").results["targets"]["text"]["examples"][0]
    assert first["source"].count("[...]") == len(first["reference"].split(", ")) == len(first["answer"].split(", "))


@pytest.mark.usefixtures("_there")
def test_what_to_type_next() -> None:
    said = Path("said").read_text("utf-8")
    assert 'Next      fathom embed runs/gaps "a text" "another text"' in said
    assert "Next      fathom fit DATA --from runs/gaps" in said


@pytest.mark.usefixtures("_there")
def test_what_was_learnt_from_gaps_is_taken_over_by_a_classifier() -> None:
    """First the head alone on the weights as they came, then all of it; the vocabulary comes along."""
    header, *lines = Path("texts.tsv").read_text("utf-8").splitlines()
    named = [line.replace("\tx", f"\t{line.split()[1]}") for line in lines]
    Path("named.tsv").write_text("\n".join([header, *named]) + "\n", "utf-8")
    given = {"target": "label", "from_": "gaps", "batch": 16, "training.threads": 1}
    run = fathom.fit("named.tsv", steps=150, lr=0.01, out="later", **given)
    assert "Taken over: 27 of 29 tensors from gaps; new: head.weight, head.bias." in run.results["notes"]
    text = "the fox sees one owl"
    before, after = fathom.load("gaps").schema.targets["text"], run.schema.inputs["text"]
    assert after.codec.encode([text])[0].tolist() == before.codec.encode([text])[0].tolist()  # type: ignore[attr-defined]
    assert [stage.name for stage in run.recipe.stage] == ["head", "all"]
    assert float(run.metrics["test"]["accuracy"]) > 0.9


@pytest.mark.usefixtures("_there")
@pytest.mark.parametrize("words", [("generate", "gaps"), ("chat", "gaps", "--say", "hello")])
def test_it_does_not_write_on(words: tuple[str, ...]) -> None:
    said = cli(*words)
    assert said.code == 2
    assert "fills gaps in 'text' and cannot write on" in said.last
    assert 'fathom embed runs/gaps "a text"' in said.last


@pytest.mark.usefixtures("_there")
def test_it_answers_no_rows() -> None:
    said = cli("predict", "gaps", "the cat")
    assert said.code == 2
    assert said.last.endswith('it makes vectors of texts. Its verb is: fathom embed runs/gaps "TEXT"\n')


@pytest.mark.usefixtures("_there")
def test_a_class_is_not_learnt_from_gaps() -> None:
    said = cli("fit", "texts.tsv", "--algorithm", "masked", "data.types.label=category", "--target", "label", *QUICK)
    assert said.code == 2
    assert said.last.startswith("fathom: ")


@pytest.mark.usefixtures("_there")
def test_what_is_best_is_decided_by_what_is_watched() -> None:
    words = ("fit", "texts.tsv", "--target", "text", "--algorithm", "masked", "--limit", "60", "--steps", "1", *QUICK)
    said = cli(*words, "training.monitor=masked_accuracy", "network.width=16", "network.heads=2", "--network", "transformer")
    assert said.code == 0, said.err
    assert "by validation masked_accuracy" in said.out
    said = cli(*words, "training.monitor=accuracy")
    assert said.last == (
        "fathom: There is no metric 'accuracy' in training.monitor. Did you mean 'masked_accuracy'? Known: loss, "
        "masked_accuracy, perplexity.\n"
    )


def test_what_else_is_to_be_learnt_is_named() -> None:
    schema = task("text")[0]
    with pytest.raises(FathomError) as caught:
        asked(schema)
    assert str(caught.value) == (
        "Algorithm masked learns one text from itself; here 'text' (text) should tell 'class' (category). Name the column of "
        "texts alone: --algorithm masked --target COLUMN, or give a .txt file."
    )


def test_it_is_chosen_only_by_name() -> None:
    for kind in KINDS:
        assert not algorithms["masked"].about["suits"](task(kind)[0])


def test_a_book_is_read_in_windows(tmp_path: Path) -> None:
    Path("book.txt").write_text(
        "".join(f"the cat sat on mat {i} and the dog ran {7 * i}.\n" for i in range(60)), "utf-8"
    )
    run = fathom.fit(
        "book.txt",
        algorithm="masked",
        network="bert",
        steps=4,
        batch=4,
        **{"data.text.length": 24, "training.threads": 1},
    )
    assert set(run.metrics["test"]) == {"masked_accuracy", "perplexity"}
    field: Field = run.schema.targets["text"]
    assert field.continuous  # type: ignore[attr-defined]
