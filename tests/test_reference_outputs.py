"""Whole networks answer what reference implementations answer, with the same weights (see reference_outputs.py)."""

from __future__ import annotations

import pytest
import torch

from fathom.verbs.counting import Undrawn
from reference_outputs import CASES, KEPT, SHAPE, filled, picture, reference, spread
from test_networks_history import build


@pytest.mark.parametrize("name", CASES)
def test_a_network_answers_what_the_reference_answers(name: str) -> None:
    case, wanted = CASES[name], reference()[name]
    assert wanted["library"].startswith(case.library)
    with Undrawn():  # the formula fills them
        module = build(case.network, SHAPE[1:], 1000, **case.options)
    module = filled(module)
    with torch.inference_mode():
        logits = module(picture())[0, :KEPT]
    difference = (logits - torch.tensor(wanted["logits"])).abs().max()
    assert float(difference) < 1e-4 * wanted["deviation"], "in float32; the reference is in float64"


def test_the_numbers_are_the_same_on_every_machine() -> None:
    assert (spread("head.weight", 4) * 2**31).astype(int).tolist() == SPREAD
    many = spread("features.0.weight", 1_000_003)
    assert -1 <= many.min() < -0.999 < 0.999 < many.max() <= 1
    assert abs(float(many.mean())) < 0.01
    assert float(many.var()) == pytest.approx(1 / 3, abs=0.01)


SPREAD = [-536_316_416, -2_145_980_032, 557_235_712, 607_017_984]
