"""The optimizer against plain torch: one flat buffer must change nothing but the speed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fathom.core.contract import Clock
from fathom.core.errors import FathomError
from fathom.core.optimize import SCHEDULES, Optimizer
from fathom.core.recipe import Training
from fathom.core.run import flatten, unflatten

X, Y = torch.randn(32, 5, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))


def training(**options: Any) -> Training:
    return Training(**{"schedule": "constant", "learning_rate": 0.01, **options})


def loss_of(module: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(module(X), Y)


def optimize(module: nn.Module, options: Training, steps: int = 20) -> Optimizer:
    optimizer = Optimizer({"model": module}, options, Clock())
    for _ in range(steps):
        optimizer.minimize(loss_of(module))
    return optimizer


def reference(
    module: nn.Module, make: Callable[..., torch.optim.Optimizer], steps: int = 20, decay: float = 0.0
) -> None:
    """Plain torch with separate parameters; decoupled decay by hand, on matrices only."""
    optimizer = make(module.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(module).backward()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(1 - 0.01 * decay)
        optimizer.step()


def assert_equal(one: nn.Module, other: nn.Module, tolerance: float = 1e-6) -> None:
    for (name, mine), (_, theirs) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance, msg=name)


PLAIN: dict[str, tuple[dict[str, Any], Callable[..., torch.optim.Optimizer]]] = {
    "sgd": ({"optimizer": "sgd", "momentum": 0.0}, lambda p: torch.optim.SGD(p, 0.01)),
    "momentum": (
        {"optimizer": "sgd", "momentum": 0.8, "nesterov": False}, lambda p: torch.optim.SGD(p, 0.01, momentum=0.8)
    ),
    "nesterov": (
        {"optimizer": "sgd", "momentum": 0.8}, lambda p: torch.optim.SGD(p, 0.01, momentum=0.8, nesterov=True)
    ),
    "adam": ({"optimizer": "adam"}, lambda p: torch.optim.Adam(p, 0.01)),
    "adamw": ({"optimizer": "adamw"}, lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.0)),
    "rmsprop": (
        {"optimizer": "rmsprop", "momentum": 0.5}, lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5)
    ),
}  # fmt: skip


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("name", PLAIN)
def test_equals_plain_torch(name: str, decay: float) -> None:
    options, make = PLAIN[name]
    mine, theirs, start = network(), network(), network()
    optimize(mine, training(weight_decay=decay, **options))
    reference(theirs, make, decay=decay)
    assert_equal(mine, theirs)
    assert (mine[0].weight - start[0].weight).abs().max() > 1e-3, "something was learnt"


def test_decay_equals_adamw_of_torch() -> None:
    mine, theirs = network(), network()
    optimize(mine, training(weight_decay=0.1))
    groups = [{"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.1},
              {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0}]  # fmt: skip
    reference(theirs, lambda _: torch.optim.AdamW(groups, 0.01))
    assert_equal(mine, theirs)


def test_muon_moves_hidden_matrices_and_adamw_the_rest() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(x).tanh()).tanh())

    mine, theirs = Net(), Net()
    optimize(mine, training(optimizer="muon", momentum=0.9))
    matrices = [theirs.first.weight, theirs.second.weight]
    rest = [p for p in theirs.parameters() if all(p is not matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.0)
    adam = torch.optim.AdamW(rest, lr=0.01, weight_decay=0.0)
    for _ in range(20):
        muon.zero_grad(), adam.zero_grad()
        loss_of(theirs).backward()
        muon.step(), adam.step()
    assert_equal(mine, theirs)


def test_muon_takes_filters_as_matrices() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4, 2)).to(memory_format=torch.channels_last)
    optimizer = Optimizer({"model": module}, training(optimizer="muon", momentum=0.9), Clock())
    matrix = module[0].weight.detach().flatten(1).clone()  # (4, 18)
    plain = torch.optim.Muon([matrix], lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.0)
    for seed in range(3):
        images = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
        optimizer.minimize(module(images).square().sum())
        matrix.grad = module[0].weight.grad.flatten(1)
        plain.step()
        # The polynomial runs in bfloat16, whose rounding depends on the order of the columns.
        torch.testing.assert_close(module[0].weight.detach().flatten(1), matrix, atol=1e-3, rtol=0)


def test_flat_buffers_keep_strides_ties_and_values() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)).to(memory_format=torch.channels_last)
    module.add_module("tied", nn.Conv2d(4, 4, 1))
    module[2].weight = module[1].weight
    before = {name: (p.detach().clone(), p.stride()) for name, p in module.named_parameters()}
    optimizer = Optimizer({"model": module}, training(), Clock())
    assert module[2].weight is module[1].weight
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.stride() == before[name][1]
        assert parameter.grad is not None
        assert parameter.grad.stride() == before[name][1]
    assert sum(group.weights.numel() for group in optimizer.groups) == sum(p.numel() for p in module.parameters())
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    optimizer.minimize(module(torch.randn(2, 3, 5, 5)).square().mean())
    assert not torch.equal(module[1].weight, before["1.weight"][0])


def test_clipping_equals_torch() -> None:
    mine, theirs = network(), network()
    optimizer = Optimizer({"model": mine}, training(optimizer="sgd", momentum=0.0, clip=0.05), Clock())
    plain = torch.optim.SGD(theirs.parameters(), 0.01)
    for _ in range(5):
        optimizer.minimize(loss_of(mine) * 10)
        plain.zero_grad()
        (loss_of(theirs) * 10).backward()
        assert nn.utils.clip_grad_norm_(theirs.parameters(), 0.05) > 0.05
        plain.step()
    assert_equal(mine, theirs)


def test_the_average_follows_its_formula() -> None:
    module = network()
    optimizer = Optimizer({"model": module}, training(average=0.9), Clock())
    expected = module[0].weight.detach().clone()
    for update in range(1, 101):
        optimizer.minimize(loss_of(module))
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * module[0].weight.detach()
    last = module[0].weight.detach().clone()
    with optimizer.averaged():
        torch.testing.assert_close(module[0].weight.detach(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(module[0].weight, last), "outside the block the weights are as they were"
    optimizer.keep_average()
    torch.testing.assert_close(module[0].weight.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "progress", "warmup", "value"),
    [
        ("constant", 0.7, 0.0, 1.0),
        ("constant", 0.05, 0.1, 0.5),
        ("step", 0.49, 0.0, 1.0),
        ("step", 0.5, 0.0, 0.1),
        ("step", 0.75, 0.0, 0.01),
        ("cosine", 0.0, 0.0, 1.0),
        ("cosine", 0.5, 0.0, 0.5),
        ("cosine", 0.55, 0.1, 0.5),
        ("cosine", 1.0, 0.0, 0.0),
        ("linear", 0.25, 0.0, 0.75),
        ("linear", 0.6, 0.2, 0.5),
        ("one_cycle", 0.0, 0.0, 0.04),
        ("one_cycle", 0.15, 0.0, 0.52),
        ("one_cycle", 0.3, 0.0, 1.0),
        ("one_cycle", 0.65, 0.0, 0.5),
        ("one_cycle", 1.0, 0.0, 0.0),
        ("one_cycle", 0.1, 0.1, 1.0),
    ],
)
def test_schedules_by_hand(name: str, progress: float, warmup: float, value: float) -> None:
    assert SCHEDULES[name](progress, training(warmup=warmup)) == pytest.approx(value, abs=1e-6)


def test_the_clock_drives_the_rate() -> None:
    module, clock = network(), Clock(steps=4)
    optimizer = Optimizer({"model": module}, training(schedule="linear", optimizer="sgd", momentum=0.0), clock)
    rates = []
    for clock.step in range(4):
        optimizer.minimize(loss_of(module))
        rates.append(optimizer.learning_rate)
    assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "muon"])
@pytest.mark.parametrize("fault", ["loss", "gradient", "loss alone"])
def test_a_bad_update_never_reaches_the_weights(name: str, fault: str) -> None:
    module, clock = network(), Clock()
    optimizer = Optimizer({"model": module}, training(optimizer=name, weight_decay=0.1, average=0.9), clock)
    for clock.total in range(3):
        optimizer.minimize(loss_of(module))
    assert optimizer.first_bad_step() == -1
    before = [p.detach().clone() for p in module.parameters()]
    state = flatten(optimizer.state_dict())[0]
    state = {key: tensor.clone() for key, tensor in state.items()}
    for clock.total in (3, 4):
        if fault == "loss":
            optimizer.minimize(loss_of(module) * math.nan)
        elif fault == "loss alone":  # its gradient is finite, yet the number is not
            optimizer.minimize(loss_of(module) + math.nan)
        else:  # the loss is finite; the slope of sqrt at zero is not
            optimizer.minimize((module[0].weight.sum() * 0).sqrt() + loss_of(module).detach())
    assert all(torch.equal(now, then) for now, then in zip(module.parameters(), before, strict=True))
    after = flatten(optimizer.state_dict())[0]
    assert all(torch.equal(after[key], state[key]) for key in state), "momentum and average neither"
    assert optimizer.first_bad_step() == 3, "the first of them is remembered"


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "muon"])
def test_state_goes_out_and_comes_back(name: str) -> None:
    options = training(optimizer=name, average=0.9, weight_decay=0.1)
    whole = network()
    optimizer = optimize(whole, options, 10)
    tensors, plain = flatten(optimizer.state_dict())
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    copied = network(1)
    copied.load_state_dict({key: tensor.clone() for key, tensor in whole.state_dict().items()})
    second = Optimizer({"model": copied}, options, Clock())
    second.load_state_dict(unflatten(plain, tensors))
    for _ in range(5):
        optimizer.minimize(loss_of(whole))
        second.minimize(loss_of(copied))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), copied.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(optimizer.averages, second.averages, strict=True))


def test_rates_freeze_and_scale_and_the_last_match_counts() -> None:
    module = network()
    optimizer = Optimizer({"model": module}, training(optimizer="sgd", momentum=0.0), Clock())
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer.begin({"*": 0.0, "3.*": 1.0, "3.bias": 0.5})
    loss_of(module).backward(inputs=[module[3].weight, module[3].bias])
    slopes = {"3.weight": module[3].weight.grad.clone(), "3.bias": module[3].bias.grad.clone()}
    optimizer.minimize(loss_of(module))
    for name, parameter in module.named_parameters():
        if name in slopes:
            factor = 0.005 if name == "3.bias" else 0.01
            torch.testing.assert_close(parameter.detach(), before[name] - factor * slopes[name])
        else:
            assert torch.equal(parameter, before[name])
            assert not parameter.requires_grad
    optimizer.begin({"*": 1.0})
    optimizer.minimize(loss_of(module))
    assert not torch.equal(module[0].weight, before["0.weight"]), "a later stage thaws"
    with pytest.raises(FathomError, match="freeze every parameter"):
        optimizer.begin({"*": 0.0})
    with pytest.raises(FathomError, match=r"No rate matches the parameter '0\.weight'; add \"\*\" = 1\.0"):
        optimizer.begin({"head.*": 1.0})


def test_under_muon_what_is_no_matrix_has_a_rate_of_its_own() -> None:
    moved = {}
    for share in (1.0, 0.1):
        module = network()
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        options = training(optimizer="muon", vector_rate=share)
        Optimizer({"model": module}, options, Clock()).minimize(loss_of(module))
        moved[share] = {name: p.detach() - before[name] for name, p in module.named_parameters()}
    torch.testing.assert_close(moved[0.1]["0.weight"], moved[1.0]["0.weight"])
    torch.testing.assert_close(moved[0.1]["0.bias"], 0.1 * moved[1.0]["0.bias"], rtol=1e-3, atol=1e-7)
    assert [group.rate for group in Optimizer({"model": network()}, training(vector_rate=0.1), Clock()).groups] == [1.0]


def test_averages_come_back_onto_the_device_of_the_weights() -> None:
    """A saved state lies on the CPU; "meta" stands for any other device."""
    options = training(average=0.9)
    saved = Optimizer({"model": network()}, options, Clock()).state_dict()
    elsewhere = Optimizer({"model": network().to("meta")}, options, Clock())
    elsewhere.load_state_dict(saved)
    assert {average.device.type for average in elsewhere.averages} == {"meta"}


def test_rates_that_meet_no_parameter_are_refused() -> None:
    optimizer = Optimizer({"model": network()}, training(), Clock())
    with pytest.raises(FathomError, match=r"The rates name '9\.\*', but no parameter is called so"):
        optimizer.begin({"*": 1.0, "9.*": 0.0})
    assert optimizer.rates == {"*": 1.0}
