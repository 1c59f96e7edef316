"""Generative networks: what a step costs beside a tutorial's loop and Keras, and samples of any run in one metric.

    python benchmarks/generative.py speed --pairs 7 --steps 60       steps per second, paired, one thread
    python benchmarks/generative.py judge RUN...                     classifier-FID, precision, recall, modes of finished runs

Speed: the same networks and batch. The GAN is a small DCGAN pair (32 and 64 filters) with the non-saturating loss and without
penalties, which no tutorial has; the VAE is the 784-200-200-50 of Burda et al. 2016. Fathom is timed in float32, as its rivals
are, and in bfloat16, which a fit chooses by itself where a trial finds it quicker. The tutorials' loops are
those of PyTorch's examples (dcgan, vae): a DataLoader over tensors, one forward for real and one for made pictures,
`torch.optim.Adam`. Keras runs on its torch backend with a compiled `train_step`, where it is installed. Each pair is timed in
turn, so that a busy machine slows all of them; ratios are medians of pairs with their range.

Judge: every run whose predictor draws pictures, a VAE as well, is seen with the frozen classifier of its own training rows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

BATCH = 64
ROWS = 4_096
PRECISIONS = ("float32", "bfloat16")


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Random bytes and labels: speed does not depend on them."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (ROWS, 28, 28), np.uint8), generator.integers(0, 10, ROWS)


def fathom_steps(tree: dict[str, Any], precision: str) -> Callable[[int], float]:
    """Steps of the loop itself -> seconds."""
    from fathom.core.contract import Stage
    from fathom.core.device import Device
    from fathom.core.diagnose import non_finite
    from fathom.core.loop import train
    from fathom.verbs.assemble import build, open_task

    device = replace(Device.choose("cpu"), precision=precision)
    settings = {"batch": BATCH, "steps": 10_000, "threads": 1, "precision": precision}
    task = open_task(pictures(), {**tree, "training": {**settings, **tree["training"]}})
    assembly = build(task, device, fresh=True)
    stage = assembly.algorithm.stages(task.prepared.sets)[0]

    def run(steps: int) -> float:
        assembly.clock.step = assembly.clock.stage = 0
        start = time.perf_counter()
        train(assembly.algorithm, [replace(stage, steps=steps)], [], assembly.clock, device, non_finite)
        return time.perf_counter() - start

    assert isinstance(stage, Stage), "one stretch of training"
    return run


def endless(rows: torch.Tensor) -> Any:
    """Batches of a DataLoader over tensors, epoch after epoch."""
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows), BATCH, shuffle=True, drop_last=True)
    while True:
        yield from loader


def generator_network() -> nn.Module:
    """As fathom's `gan` with channels (32, 64)."""
    return nn.Sequential(
        nn.Linear(64, 64 * 7 * 7), nn.Unflatten(1, (64, 7, 7)), nn.ReLU(), nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


def discriminator_network() -> nn.Module:
    """As fathom's."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 64, 4, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(),
        nn.Linear(64 * 7 * 7, 1),
    )  # fmt: skip


def tutorial_gan() -> Callable[[int], float]:
    """The loop of pytorch/examples/dcgan."""
    one, other = generator_network(), discriminator_network()
    of_one, of_other = (torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (one, other))
    loss = nn.BCEWithLogitsLoss()
    rows = endless(torch.from_numpy(pictures()[0])[:, None].float() / 127.5 - 1)

    def step() -> None:
        (real,) = next(rows)
        label = torch.full((len(real), 1), 1.0)
        other.zero_grad()
        loss(other(real), label).backward()
        made = one(torch.randn(len(real), 64))
        loss(other(made.detach()), torch.zeros_like(label)).backward()
        of_other.step()
        one.zero_grad()
        loss(other(made), label).backward()
        of_one.step()

    return timed(step)


def tutorial_vae() -> Callable[[int], float]:
    """The loop of pytorch/examples/vae, with the network of Burda et al. 2016."""
    encoder = nn.Sequential(nn.Linear(784, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 100))
    decoder = nn.Sequential(nn.Linear(50, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 784))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-3)
    rows = endless((torch.from_numpy(pictures()[0])[:, None] > 127).float())

    def step() -> None:
        (x,) = next(rows)
        flat = x.view(-1, 784)
        optimizer.zero_grad()
        mean, log_variance = encoder(flat).chunk(2, 1)
        code = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        nats = F.binary_cross_entropy_with_logits(decoder(code), flat, reduction="sum")
        divergence = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        ((nats + divergence) / len(x)).backward()
        optimizer.step()

    return timed(step)


def timed(step: Callable[[], None]) -> Callable[[int], float]:
    """Steps -> seconds."""

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return time.perf_counter() - start

    return run


def keras_gan() -> Callable[[int], float] | None:
    """A model with a `train_step` of its own on the torch backend, as keras.io's guide writes it; None where it is missing."""
    import os

    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras
    except ImportError:
        return None
    layers = keras.layers
    one = keras.Sequential([
        layers.Input((64,)), layers.Dense(7 * 7 * 64), layers.Reshape((7, 7, 64)), layers.ReLU(),
        layers.Conv2DTranspose(32, 4, 2, "same", activation="relu"), layers.Conv2DTranspose(1, 4, 2, "same", activation="tanh"),
    ])  # fmt: skip
    other = keras.Sequential([
        layers.Input((28, 28, 1)), layers.Conv2D(32, 4, 2, "same"), layers.LeakyReLU(0.2), layers.Conv2D(64, 4, 2, "same"),
        layers.LeakyReLU(0.2), layers.Flatten(), layers.Dense(1),
    ])  # fmt: skip
    of_one, of_other = keras.optimizers.Adam(2e-4, 0.5), keras.optimizers.Adam(2e-4, 0.5)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    rows = endless(torch.from_numpy(pictures()[0])[..., None].float() / 127.5 - 1)

    def learn(model: Any, optimizer: Any, value: torch.Tensor) -> None:
        model.zero_grad()
        value.backward()
        weights = model.trainable_weights
        with torch.no_grad():
            optimizer.apply([weight.value.grad for weight in weights], weights)

    def step() -> None:
        (real,) = next(rows)
        label = torch.ones(len(real), 1)
        made = one(torch.randn(len(real), 64), training=True)
        both = other(torch.cat([real, made.detach()]), training=True)
        learn(other, of_other, loss(torch.cat([label, torch.zeros_like(label)]), both))
        learn(one, of_one, loss(label, other(one(torch.randn(len(real), 64), training=True), training=True)))

    return timed(step)


GAN = {
    "network": {"name": "gan", "channels": [32, 64], "mapping": []},
    "adversarial": {"loss": "non_saturating", "r1": 0.0, "r2": 0.0},
    "training": {
        "algorithm": "adversarial",
        "optimizer": "adam",
        "learning_rate": 2e-4,
        "average": 0.0,
        "keep": "last",
    },
}
VAE = {
    "network": {"name": "vae", "hidden": [200, 200], "code": 50},
    "training": {
        "algorithm": "reconstruction",
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "average": 0.0,
        "keep": "last",
    },
}


def speed(pairs: int, steps: int) -> None:
    """Print steps per second and ratios."""
    torch.set_num_threads(1)
    keras = keras_gan()
    tasks: dict[str, dict[str, Callable[[int], float]]] = {
        "GAN": {**both(GAN), "tutorial": tutorial_gan(), **({"keras": keras} if keras else {})},
        "VAE": {**both(VAE), "tutorial": tutorial_vae()},
    }
    for name, ways in tasks.items():
        for run in ways.values():
            run(10)
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(pairs):
            for way, run in ways.items():
                seconds[way].append(run(steps))
        for way, each in seconds.items():
            print(f"{name}  {way:<9} {steps / statistics.median(each):8.1f} steps/s{against(each, seconds)}")


def both(tree: dict[str, Any]) -> dict[str, Callable[[int], float]]:
    """Fathom in either precision."""
    return {precision: fathom_steps(tree, precision) for precision in PRECISIONS}


def against(rival: list[float], seconds: dict[str, list[float]]) -> str:
    """How many times as fast Fathom is, by pairs; nothing for Fathom itself."""
    if any(rival is seconds[precision] for precision in PRECISIONS):
        return "   (fathom)"
    parts = []
    for precision in PRECISIONS:
        ratios = sorted(other / mine for other, mine in zip(rival, seconds[precision], strict=True))
        parts.append(
            f"fathom in {precision} is {statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
    return "   " + ", ".join(parts)


def judge(runs: list[str]) -> None:
    """Print what the samples of finished runs are worth, each with its floor."""
    from fathom.analysis import samples
    from fathom.verbs import frozen
    from fathom.verbs.evaluate import _original
    from fathom.verbs.result import load

    for name in runs:
        run = load(name)
        prepared = _original(run)
        if run.predictor.sampler is None or prepared is None:
            print(f"{name}  draws no pictures, or its rows are gone")
            continue
        extractor = frozen.extractor(prepared, 0)
        made = samples.results(run.predictor, prepared.sets["train"], prepared.sets["test"], 0, extractor)
        figures = "  ".join(f"{metric} {value['value']:.3g}" for metric, value in made["test"].items())
        print(f"{name}  {figures}\n    {made['verdict']}")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_subparsers(dest="what", required=True)
    fast = chosen.add_parser("speed")
    fast.add_argument("--pairs", type=int, default=7)
    fast.add_argument("--steps", type=int, default=60)
    chosen.add_parser("judge").add_argument("runs", nargs="+")
    options = parser.parse_args()
    if options.what == "speed":
        speed(options.pairs, options.steps)
    else:
        judge(options.runs)


if __name__ == "__main__":
    main()
