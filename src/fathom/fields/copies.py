"""Inputs as what is to be reconstructed: `image_copy`, `number_copy`, `category_copy`.

A copy reads the columns of an input and encodes them as that input does, so both share one encoded column. As a target it
says what a network returns for it, and how far that is from the truth:

    outputs             what the network returns: pixels, logits, or a mean and a log scale a pixel; numbers; logits a word
    nats(output, x)     (B,)    minus the log likelihood of the row, summed over pixels or columns
    errors(output, x)   (B, C)  the error of each column, for scores and for the columns that contribute most
    missed(output, x)   (B,)    the mean error of the row, for metrics
    shown(output)       (B, ...) the answer in the units of the data: pixels from 0 to 1, standardized numbers, shares
    distorted(x, draws) the encoded row with noise, for denoising

Likelihoods of pictures (`likelihood`):
    squared     squared error over pixels from 0 to 1; no likelihood, what an autoencoder minimizes
    bernoulli   of black and white pixels (`data.image.binarize`)
    gaussian    with a fixed standard deviation `sigma`, or one learned for each pixel where sigma is 0
    logistic    discretized to the 256 levels of a byte (Salimans et al. 2017, PixelCNN++, equation 2, one component);
                its nats over pixels and log 2 are bits a dimension
Numbers have a Gaussian one with variance 1 in standardized units, categories their cross-entropy. What is missing in a row
is not to be reconstructed and has no error.

In comments: B rows, N rows of a set, C columns or channels, K words of a column.
"""

from __future__ import annotations

import base64
import io
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field as Limits
from torch import Tensor, nn
from torch.nn import functional as F

from fathom.core.contract import Batch, Columns, Field, Ragged, Schema, hyperparameter
from fathom.core.registry import fields

Likelihood = Literal["squared", "bernoulli", "gaussian", "logistic"]
HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)
LEVELS = 255  # steps between the 256 levels of a byte
SALT = 0x4E4F4953  # so that noise is not drawn by the very numbers that the same seed gave elsewhere
NOISY = ".noisy."  # before the name of an input: the same with noise
THRESHOLD = "threshold"  # in the state of the first copy: the score above which a row is called an anomaly
LABEL = "label"  # in a schema's special columns: what is known of the rows, and not learnt from
LEAST_LOG_SCALE = -7.0  # of a pixel; a smaller scale than a tenth of a level says nothing more


class Copy(Field):
    """An input once more, as what is to be reconstructed."""

    of: ClassVar[str]  # the kind that is copied
    given: ClassVar[bool] = True  # whether the network is given the row that it makes again
    settings: dict[str, Any] = hyperparameter({}, help="options of the input that is copied")
    noise: float = hyperparameter(0.0, help="standard deviation of the noise that is to be taken away")

    @classmethod
    def of_input(cls, item: Field, **options: Any) -> Copy:
        """The copy of an unfitted input, which is fitted as its copy is.

        Args:
            item: of the kind that is copied.
            options: further options of the copy.
        """
        made = cls(item.columns, settings=dict(item.options), **options)
        made.linked = item
        return made

    linked: Field | None = None

    @property
    def inner(self) -> Field:
        """The input itself, in its present state."""
        if self.linked is not None:
            return self.linked
        made: Field = fields[self.of].make(self.columns, **self.settings)
        made.state = self.state
        return made

    @property
    def files(self) -> bool:  # type: ignore[override]
        """As of the input."""
        return bool(fields[self.of].make.files)

    @property
    def shape(self) -> tuple[int, ...]:
        """As of the input."""
        return self.inner.shape

    def fit(self, chunks: Iterable[Columns]) -> None:
        """As the input does."""
        inner = self.inner
        inner.fit(chunks)
        self.state = inner.state

    def begin(self, chunks: Iterable[Columns]) -> None:
        """As the input does."""
        inner = self.inner
        inner.begin(chunks)
        self.state = inner.state

    def measure(self, encoded: Tensor | Ragged) -> None:
        """As the input does."""
        inner = self.inner
        inner.measure(encoded)
        self.state = inner.state

    def adopt(self, earlier: Field, chunks: Iterable[Columns]) -> None:
        """As the input does."""
        inner = self.inner
        inner.adopt(earlier, chunks)
        self.state = inner.state

    def encoding(self) -> dict[str, Any]:
        """As of the input."""
        return self.inner.encoding()

    def encode(self, columns: Columns, target: bool = False) -> Tensor | Ragged:
        """As the input does: what is missing is a value."""
        inner = self.inner
        try:
            return inner.encode(columns)
        finally:
            self.remarks = inner.remarks

    def layer(self) -> nn.Module:
        """As of the input."""
        return self.inner.layer()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns that `errors` tells apart."""
        return self.columns

    @abstractmethod
    def nats(self, output: Tensor, encoded: Tensor) -> Tensor:
        """Minus the log likelihood of each row, summed over its pixels or columns.

        Args:
            output: (B, *outputs).
            encoded: (B, ...).

        Returns:
            (B,).
        """

    @abstractmethod
    def errors(self, output: Tensor, encoded: Tensor) -> Tensor:
        """(B, C) the error of each column, 0 where it is missing; arguments as for `nats`."""

    @abstractmethod
    def missed(self, shown: Tensor, encoded: Tensor) -> Tensor:
        """(B,) how far an answer is from the truth on average: squared error, or the share of words that are wrong.

        Args:
            shown: (B, ...) as `shown` gives it.
            encoded: (B, ...).
        """

    @abstractmethod
    def shown(self, output: Tensor) -> Tensor:
        """The answer in the units of the data; of categories the likeliest codes (B, C)."""

    @abstractmethod
    def truth(self, encoded: Tensor) -> Tensor:
        """The encoded row in the units of `shown`."""

    def distorted(self, encoded: Tensor, draws: Tensor) -> Tensor:
        """The encoded row with noise; unchanged where this kind takes none.

        Args:
            encoded: (B, ...).
            draws: (B, ...) standard normal.
        """
        return encoded

    def metrics(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """The mean of `missed` over rows, and of pictures the peak signal-to-noise ratio of that mean, in decibels."""
        each = self.missed(self.shown(output), target).double()  # (N,)
        return self.summary(_mean(each, weight))

    @classmethod
    @abstractmethod
    def summary(cls, missed: Tensor) -> dict[str, Tensor]:
        """Metrics of the mean of `missed`, () or (R,)."""

    def describe(self) -> str:
        """What is copied, and how it is measured."""
        return f"the same {self.of}s, to be reconstructed" + (f" from noise of {self.noise:g}" if self.noise else "")


def _mean(each: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return each.mean()
    weight = weight.double()
    return (weight @ each) / weight.sum(-1)


@fields.register("image_copy")
class ImageCopy(Copy):
    """Pictures, to be reconstructed."""

    kind = "image_copy"
    of = "image"
    headline = "psnr"
    likelihood: Likelihood = hyperparameter("squared", help="squared, bernoulli, gaussian or logistic")
    sigma: Annotated[float, Limits(ge=0)] = hyperparameter(
        0.0, help="standard deviation of a Gaussian pixel from 0 to 1; one is learned for each where 0"
    )

    @property
    def scaled(self) -> bool:
        """Whether the network says a scale beside each mean."""
        return self.likelihood == "logistic" or (self.likelihood == "gaussian" and not self.sigma)

    @property
    def outputs(self) -> tuple[int, ...]:
        """(C, H, W), or (2 C, H, W): means, then log scales."""
        channels, height, width = self.shape
        return channels * (1 + self.scaled), height, width

    @property
    def peak(self) -> float:
        """What stands for 1: white."""
        return 255.0

    def truth(self, encoded: Tensor) -> Tensor:
        """(B, C, H, W) pixels from 0 to 1; float arrays of other numbers as they are."""
        return encoded.float() / self.peak if self.state.get("factor") is not None else encoded.float()

    def nats(self, output: Tensor, encoded: Tensor) -> Tensor:
        """By `likelihood`; for "squared" the squared error itself."""
        x, output = self.truth(encoded), output.float()
        if self.likelihood == "squared":
            return (output - x).square().flatten(1).sum(1)
        if self.likelihood == "bernoulli":
            return (F.softplus(output) - x * output).flatten(1).sum(1)
        if not self.scaled:
            each = 0.5 * ((output - x) / self.sigma).square() + math.log(self.sigma) + HALF_LOG_TAU
            return each.flatten(1).sum(1)
        mean, log_scale = output.chunk(2, 1)
        log_scale = log_scale.clamp(min=LEAST_LOG_SCALE)
        if self.likelihood == "gaussian":
            each = 0.5 * ((mean - x) * torch.exp(-log_scale)).square() + log_scale + HALF_LOG_TAU
            return each.flatten(1).sum(1)
        return discretized_logistic(mean, log_scale, x).flatten(1).sum(1)

    def errors(self, output: Tensor, encoded: Tensor) -> Tensor:
        """(B, 1) mean squared error of the pixels."""
        return self.missed(self.shown(output), encoded)[:, None]

    def missed(self, shown: Tensor, encoded: Tensor) -> Tensor:
        """Mean squared error of the pixels, from 0 to 1."""
        return (shown - self.truth(encoded)).square().flatten(1).mean(1)

    def shown(self, output: Tensor) -> Tensor:
        """(B, C, H, W) pixels from 0 to 1; of binary ones the probability of white."""
        if self.likelihood == "bernoulli":
            return output.float().sigmoid()
        mean = output.float().chunk(2, 1)[0] if self.scaled else output.float()
        return mean.clamp(0, 1) if self.state.get("factor") is not None else mean

    def distorted(self, encoded: Tensor, draws: Tensor) -> Tensor:
        """White Gaussian noise on the pixels, which may then lie outside of 0 to 1."""
        peak = self.peak if self.state.get("factor") is not None else 1.0
        return encoded.float() + peak * self.noise * draws

    @classmethod
    def summary(cls, missed: Tensor) -> dict[str, Tensor]:
        """Peak signal-to-noise ratio, and the mean squared error that it is made of."""
        return {"psnr": -10 * torch.log10(missed.clamp(min=1e-12)), "mse": missed}

    def decode(self, output: Tensor) -> list[Any]:
        """A picture a row, as the text of a PNG data URI."""
        return [{"answer": data_uri(picture)} for picture in self.shown(output)]

    def describe(self) -> str:
        """With the likelihood."""
        how = {"squared": "squared error", "logistic": "discretized logistic"}.get(self.likelihood, self.likelihood)
        return f"{super().describe()} ({how})"


def discretized_logistic(mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    """Minus the log probability of a level of a byte under a logistic density that is cut into 256 bins.

    Args:
        mean, log_scale: of the density, over values from 0 to 1.
        x: the level over 255.

    Returns:
        Nats, elementwise.
    """
    inverse, half = torch.exp(-log_scale), 0.5 / LEVELS
    upper, lower = (x - mean + half) * inverse, (x - mean - half) * inverse
    # log(sigmoid(u) - sigmoid(l)) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u)), which never cancels.
    inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-2 * half * inverse))
    told = torch.where(x < half, F.logsigmoid(upper), torch.where(x > 1 - half, F.logsigmoid(-lower), inside))
    return -told


def data_uri(picture: Tensor) -> str:
    """(C, H, W) from 0 to 1 as the text of a PNG data URI."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()


def png(picture: Tensor) -> bytes:
    """(C, H, W) from 0 to 1 as PNG."""
    from PIL import Image as Pillow

    pixels = (picture.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    made = Pillow.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    file = io.BytesIO()
    made.save(file, "PNG", optimize=True)
    return file.getvalue()


@fields.register("number_copy")
class NumberCopy(Copy):
    """Numbers, to be reconstructed."""

    kind = "number_copy"
    of = "number"
    headline = "scaled_mse"

    @property
    def outputs(self) -> tuple[int, ...]:
        """One standardized number a column."""
        return (len(self.columns),)

    def truth(self, encoded: Tensor) -> Tensor:
        """(B, C) standardized and cut as the network sees them; NaN where missing."""
        number: Any = self.inner
        limit = float(number.clip)
        scaled: Tensor = number.scale(encoded.float())
        return scaled.clamp(-limit, limit)

    def _squares(self, shown: Tensor, encoded: Tensor) -> Tensor:
        x = self.truth(encoded)
        known = ~x.isnan()
        return torch.where(known, shown - x.nan_to_num(), torch.zeros((), device=x.device)).square()  # (B, C)

    def nats(self, output: Tensor, encoded: Tensor) -> Tensor:
        """Gaussian of variance 1 in standardized units."""
        known = ~encoded.isnan()
        return 0.5 * self._squares(output.float(), encoded).sum(1) + HALF_LOG_TAU * known.sum(1)

    def errors(self, output: Tensor, encoded: Tensor) -> Tensor:
        """(B, C) half the squared error, which is its nats less a constant: beside categories it weighs fairly."""
        return 0.5 * self._squares(output.float(), encoded)

    def missed(self, shown: Tensor, encoded: Tensor) -> Tensor:
        """Mean squared error of the standardized columns."""
        known = (~encoded.isnan()).sum(1).clamp(min=1)
        return self._squares(shown, encoded).sum(1) / known

    def shown(self, output: Tensor) -> Tensor:
        """(B, C) standardized."""
        return output.float()

    def distorted(self, encoded: Tensor, draws: Tensor) -> Tensor:
        """Noise in standard deviations of each column; what is missing stays so."""
        std = torch.tensor(self.state["std"], dtype=torch.float32, device=encoded.device)
        return encoded + draws * std * self.noise

    @classmethod
    def summary(cls, missed: Tensor) -> dict[str, Tensor]:
        """Mean squared error: 1 is as bad as always answering the mean of each column."""
        return {"scaled_mse": missed}

    def decode(self, output: Tensor) -> list[Any]:
        """Column -> number, in the original units."""
        number: Any = self.inner
        return [{"answer": dict(zip(self.columns, row, strict=True))} for row in number.unscale(output).tolist()]


@fields.register("category_copy")
class CategoryCopy(Copy):
    """Words, to be reconstructed; a missing or unknown one is a word of its own."""

    kind = "category_copy"
    of = "category"
    headline = "accuracy"

    @property
    def sizes(self) -> list[int]:
        """Words of each column, the unknown one first."""
        return [len(words) + 1 for words in self.state["vocabularies"]]

    @property
    def outputs(self) -> tuple[int, ...]:
        """Logits of every word of every column, side by side."""
        return (sum(self.sizes),)

    def truth(self, encoded: Tensor) -> Tensor:
        """(B, C) codes."""
        return encoded.long()

    def nats(self, output: Tensor, encoded: Tensor) -> Tensor:
        """Cross-entropy, summed over columns."""
        return self.errors(output, encoded).sum(1)

    def errors(self, output: Tensor, encoded: Tensor) -> Tensor:
        """(B, C) cross-entropy."""
        parts = output.float().split(self.sizes, 1)
        truth = self.truth(encoded)
        return torch.stack([F.cross_entropy(part, truth[:, i], reduction="none") for i, part in enumerate(parts)], 1)

    def missed(self, shown: Tensor, encoded: Tensor) -> Tensor:
        """The share of columns whose word is wrong."""
        return (shown != self.truth(encoded)).float().mean(1)

    def shown(self, output: Tensor) -> Tensor:
        """(B, C) the likeliest code of each column."""
        return torch.stack([part.argmax(1) for part in output.split(self.sizes, 1)], 1)

    @classmethod
    def summary(cls, missed: Tensor) -> dict[str, Tensor]:
        """The share of words that are right."""
        return {"accuracy": 1 - missed}

    def decode(self, output: Tensor) -> list[Any]:
        """Column -> the likeliest word; None where that is "missing"."""
        words = [[None, *column] for column in self.state["vocabularies"]]
        rows = self.shown(output).tolist()
        return [
            {"answer": {name: words[i][code] for i, (name, code) in enumerate(zip(self.columns, row, strict=True))}}
            for row in rows
        ]


COPIES: dict[str, type[Copy]] = {item.of: item for item in (ImageCopy, NumberCopy, CategoryCopy)}


def fixed_noise(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal draws that depend on the number of the row alone: what is measured is measured on the same noise.

    Args:
        rows: (B,) numbers of the rows.
        shape: of one row.

    Returns:
        (B, *shape) float32.
    """
    drawn = [np.random.default_rng((SALT, row)).standard_normal(shape, np.float32) for row in rows.tolist()]
    return torch.from_numpy(np.stack(drawn))


def drawn_by_row(rows: Tensor, x: Tensor) -> Tensor:
    """The same for a row whenever it is measured; `rows` (B,) are their numbers."""
    return fixed_noise(rows, tuple(x.shape[1:]))


def noised(copies: Mapping[str, Copy], batch: Batch, draw: Callable[[Tensor], Tensor]) -> Batch:
    """Entries of a batch that hold its inputs with noise.

    Args:
        copies: say how much.
        batch: encoded.
        draw: encoded (B, ...) -> standard normal of its shape.
    """
    return {
        NOISY + name: item.distorted(batch[name], draw(batch[name]).to(batch[name].device))
        for name, item in copies.items()
    }


def copies_of(schema: Schema) -> dict[str, Copy]:
    """What is to be reconstructed."""
    return {name: item for name, item in schema.targets.items() if isinstance(item, Copy)}
