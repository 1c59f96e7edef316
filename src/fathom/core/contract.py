"""The contract: the types that every part of Fathom speaks, and nothing that does work of its own.

    Source ──columns, splits──▶ Field ──encode──▶ TensorSet ──batches──▶ Algorithm ──▶ Predictor ──decode──▶ answers
                                  │                                       │
                                Schema                            Model (= preprocess + network)

A `Field` is one named input or target. A `Source` reads raw columns. A `Model` is the one place where named batches
meet plain tensors. An `Algorithm` says how something is learnt: one method, `step`. A `Predictor` is all that analysis
and delivery ever see. A `Callback` watches and never writes.

Shapes in comments: B rows of a batch, N rows of a set, K outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fathom.core.batching import Epochs, epoch_order, epoch_steps, rows_at_a_time
from fathom.core.device import Device
from fathom.core.errors import DataError, unknown
from fathom.core.features import Served, at_rest, head_alone, only_head, rest_frozen
from fathom.core.registry import Hyperparameter, fields, hyperparameter
from fathom.core.tensors import FEATURES, ROW, WEIGHT, Batch, Columns, Index, Ragged, TensorSet

if TYPE_CHECKING:
    from fathom.core.environments import Environment
    from fathom.core.optimize import Optimizer
    from fathom.core.prepare import Prepared
    from fathom.core.recipe import Data, Recipe, Training

__all__ = [
    "PENALTY", "ROW", "WEIGHT", "Algorithm", "Batch", "Callback", "Clock", "Columns", "Context", "Field", "Index", "Loss",
    "Model", "Predictor", "Ragged", "Regularizer", "Sampler", "Schema", "Source", "Stage", "TensorSet", "Verdict",
    "epoch_order", "epoch_steps", "hyperparameter",
]  # fmt: skip

Loss = Callable[[Tensor, Tensor], Tensor]  # (output, target) -> (B,), one value a row
Verdict = Literal["continue", "end_stage", "end_run"]
PENALTY = "fathom_penalty"  # attribute of a layer: its own {"l1": strength, "l2": strength}


class Configured:
    """A class whose hyperparameters are class attributes; an instance may override each by keyword."""

    def __init__(self, **options: Any) -> None:
        for cls in type(self).__mro__:
            for name, knob in vars(cls).items():
                if isinstance(knob, Hyperparameter) and name not in vars(self):
                    setattr(self, name, options.pop(name, knob.default))
        if options:
            raise TypeError(unknown("option", next(iter(options)), vars(self), type(self).__name__))


class Field(Configured, ABC):
    """One named input or target, read from one or more columns.

    `fit` sees training rows only. What it learns is `state`, plain JSON, so that a fitted field can be written,
    read and shipped. `encode` is the same code for training, evaluation and serving.

    Args:
        columns: the raw columns that this field reads.
        options: the field's hyperparameters (`data.<kind>.<name>` in a recipe).
    """

    kind: ClassVar[str]
    files: ClassVar[bool] = False  # whether text in its columns names files, which are slow to decode
    headline: ClassVar[str] = ""  # for targets; the metric that is shown while training, training.monitor where empty
    losses: ClassVar[dict[str, Loss]] = {}  # for targets; the first is the default

    def __init__(self, columns: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self.columns = tuple(columns)
        self.options = {name: getattr(self, name) for name in fields[self.kind].hyperparameters}
        self.state: dict[str, Any] = {}
        self.remarks: dict[int, str] = {}  # of the rows last encoded: what was read otherwise than one might think

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one row as a network sees it: what `layer()` returns, less the batch."""

    @property
    def outputs(self) -> tuple[int, ...]:
        """The shape of one row of network output that this field reads when it is a target.

        Raises:
            DataError: this kind of field cannot be a target.
        """
        raise DataError(self._no_target())

    def beside(self, inputs: Mapping[str, Field]) -> None:
        """Told of the inputs that this target stands beside, before any of them is fitted; nothing of most kinds.

        Args:
            inputs: the ones that will be fitted; a source's own may have been made anew with other options since.
        """
        return None

    @abstractmethod
    def fit(self, chunks: Iterable[Columns]) -> None:
        """Learn the state from the training rows, which come in chunks."""

    def begin(self, chunks: Iterable[Columns]) -> None:
        """As much of `fit` as `encode` needs. Where rows are slow to encode, `measure` then learns the rest from encoded ones."""
        self.fit(chunks)

    def measure(self, encoded: Tensor | Ragged) -> None:
        """What `begin` has left, from encoded training rows (N, ...); nothing here, nor of a state that was taken over."""
        return None

    def encoding(self) -> dict[str, Any]:
        """All that decides what `encode` makes, as plain JSON; encoded rows are kept by it. Nothing that only `layer` reads."""
        return {"options": self.options, "state": self.state}

    def adopt(self, earlier: Field, chunks: Iterable[Columns]) -> None:
        """Take over what an earlier field of this kind has learnt, instead of `fit`: a network was trained on it.

        Args:
            earlier: fitted, of the same kind.
            chunks: the training rows, for what describes these rows alone.

        Raises:
            DataError: an option of this field, or its rows, cannot go with the earlier state.
        """
        self.state = dict(earlier.state)

    def is_alike(self, other: Field) -> bool:
        """Whether outputs for this target mean what they mean for another one."""
        return self.kind == other.kind and self.state == other.state

    @property
    def window(self) -> tuple[int, int] | None:
        """(start, length) of the stretch of the series that row i stands for, counted from moment i; None for one value."""
        return None

    @abstractmethod
    def encode(self, columns: Columns, target: bool = False) -> Tensor | Ragged:
        """Turn raw columns into a tensor (N, ...).

        Args:
            columns: raw columns; those of `self.columns` are read.
            target: whether the rows are to be learnt; a missing target is a fault, a missing input is a value.

        Raises:
            RowFaults: some rows cannot be read; it carries the others.
        """

    def layer(self) -> nn.Module:
        """Encoded (B, ...) -> float (B, *shape); exported with the network."""
        return nn.Identity()

    def viewed(self, encoded: Tensor) -> list[Tensor]:
        """The ways in which a deployed model looks at the rows (B, ...), whose outputs are averaged; here one, as they are."""
        return [encoded]

    def moved(self, values: Tensor, matrices: Tensor) -> Tensor:
        """Encoded values after an augmentation has moved the picture of their row.

        Args:
            values: (B, ...) encoded.
            matrices: (B, 2, 3) affine maps of the new picture onto the old, both from -1 to 1, as `affine_grid` reads them.

        Returns:
            (B, ...): places in the picture move along; whatever is no place stays, as here.
        """
        return values

    def decode(self, output: Tensor) -> list[Any]:
        """Network output (B, *outputs) -> one answer a row, ready for JSON.

        Raises:
            DataError: this kind of field cannot be a target.
        """
        raise DataError(self._no_target())

    def metrics(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Every metric that fits this kind of target.

        Args:
            output: (N, *outputs) network output.
            target: (N, ...) encoded target.
            weight: (N,) or (R, N): how often each row counts, in each of R resamples.

        Returns:
            name -> tensor of shape () or (R,).

        Raises:
            DataError: this kind of field cannot be a target.
        """
        raise DataError(self._no_target())

    def _no_target(self) -> str:
        return f"'{self.columns[0]}' is of kind {self.kind}, which cannot be a target here."

    def describe(self) -> str:
        """What was guessed and fitted, in a few words."""
        return ", ".join(self.columns)

    def to_json(self) -> dict[str, Any]:
        """All of the field as plain JSON."""
        return {
            "kind": self.kind,
            "columns": list(self.columns),
            "options": self.options,
            "state": self.state,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Field:
        """The field that `to_json` wrote."""
        made: Field = fields[data["kind"]].make(data["columns"], **data["options"])
        made.state = dict(data["state"])
        return made


@dataclass(frozen=True)
class Schema:
    """The named inputs and targets of a task, and the columns with a special part.

    Args:
        special: group, time, weight, split, sensitive -> column name.
        order: the source's columns that could be inputs, in its order, those left out included; what a row without
            names is read by.
        reading: column -> how its text is read ("number:comma"), where the words alone could mean another number.
    """

    inputs: dict[str, Field]
    targets: dict[str, Field] = field(default_factory=dict)
    special: dict[str, str] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    reading: dict[str, str] = field(default_factory=dict)

    def fields(self) -> dict[str, Field]:
        """Inputs and targets together."""
        return {**self.inputs, **self.targets}

    def to_json(self) -> dict[str, Any]:
        """All of the schema as plain JSON."""
        return {
            "inputs": {name: item.to_json() for name, item in self.inputs.items()},
            "targets": {name: item.to_json() for name, item in self.targets.items()},
            "special": self.special,
            "order": list(self.order),
            "reading": self.reading,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Schema:
        """The schema that `to_json` wrote."""
        return Schema(
            {name: Field.from_json(item) for name, item in data["inputs"].items()},
            {name: Field.from_json(item) for name, item in data["targets"].items()},
            dict(data["special"]),
            tuple(data.get("order", ())),
            dict(data.get("reading", {})),
        )


class Source(ABC):
    """Where raw data comes from: a folder, a file, a frame, arrays, a built-in set.

    Args:
        location: what the user named.
        options: the recipe's `data` section.
    """

    def __init__(self, location: Any, options: Any) -> None:
        self.location = location
        self.options = options

    @classmethod
    @abstractmethod
    def accepts(cls, location: Any, options: Any) -> bool:
        """Whether this source reads `location` under the recipe's `data` section; looks, does not read everything."""

    @abstractmethod
    def columns(self) -> Columns:
        """All raw columns, every split together."""

    @abstractmethod
    def schema(self) -> Schema:
        """The guessed fields, unfitted, with the user's overrides applied."""

    def given_splits(self) -> dict[str, Index]:
        """Splits that the data itself names ("train", "validation", "test" -> rows); empty where it names none."""
        return {}

    def notes(self) -> list[str]:
        """Sentences about what was guessed, skipped or mended, for the console and the report."""
        return []

    def prepare(self, data: Data, seed: int, earlier: Schema | None = None) -> Prepared:
        """All that training and evaluation need: rows, divided, fitted on and encoded. An environment has none.

        Args:
            data: the recipe's table.
            seed: of the division.
            earlier: fitted on rows that came before, whose fields stay as they are.
        """
        from fathom.core.prepare import prepare  # which reads this file

        return prepare(self, data, seed, earlier)


class Model(nn.Module):
    """The one boundary between named batches and plain tensors.

    Each input goes through its field's layer, the network gets the results in order, and its output is cut into the
    targets: a tensor is split along its last dimension, a tuple is matched in order, a dict is taken by name.
    A network of several members (its `members` says how many) answers for each of them while it trains, (B, members, ...),
    so that each can be judged by itself, and with one voice in evaluation.
    Beside batches it takes the encoded inputs as plain tensors, in order, and then answers plainly where it has one target.

    Args:
        schema: the role's inputs and targets, fitted.
        module: a network on plain tensors; a user's own is treated alike.
    """

    def __init__(self, schema: Schema, module: nn.Module) -> None:
        super().__init__()
        self.input_names = tuple(schema.inputs)
        self.target_shapes = {name: target.outputs for name, target in schema.targets.items()}
        self.preprocess = nn.ModuleList([item.layer() for item in schema.inputs.values()])
        self.module = module
        self.rests = False  # the body, while its head alone learns; seen at every change of mode, which a stage begins with

    def forward(self, batch: Batch | Tensor, *more: Tensor) -> Any:
        """Named encoded inputs -> output (B, *outputs) by target name; plain tensors -> the output of the one target."""
        if isinstance(batch, Tensor):
            return self._plain(batch, *more)
        if FEATURES in batch:
            return self.split(self.module.decide(batch[FEATURES]))  # type: ignore[operator]
        if self.rests and self.training:  # the body as it is where its features are kept
            with at_rest(self.module):
                features = self.features(batch)
            return self.split(self.module.decide(features))  # type: ignore[operator]
        return self.split(self.module(*self._inputs(batch)))

    def train(self, mode: bool = True) -> Model:
        """Training mode, but for parts that are frozen: their normalization and dropout stay as in evaluation."""
        super().train(mode)
        if mode:  # a model that is all frozen comes here again, to be put into evaluation mode
            rest_frozen(self)
        self.rests = head_alone(self.module)
        return self

    def features(self, batch: Batch) -> Tensor:
        """(B, D) what the head reads, of a network that can be cut in two (see `features`)."""
        made: Tensor = self.module.features(*self._inputs(batch))  # type: ignore[operator]
        return made

    def _inputs(self, batch: Batch) -> list[Tensor]:
        return [layer(batch[name]) for name, layer in zip(self.input_names, self.preprocess, strict=True)]

    def _plain(self, *tensors: Tensor) -> Any:
        if len(tensors) != len(self.input_names):
            names = ", ".join(self.input_names)
            raise DataError(f"The network reads {names}, but {len(tensors)} tensors came. Give one for each, in this order.")
        made = self.forward(dict(zip(self.input_names, tensors, strict=True)))
        return next(iter(made.values())) if len(made) == 1 else made

    def split(self, output: Any) -> Batch:
        """Cut what the network returned into the targets."""
        shapes = self.target_shapes
        if isinstance(output, Mapping):
            return {name: output[name] for name in shapes}
        lead = 2 if self.module.training and hasattr(self.module, "members") else 1  # of rows, and of members
        if isinstance(output, Tensor) and len(shapes) == 1:
            ((name, shape),) = shapes.items()
            return {name: output.reshape(*output.shape[:lead], *shape)}
        if isinstance(output, Tensor):
            sizes = [int(np.prod(shape)) for shape in shapes.values()]
            output = output.split(sizes, dim=-1)
        parts = zip(shapes.items(), output, strict=True)
        return {name: part.reshape(*part.shape[:lead], *shape) for (name, shape), part in parts}


@dataclass(frozen=True)
class Stage:
    """One stretch of training.

    Args:
        name: shown in the log.
        steps: batches to consume.
        data: the rows, or an environment.
        rates: parameter glob -> multiple of the learning rate; 0 freezes.
        augment: whether its rows are augmented, where the recipe augments.
    """

    name: str
    steps: int
    data: Any
    rates: Mapping[str, float] = field(default_factory=lambda: {"*": 1.0})
    augment: bool = True


@dataclass
class Clock:
    """Where training is. A step is one batch consumed.

    Args:
        stage: number of the stage, from 0.
        step: steps done within the stage.
        steps: steps of the stage.
        total: steps done in all stages.
        rows: rows consumed.
        environment_steps: actions taken, where there is an environment.
        seconds: wall time of training, earlier sessions included.
        replans: (step, the end as it was planned there) of the last stage, where minutes are to be kept.
    """

    stage: int = 0
    step: int = 0
    steps: int = 1
    total: int = 0
    rows: int = 0
    environment_steps: int = 0
    seconds: float = 0.0
    replans: list[tuple[int, int]] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The step at which the stage ends, as far as is known now."""
        return self.replans[-1][1] if self.replans else self.steps

    @property
    def progress(self) -> float:
        """How much of the stage is done, 0 to 1; what a schedule reads. From a new plan on it goes straight to its end."""
        done, last, end = 0.0, 0, max(self.steps, 1)
        for step, planned in self.replans:
            done, last, end = done + (1 - done) * (step - last) / (end - last), step, planned
        return done + (1 - done) * (self.step - last) / (end - last)


@dataclass(frozen=True)
class Context:
    """All that an algorithm is built from.

    Args:
        schema: fitted inputs and targets.
        models: one model a role.
        recipe: the resolved recipe.
        clock: shared with the loop and the optimizers.
        device: where tensors live.
        transform: (batch, step, epoch) -> batch, the recipe's augmentations; None where there are none.
        regularizers: penalties that the algorithm adds to its loss.
        losses: target -> the user's own loss, where one was given.
        class_weights: target -> (K,) weight of each class, from the training rows.
        environment: where an agent acts; None where rows are learnt.
    """

    schema: Schema
    models: dict[str, Model]
    recipe: Recipe
    clock: Clock
    device: torch.device
    transform: Callable[[Batch, int, int], Batch] | None = None
    regularizers: tuple[Regularizer, ...] = ()
    losses: Mapping[str, Loss] = field(default_factory=dict)
    class_weights: Mapping[str, Tensor] = field(default_factory=dict)
    environment: Environment | None = None


class Algorithm(Configured, ABC):
    """How something is learnt. `step` is the one method that every algorithm writes.

    Attributes:
        models: one a role.
        optimizers: by name; the only place where gradients are taken into weights.
        regularizers: compose with any gradient algorithm.
        saved: names of further attributes that decide what happens next, each a tensor, JSON, or an object with
            `state_dict` and `load_state_dict`.
        divisible: false where the loss couples rows, so that a batch must not be cut.
        cycle: steps after which its work repeats; a trial times whole cycles.
        notes: sentences for the user about what happened in training.
    """

    saved: ClassVar[tuple[str, ...]] = ()
    divisible: ClassVar[bool] = True
    cycle: int = 1
    optimizers: dict[str, Optimizer]

    def __init__(self, context: Context, **options: Any) -> None:
        super().__init__(**options)
        self.context = context
        self.schema = context.schema
        self.models = context.models
        self.regularizers = context.regularizers
        self._kept: tuple[tuple[int, int], TensorSet, TensorSet] | None = None  # see `_watched`
        self.notes: list[str] = []
        self.optimizers = {}
        self.build()

    @classmethod
    def roles(cls, schema: Schema) -> dict[str, Schema]:
        """The networks it needs, each with what goes in and out."""
        return {"model": schema}

    @abstractmethod
    def build(self) -> None:
        """Make the optimizers and whatever else lasts; called once, at the end of `__init__`."""

    def stages(self, data: Mapping[str, TensorSet]) -> list[Stage]:
        """What is trained on, and for how long. Pure: the same answer at every call.

        Default: the recipe's [[stage]] tables on the training rows, or one stage where it has none, with the rates that
        the network itself states (`rates`, as those of a stage).
        """
        recipe = self.context.recipe
        if not recipe.stage:
            return [Stage("train", recipe.training.planned_steps(), data["train"], self._own_rates())]
        return [
            Stage(table.name, table.planned_steps(), data["train"], dict(table.rates), table.augment)
            for table in recipe.stage
        ]

    def _own_rates(self) -> dict[str, float]:
        """What the one network states of its own layers."""
        model = next(iter(self.models.values())) if len(self.models) == 1 else None
        return dict(getattr(model.module, "rates", None) or {"*": 1.0}) if model else {"*": 1.0}

    def served(self, data: TensorSet, rates: Mapping[str, float]) -> TensorSet:
        """The rows, with the features that the frozen body of the one network makes of them, computed once.

        Args:
            data: rows of any split.
            rates: of the stage; the rows stay as they are where more than the head learns.
        """
        model = next(iter(self.models.values())) if len(self.models) == 1 else None
        if model is None or not only_head(model, rates):
            return data
        recipe = self.context.recipe
        return Served(data, model, recipe.data.memory, Device(self.context.device, recipe.training.precision or "float32"))

    def rows(self, stage: Stage) -> TensorSet:
        """The rows of a stage, with features where its body is frozen and nothing is augmented."""
        augmented = self.context.transform is not None and stage.augment
        data: TensorSet = stage.data if augmented else self.served(stage.data, stage.rates)
        return data

    @classmethod
    def epoch(cls, schema: Schema, data: TensorSet, training: Training) -> int:
        """Batches of one pass over the training rows."""
        return Epochs(data, training.rows_per_batch(), training.seed, training.tokens).steps

    def batches(self, stage: Stage, start: int) -> Iterator[Batch]:
        """Endless batches, from step `start` on. Default: shuffled and augmented rows, each once an epoch.

        Where all but the head is frozen and nothing is augmented, they hold the features that it reads.
        """
        training, device = self.context.recipe.training, self.context.device
        transform = self.context.transform if stage.augment else None
        data = self.rows(stage)
        classes = self._classes(stage.data) if training.sampling == "balanced" else None
        epochs = Epochs(stage.data, training.rows_per_batch(), training.seed, training.tokens, classes)
        cuts: tuple[Tensor, ...] = ()
        for step in count(start):
            epoch, position = divmod(step, epochs.steps)
            if not cuts or position == 0:
                cuts = epochs.cuts(epoch)
            batch = data.batch(cuts[position])
            if device.type != "cpu":
                batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            yield transform(batch, step, epoch) if transform else batch

    def _classes(self, data: TensorSet) -> Tensor:
        """(N,) the class of each row, by the first target that has classes."""
        name = next(name for name, target in self.schema.targets.items() if target.kind == "category")
        truth = data.column(name)
        return (truth.argmax(1) if truth.ndim == 2 else truth).cpu()

    @abstractmethod
    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Learn from one batch; return detached numbers to log, "loss" among them."""

    def validate(self, data: TensorSet) -> dict[str, float]:
        """What is watched on the validation rows, "loss" among it; nothing where an algorithm has none to watch."""
        return {}

    def example(self, batch: Batch) -> Batch:
        """Rows as the models read them, where they read more than columns hold (noise, say)."""
        return batch

    def watched(self, data: TensorSet) -> TensorSet:
        """The validation rows, with features that are kept as long as a stage lasts."""
        key = (self.context.clock.stage, id(data))
        if self._kept is None or self._kept[0] != key:
            rates = next(iter(self.optimizers.values())).rates if self.optimizers else {"*": 1.0}
            self._kept = (key, self.served(data, rates), data)
        return self._kept[1]

    def finish(self, stage: Stage) -> None:
        """A stage has ended."""
        for regularizer in self.regularizers:
            regularizer.finish(stage)

    def settle(self, data: Mapping[str, TensorSet]) -> None:
        """The weights are final: fix what hangs on them before they are judged and written (a threshold, say)."""
        return None

    @classmethod
    @abstractmethod
    def deploy(cls, schema: Schema, models: Mapping[str, Model]) -> Predictor:
        """What is deployed, from the trained models alone; the same after training and after loading."""

    def predictor(self) -> Predictor:
        """What is deployed, as it stands now."""
        return self.deploy(self.schema, self.models)

    def told(self) -> dict[str, Any]:
        """What it adds to results.json, as plain JSON; nothing where rows tell all."""
        return {}


class Regularizer(Protocol):
    """A term that composes with any gradient algorithm."""

    def batch(self, batch: Batch) -> Batch:
        """The batch, changed or not (replay adds rows)."""
        ...

    def penalty(self, models: Mapping[str, Model], batch: Batch, outputs: Batch) -> Tensor | float:
        """What is added to the loss."""
        ...

    def finish(self, stage: Stage) -> None:
        """A stage has ended."""
        ...


@dataclass(frozen=True)
class Sampler:
    """How rows are made from nothing.

    Args:
        draw: (n, generator) -> codes (n, D) from the distribution that training assumed.
        make: (codes (n, D), conditions) -> what `decode` reads of n rows, by target; conditions are encoded (n, ...) by
            the name of their input.
        conditions: the inputs that say what is to be made.
    """

    draw: Callable[[int, torch.Generator], Tensor]
    make: Callable[[Tensor, Batch], Batch]
    conditions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Predictor:
    """All that analysis and delivery may see of what was learnt.

    Args:
        schema: fitted inputs and targets.
        layers: name -> module, for explanation.
        forward: batch -> outputs by target; differentiable, evaluation mode.
        answer: batch -> what `decode` reads; `forward` where None.
        stream: batch -> outputs as they are made, where the answer is a sequence.
        scores: name -> (batch -> (B,)).
        sampler: how it makes rows from nothing; None where it cannot.
    """

    schema: Schema
    layers: Mapping[str, nn.Module]
    forward: Callable[[Batch], Batch]
    answer: Callable[..., Batch] | None = None
    stream: Callable[..., Iterator[Batch]] | None = None
    scores: Mapping[str, Callable[[Batch], Tensor]] = field(default_factory=dict)
    sampler: Sampler | None = None

    def outputs(self, data: TensorSet, size: int = 512) -> Batch:
        """The output of every row, on the CPU.

        Args:
            data: N encoded rows.
            size: rows at a time, at most: fewer where they are large, so that what is computed of them stays in fast memory.

        Returns:
            target -> (N, *outputs).
        """
        answer = self.answer or self.forward
        device = next((p.device for layer in self.layers.values() for p in layer.parameters()), torch.device("cpu"))
        size = min(size, rows_at_a_time(data, device))
        parts: dict[str, list[Tensor]] = {name: [] for name in self.schema.targets}
        with torch.inference_mode():
            for batch in data.batches(size):
                moved = {name: tensor.to(device) for name, tensor in batch.items()}
                for name, output in answer(moved).items():
                    parts[name].append(output.float().cpu() if output.is_floating_point() else output.cpu())
        return {name: _joined(pieces) for name, pieces in parts.items()}


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    """The rows of all pieces; written texts (B, T) of unequal length are filled up with zeros."""
    if len({piece.shape[1:] for piece in pieces}) == 1:
        return torch.cat(list(pieces))
    return nn.utils.rnn.pad_sequence([row for piece in pieces for row in piece], batch_first=True)


class Callback(Protocol):
    """Watches training. Reads, never writes (but `Clock.replans`, to keep to minutes), and leaves the random state as it was."""

    def after_step(self, clock: Clock, metrics: Mapping[str, Tensor], models: Mapping[str, Model]) -> Verdict:
        """One batch was consumed."""
        ...

    def after_stage(self, clock: Clock, models: Mapping[str, Model]) -> None:
        """A stage has ended."""
        ...

    def at_end(self, clock: Clock, models: Mapping[str, Model]) -> None:
        """Training has ended."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What must survive a kill."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        ...
