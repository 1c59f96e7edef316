"""The guard for devices where looking waits: run here on the CPU, since it is plain tensor work."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fathom.core.contract import Clock
from fathom.core.optimize import Optimizer
from fathom.core.recipe import Training


@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop", "muon"])
def test_from_the_first_bad_step_on_the_weights_stay_as_they_were(name: str) -> None:
    module, clock = nn.Linear(4, 3), Clock(steps=10)
    training = Training(optimizer=name, learning_rate=0.1, weight_decay=0.1, average=0.9, schedule="constant")
    optimizer = Optimizer({"model": module}, training, clock)

    def step(bad: bool) -> None:
        for group in optimizer.groups:
            group.gradients.zero_()
        loss = module(torch.ones(2, 4)).square().sum() * (float("nan") if bad else 1.0)
        loss.backward()
        optimizer._update_on_device(loss)
        clock.total += 1

    step(bad=False)
    assert optimizer.first_bad_step() == -1
    weights, average = module.weight.clone(), optimizer.averages[0].clone()
    for bad in (True, False, True):
        step(bad)
        assert torch.equal(module.weight, weights)
    assert optimizer.first_bad_step() == 1
    assert torch.isfinite(optimizer.averages[0]).all()
    assert not torch.equal(average, optimizer.averages[0]), "the average goes on towards the last good weights"
