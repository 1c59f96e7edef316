"""How far back networks look, measured; and how to make recurrent ones look farther.

Oracles: a recurrence whose gradient is a power by hand, and the same gradient taken without hooks.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sequences
from fathom.algorithms.language import Language
from fathom.algorithms.supervised import Supervised
from fathom.analysis import memory
from fathom.analysis.charts import FAINT, memory_chart
from fathom.analysis.memory import gradient_curve, judgment
from fathom.analysis.report import memory_view
from fathom.core.contract import Model, Predictor, Schema, TensorSet
from fathom.core.device import random_state
from fathom.core.errors import FathomError
from fathom.core.registry import networks
from fathom.fields.series import SAMPLED, Summary
from fathom.networks.recurrent import cells
from kit import cli
from test_sequence_networks import SMALL, adding, algorithm_of, learn

KEPT = 0.5  # of the state, from one step to the next


class Fading(nn.Module):
    """h = KEPT h + w x, read at the end: the gradient is KEPT to the power of the distance."""

    def __init__(self, outputs: int, table: int = 0) -> None:
        super().__init__()
        self.embed = nn.Embedding(table, 1) if table else None
        self.head = nn.Linear(1, outputs)

    def forward(self, steps: Tensor) -> Tensor:
        exists = (steps != 0) if self.embed else steps[..., -1] > 0  # (B, T)
        values = self.embed(steps)[..., 0] if self.embed else steps[..., 0]
        state = values.new_zeros(len(values))
        for t in range(values.shape[1]):
            state = torch.where(exists[:, t], KEPT * state + values[:, t], state)
        return self.head(state[:, None])


def deployed(kind: str, module: nn.Module) -> tuple[Predictor, TensorSet]:
    """A predictor around a network for one of the small tasks, and its rows."""
    schema, rows = sequences.task(kind)
    model = Model(sequences.role(schema), module)
    algorithm = Language if any(item.kind == "text" for item in schema.targets.values()) else Supervised
    return algorithm.deploy(schema, {"model": model}), rows


def registered(name: str, kind: str) -> tuple[Predictor, TensorSet]:
    schema, _ = sequences.task(kind)
    torch.manual_seed(0)
    return deployed(kind, networks[name].build(sequences.role(schema), "model", **SMALL.get(name, {})))


# ---------------------------------------------------------------- the curve


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("kind", ["series", "text"])
def test_the_curve_of_a_recurrence_is_a_power(kind: str, pad: str) -> None:
    schema, rows = sequences.task(kind)
    size = schema.inputs["text"].size if kind == "text" else 0  # type: ignore[attr-defined]
    if kind == "text":
        schema.inputs["text"].pad = pad
    predictor, _ = deployed(kind, Fading(3, size))
    found = gradient_curve(predictor, rows)
    assert [place for place, _ in found] == list(range(len(found)))
    assert len(found) >= 3
    # Rows of unequal length join the mean where they are as long, so that the curve is a power for each row alone.
    for row in range(len(rows)):
        alone = gradient_curve(predictor, rows.subset(torch.tensor([row])))
        assert all(share == pytest.approx(KEPT**place, rel=1e-3) for place, share in alone)


def test_a_distance_counts_where_a_quarter_of_the_rows_is_as_long() -> None:
    norms = torch.tensor([[9.0, 1, 2]] + [[0, 1, 2]] * 4)
    exists = torch.tensor([[True, True, True]] + [[False, True, True]] * 4)
    assert memory._by_distance(norms, exists) == [[0, 1.0], [1, 0.5]]
    assert memory._by_distance(norms[:4], exists[:4]) == [[0, 0.2222], [1, 0.1111], [2, 1.0]]
    assert memory._by_distance(norms[:, :1], exists[:, :1]) == [], "one step is no curve"
    assert memory._by_distance(0 * norms, exists) == []
    assert memory._by_distance(norms, exists & False) == []


def test_the_last_token_of_a_language_model_without_hooks() -> None:
    predictor, rows = registered("lstm", "language")
    found = gradient_curve(predictor, rows)
    network = predictor.layers["network"].eval()
    stream = torch.cat([rows.batch(torch.tensor([i]))["answer"][0] for i in range(len(rows))]).long()
    vectors = network.embed(stream[None, :-1]).detach().requires_grad_()
    logits = network.head(network.cell(vectors)[0])[:, -1]
    loss = nn.functional.cross_entropy(logits, stream[-1:])
    norms = torch.autograd.grad(loss, vectors)[0][0].norm(dim=1).flip(0)
    assert [share for _, share in found] == pytest.approx((norms / norms.max()).tolist(), rel=2e-3, abs=1e-7)


@pytest.mark.parametrize("kind", sequences.KINDS)
def test_every_network_has_a_curve_or_a_reason(kind: str) -> None:
    schema, _ = sequences.task(kind)
    whole = sequences.role(schema)
    fitting = [entry.name for entry in networks if entry.about["suits"](whole, 6) > 0 and "settings" not in entry.about]
    for name in fitting:
        found = gradient_curve(*registered(name, kind))
        if name in ("bag", "rocket"):  # sums of a table's rows, thresholds
            assert found == [], name
            continue
        places, shares = zip(*found, strict=True)
        assert places == tuple(range(len(places))), name
        assert max(shares) == 1.0, name
        assert min(shares) >= 0.0, name


def test_measuring_leaves_no_trace() -> None:
    class Noisy(Fading):
        def forward(self, steps: Tensor) -> Tensor:
            return super().forward(steps) + 0 * torch.rand(())

    predictor, rows = deployed("series", Noisy(3))
    torch.manual_seed(5)
    before = random_state()
    gradient_curve(predictor, rows)
    after = random_state()
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["numpy"], after["numpy"])
    assert (before["python"], before["numpy_rest"]) == (after["python"], after["numpy_rest"])
    modules = [m for layer in predictor.layers.values() for m in layer.modules()]
    assert not any(m._forward_hooks for m in modules)
    assert all(p.grad is None and p.requires_grad for m in modules for p in m.parameters())
    assert gradient_curve(predictor, rows) == gradient_curve(predictor, rows)


def test_hooks_go_where_the_network_fails() -> None:
    class Broken(Fading):
        def forward(self, steps: Tensor) -> Tensor:
            raise RuntimeError("broken")

    predictor, rows = deployed("series", Broken(3))
    with pytest.raises(RuntimeError, match="broken"):
        gradient_curve(predictor, rows)
    assert not any(m._forward_hooks for layer in predictor.layers.values() for m in layer.modules())


def test_nothing_to_measure() -> None:
    predictor, rows = deployed("series", Fading(3))
    assert gradient_curve(predictor, rows.subset(torch.tensor([], dtype=torch.int64))) == []
    with torch.no_grad():
        predictor.layers["network"].head.weight.fill_(torch.inf)
    assert gradient_curve(predictor, rows) == [], "not finite"
    schema, rows = sequences.task("text and table")
    table = Schema({"numbers": schema.inputs["numbers"]}, schema.targets)
    flat = Supervised.deploy(table, {"model": Model(table, networks["mlp"].build(table, "model"))})
    assert gradient_curve(flat, rows) == [], "no sequence"


def test_a_large_network_is_measured_on_fewer_rows() -> None:
    predictor, _ = deployed("series", Fading(3))
    assert memory._affordable(predictor, 10) == memory.ROWS
    wide, _ = deployed("text", nn.Sequential(nn.Embedding(10**6, 4), nn.Linear(1000, 1000)))
    assert memory._affordable(wide, 100) == int(memory.BUDGET / (6 * 1_001_000 * 100)), "a table's rows cost nothing"
    assert memory._affordable(wide, 10_000) == memory.FEWEST


# ---------------------------------------------------------------- sentence, chart, page


def test_judgments() -> None:
    assert judgment([(0, 0.001), (1, 1.0), (8, 0.02), (9, 0.001)]).startswith(
        "The answer depends on the last 9 steps: "
    )
    assert judgment([(0, 1.0), (1, 1e-5)]) == (
        "The answer depends on the last step: before it the gradient is under 1 % of its peak."
    )
    assert judgment([(0, 1.0), (49, 0.25)]) == (
        "The answer depends on steps as far back as there are: 49 steps before the end of a row, the gradient is still 25.0 % "
        "of its peak."
    )


def test_the_chart_is_logarithmic() -> None:
    chart = memory_chart([(0, 1.0), (5, 1e-3), (10, 1e-4)], 0.01)
    assert [text for _, text in chart.y] == ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "1"]
    assert chart.x == [(0.0, "0"), (20.0, "2"), (40.0, "4"), (60.0, "6"), (80.0, "8"), (100.0, "10")]
    assert chart.lines[0][2] == "M0 0L50 75L100 100"
    assert chart.lines[1][0] == "1 % of its peak"
    assert memory_chart([(0, 1.0), (5, 0.0)], 0.01).y_label.endswith("at the bottom what is smaller")


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1)), min_size=1, max_size=30, unique_by=lambda pair: pair[0])
)
def test_any_curve_can_be_drawn(pairs: list[tuple[int, float]]) -> None:
    view = memory_view({"memory": sorted(pairs)})
    assert view is not None
    numbers = [float(word) for word in re.findall(r"[\d.]+", view["chart"].lines[0][2])]
    assert all(-1e-6 <= number <= 100 + 1e-6 for number in numbers)
    assert len(view["chart"].y) <= 1 - round(math.log10(FAINT))


def test_a_curve_of_nonsense_is_no_curve() -> None:
    assert memory_view({}) is None
    assert memory_view({"memory": [[None, 1.0], ["x", 2]]}) is None


def rows_of_sums(path: Path, length: int = 20, rows: int = 80) -> Path:
    """A file of series whose sum is asked."""
    values = np.random.default_rng(1).random((rows, 1, length)).round(3)
    lines = [json.dumps({"x": row.tolist(), "sum": round(float(row.sum()), 3)}) for row in values]
    path.write_text("\n".join(lines), "utf-8")
    return path


def test_a_run_tells_how_far_back_it_looks(tmp_path: Path) -> None:
    data = rows_of_sums(tmp_path / "sums.jsonl")
    options = ("--steps", "3", "--batch", "10", "training.threads=1", "training.device=cpu")
    said = cli("fit", data, "--target", "sum", "--network", "rnn", "--name", "one", *options)
    assert said.code == 0, said.err
    curve = json.loads(Path("runs/one/results.json").read_text("utf-8"))["memory"]
    assert [place for place, _ in curve] == list(range(20))
    page = Path("runs/one/report.html").read_text("utf-8")
    assert "How far back it looks" in page
    assert judgment(curve) in page
    said = cli("fit", "wine", "--network", "mlp", "--name", "two", *options)
    assert said.code == 0, said.err
    assert "memory" not in json.loads(Path("runs/two/results.json").read_text("utf-8"))
    assert "How far back it looks" not in Path("runs/two/report.html").read_text("utf-8")


# ---------------------------------------------------------------- remembering longer


def test_gates_begin_by_remembering_for_as_long_as_is_asked() -> None:
    """Tallec & Ollivier 2018: forget = log(uniform(1, T - 1)), input = -forget; the others stay at zero."""
    units, steps = 400, 100
    inputs, forget, cell, output = cells("lstm", 3, units, layers=2, memory=steps).bias_ih_l1.split(units)
    assert torch.equal(inputs, -forget)
    assert not cell.any()
    assert not output.any()
    reset, update, new = cells("gru", 3, units, memory=steps).bias_ih_l0.split(units)
    assert not reset.any()
    assert not new.any()
    for bias in (forget, update):
        kept = 1 / (1 - bias.detach().sigmoid())  # steps: a gate of 1 - 1 / t keeps for t
        assert 2 <= float(kept.min()) < 5
        assert 90 < float(kept.max()) <= steps
        assert float(kept.mean()) == pytest.approx(steps / 2, rel=0.1)
    made = cells("lstm", 3, units)
    assert (made.bias_ih_l0.split(units)[1] == 1).all(), "as without it"
    for short in (1, 2):
        assert torch.isfinite(cells("gru", 3, 4, memory=short).bias_ih_l0).all()


def test_what_remembers_longer_feels_farther_steps() -> None:
    schema, _ = adding(100, 30)

    def last_share(**options: Any) -> float:
        algorithm = algorithm_of(schema, "lstm", {"units": 16, **options}, steps=1)
        return gradient_curve(algorithm.predictor(), adding(100, 30)[1])[-1][1]

    assert 100 * last_share() < last_share(memory=100), (last_share(), last_share(memory=100))


def test_a_simple_network_has_no_gates_to_tell() -> None:
    schema, _ = sequences.task("series")
    with pytest.raises(FathomError, match=r"There is no key 'rnn\.memory'\. .*Known: rnn\.bidirectional"):
        networks["rnn"].build(schema, "model", memory=100)


def test_a_sample_of_many_moments_is_fair_to_data_of_any_seed() -> None:
    """Moments made with the seed by which they are sampled were kept by their own size: the smallest of all."""
    summary = Summary()
    summary.add(np.random.default_rng(0).random((3 * SAMPLED, 1)))
    mean, std, low, high = (float(part[0]) for part in summary.result(0.001))
    assert (mean, std) == pytest.approx((0.5, 12**-0.5), abs=0.005)
    assert (low, high) == pytest.approx((0.001, 0.999), abs=0.001)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("cell", "options", "low", "high"),
    [("lstm", {"memory": 200}, 0.0, 0.05), ("gru", {"memory": 200}, 0.0, 0.05), ("rnn", {}, 0.5, 1.5)],
)
def test_numbers_two_hundred_steps_apart_are_added(cell: str, options: dict[str, Any], low: float, high: float) -> None:
    """The adding problem (Hochreiter & Schmidhuber 1997; Le, Jaitly & Hinton 2015): error as a share of the variance."""
    schema, data = adding(200, 9_000)
    algorithm = algorithm_of(schema, cell, {"units": 32, **options}, steps=500, batch=50)
    learn(algorithm, data.subset(torch.arange(8_000)))
    unseen = data.subset(torch.arange(8_000, 9_000))
    target = schema.targets["sum"]
    output = algorithm.predictor().outputs(unseen)["sum"]
    error = float((output - target.scale(unseen.column("sum"))).square().mean())  # type: ignore[attr-defined]
    assert low < error < high
