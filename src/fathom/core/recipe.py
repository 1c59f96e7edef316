"""The recipe: one complete value that says what a run does, in six kinds of table.

    [data] [network] [training] [augment] [[stage]] and one table named after the algorithm

The same keys stand in a TOML file, on the command line (`training.epochs=5`), in Python and in the tuner. `None` means
"Fathom decides"; what it decided is written back, so that the recipe of a finished run repeats it. All faults of a
recipe are named at once.

    Recipe.parse(tree)    checked   from nested dicts
    Recipe.read(path)     checked   from TOML
    merge(tree, changes)  dotted keys over a tree; core/flags.py names the short forms
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from datetime import time as clock_time
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)
from pydantic.json_schema import SkipJsonSchema

from fathom.core import registry
from fathom.core.errors import FathomError, RecipeError, nearest, unknown
from fathom.core.flags import FLAGS

BUDGETS = ("training.epochs", "training.steps", "training.minutes", "training.environment_steps")

Share = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A table of the recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Data(Section):
    """What is learnt from what, and how rows are divided."""

    location: str | None = Field(None, description="folder, file or name of a built-in set")
    target: list[str] | None = Field(None, description="columns to predict; guessed where None, nothing is predicted where []")
    input: list[str] | None = Field(None, description="columns to learn from; all others where None, none where []")
    types: dict[str, str] = Field({}, description="column -> number, category, image, labels, text or ignore")
    compare: list[str] | None = Field(
        None, description="columns of known scores: never inputs, each a baseline of its own on the test rows"
    )
    group: str | None = Field(None, description="column whose equal values stay in one split")
    time: str | None = Field(None, description="column that orders the rows; the last become the test split")
    horizon: PositiveInt | None = Field(None, description="moments to forecast; the rows are then a series")
    weight: str | None = Field(None, description="column that says how much each row counts")
    validation: Share | str | None = Field(None, description="share of the rows, or a file or folder; 0.1 where None")
    test: Share | str | None = Field(None, description="share of the rows, or a file or folder; 0.2 where None")
    limit: PositiveInt | None = Field(None, description="use only this many rows, drawn by the seed")
    per_class: PositiveInt | None = Field(
        None, description="learn from only this many rows of each class, drawn by the seed; the other splits stay whole"
    )
    split_seed: int | None = Field(None, ge=0, lt=2**31, description="of the division; training.seed where None")
    fold: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="[k, K]: the test rows are the k-th of K parts, as in a member of training.folds"
    )
    bad_rows: Probability = Field(0.01, description="share of unreadable rows that may be left out")
    memory: PositiveFloat = Field(
        4.0, description="GiB of encoded data, or of the features of a frozen body, kept in memory; more is memory-mapped"
    )
    environment: dict[str, Any] = Field({}, description="options of a gymnasium environment")
    download: bool = Field(False, description="fetch a built-in set that is not on this machine")
    fields: dict[str, dict[str, Any]] = Field({}, description="options of each kind of field")


class Training(Section):
    """How it is learnt."""

    algorithm: str | None = Field(None, description="how it is learnt; supervised where there is a target")
    epochs: PositiveFloat | None = Field(None, description="passes over the training rows")
    steps: PositiveInt | None = Field(None, description="batches in all")
    minutes: PositiveFloat | None = Field(None, description="wall time of training")
    environment_steps: PositiveInt | None = Field(None, description="actions in all, where an agent learns by acting")
    stop_after: PositiveInt | None = Field(
        None, description="steps after which the minutes were over, so that a repeat ends there too"
    )
    replans: list[tuple[PositiveInt, PositiveInt]] | None = Field(
        None, description="step of the last stage, and where it was then planned to end so that the minutes were kept"
    )
    batch: PositiveInt | None = Field(None, description="rows a step")
    tokens: PositiveInt | None = Field(None, description="tokens a step, filling included, instead of rows (texts)")
    sampling: Literal["shuffled", "balanced"] = Field(
        "shuffled", description="each row once an epoch, or drawn so that every class comes equally often"
    )
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop", "muon"] = "adamw"
    learning_rate: PositiveFloat | None = Field(None, description="the largest rate of the schedule")
    momentum: Probability = Field(0.9, description="of sgd, rmsprop and muon")
    beta1: Probability = Field(0.9, description="of adam, adamw: how much of the mean gradient each step keeps")
    beta2: Probability = Field(0.999, description="of adam, adamw: how much of the mean squared gradient each step keeps")
    nesterov: bool = Field(True, description="look-ahead momentum, sgd and muon")
    vector_rate: PositiveFloat = Field(
        1.0, description="of muon: the rate of what is no hidden matrix (biases, embeddings, head), as a multiple of the others'"
    )
    schedule: Literal["constant", "step", "cosine", "linear", "one_cycle"] = "one_cycle"
    warmup: Probability = Field(0.0, description="share of the steps in which the rate rises; one_cycle: 0.3 where 0")
    weight_decay: NonNegativeFloat = Field(0.0, description="decoupled; matrices and filters only")
    l1: NonNegativeFloat = Field(0.0, description="penalty: l1 times the sum of |w|")
    l2: NonNegativeFloat = Field(0.0, description="penalty: l2 times the sum of w squared")
    label_smoothing: Probability = 0.0
    clip: PositiveFloat | None = Field(None, description="largest norm of the gradient")
    average: Probability = Field(0.0, description="decay of the moving average of the weights; 0 keeps none")
    early_stopping: int = Field(0, ge=0, description="epochs without progress before the end; 0 never stops")
    keep: Literal["best", "last", "average"] | None = Field(None, description="which weights are deployed")
    monitor: str = Field("loss", description="validation metric that decides what is best")
    seed: int = Field(0, ge=0, lt=2**31)
    seeds: PositiveInt = Field(
        1, description="train this many members, with seed, seed + 1, ...; with folds each divides the rows anew"
    )
    folds: PositiveInt = Field(1, description="cross-validate over this many parts")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    threads: PositiveInt | None = Field(None, description="CPU threads; a short trial decides where None")
    precision: Literal["float32", "bfloat16"] | None = Field(
        None, description="of matrix work in training; a short trial decides for pictures where None"
    )
    checkpoint_seconds: NonNegativeFloat = Field(
        60.0, description="at most this much work is lost; 0 saves at every step"
    )
    name: str | None = Field(None, description="of the run folder")
    out: str = Field("runs", description="where run folders are made")

    def planned_steps(self) -> int:
        """Steps of a resolved recipe."""
        assert self.steps is not None, "the recipe is not resolved"
        return self.steps

    def rows_per_batch(self) -> int:
        """Rows a step of a resolved recipe."""
        assert self.batch is not None, "the recipe is not resolved"
        return self.batch


class StageTable(Section):
    """One stretch of training; stages follow each other, each with a schedule of its own.

    It says how long it takes in epochs, in steps, or as a share of the steps of the whole (`training` then says how long
    that is); a resolved stage of a share says its steps as well.
    """

    name: str = "train"
    epochs: PositiveFloat | None = None
    steps: PositiveInt | None = None
    share: float | None = Field(None, gt=0, le=1, description="of all steps; the shares of all stages add up to 1")
    augment: bool = Field(True, description="whether its rows are augmented, where the recipe augments")
    rates: dict[str, NonNegativeFloat] = Field(
        {"*": 1.0}, description="parameter glob, as in `fathom plan` -> multiple of the rate; the last match counts"
    )

    def planned_steps(self) -> int:
        """Steps of a resolved recipe."""
        assert self.steps is not None, "the recipe is not resolved"
        return self.steps


class Recipe(Section):
    """All that a run is made from."""

    data: Data = Data()
    network: dict[str, Any] = {}
    training: Training = Training()
    augment: dict[str, Any] = {}
    stage: list[StageTable] = []
    algorithm: SkipJsonSchema[dict[str, Any]] = {}  # the table named after the algorithm

    @staticmethod
    def parse(tree: Mapping[str, Any], where: str = "") -> Recipe:
        """Check nested tables and fill in defaults.

        Args:
            tree: section -> table.
            where: the file it came from, for errors.

        Raises:
            RecipeError: names every fault at once.
        """
        faults: list[str] = []
        tree = {name: dict(table) if isinstance(table, Mapping) else table for name, table in tree.items()}
        training = _section(Training, tree.pop("training", {}), "training", faults)
        if training and training.tokens and training.sampling == "balanced":
            faults.append(
                "training.tokens cuts the very rows of an epoch into batches, and training.sampling = balanced draws others in "
                "each; leave one out. training.batch is a number of rows."
            )
        name = training.algorithm if training else None
        if name is not None and name not in registry.algorithms:
            faults.append(unknown("algorithm", name, registry.algorithms.names(), "training.algorithm"))
            name = None
        data = _section(Data, _field_options(tree.pop("data", {}), faults), "data", faults)
        network = _network(tree.pop("network", {}), faults)
        augment = _augment(tree.pop("augment", {}), faults)
        stages = _stages(tree.pop("stage", []), training, faults)
        if training and name is None and (named := [key for key in tree if key in registry.algorithms]):
            name = named[0]  # its own table names it
            training = training.model_copy(update={"algorithm": training.algorithm or name})
        algorithm = _algorithm(tree, name, faults)
        known = ["data", "network", "training", "augment", "stage", *registry.algorithms.names()]
        faults += [_no_section(key, tree[key], known) for key in tree]
        if faults:
            raise RecipeError([f"{where}: {fault}" if where else fault for fault in faults])
        return Recipe(data=data, network=network, training=training, augment=augment, stage=stages, algorithm=algorithm)

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """The tables of a TOML file, unchecked."""
        try:
            return tomllib.loads(path.read_text("utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise FathomError(f"{path} is not valid TOML: {error}.") from error
        except OSError as error:
            raise FathomError(f"The recipe {path} cannot be read: {error.strerror or error}.") from error
        except UnicodeDecodeError as error:
            raise FathomError(f"The recipe {path} cannot be read: it is not UTF-8 text ({error.reason}).") from error

    def tables(self) -> dict[str, Any]:
        """The recipe as nested tables, less what is None or empty; `parse` reads it back."""
        tree = self.model_dump(mode="json", exclude_none=True)
        tree["data"].update(tree["data"].pop("fields"))
        algorithm = tree.pop("algorithm")
        if algorithm and self.training.algorithm:
            tree[self.training.algorithm] = algorithm
        return {name: table for name, table in _without_none(tree).items() if table}

    def toml(self) -> str:
        """The recipe as TOML."""
        return tomli_w.dumps(self.tables())

    def change(self, changes: Mapping[str, Any]) -> Recipe:
        """A checked copy with dotted keys replaced."""
        return Recipe.parse(merge(self.tables(), changes))


def _no_section(name: str, table: Any, known: Sequence[str]) -> str:
    """The sentence for a section that is not there; options of fields stand in `data`."""
    if name not in registry.fields:
        return unknown("section", name, known)
    key = ".".join([name, *list(table)[:1]]) if isinstance(table, Mapping) else name
    return f"There is no section '{name}'. Did you mean 'data.{key}'? Options of a kind of field stand in data."


def _without_none(value: Any) -> Any:
    """Less what is None, and less tables that are empty."""
    if isinstance(value, dict):
        inner = {k: _without_none(v) for k, v in value.items() if v is not None}
        return {k: v for k, v in inner.items() if v != {}}
    return value


def _section(model: type[Any], table: Any, where: str, faults: list[str]) -> Any:
    if not isinstance(table, Mapping):
        faults.append(f"{where} should be a table, but {table!r} came.")
        return None
    truths = registry.truth_faults(table, {key: info.annotation for key, info in model.model_fields.items()}, where)
    if truths:
        faults += truths
        return None
    try:
        return model.model_validate(dict(table))
    except ValidationError as error:
        seen = set()
        for fault in error.errors():
            if fault["type"] == "extra_forbidden":
                key = str(fault["loc"][-1])
                faults.append(unknown("key", f"{where}.{key}", [f"{where}.{name}" for name in model.model_fields]))
            elif fault["loc"][0] not in seen:  # a union reports one fault an alternative
                faults.append(_explain(where, fault, [f for f in error.errors() if f["loc"][0] == fault["loc"][0]]))
            seen.add(fault["loc"][0])
        return None


def _explain(where: str, fault: Any, alternatives: Sequence[Any]) -> str:
    """One wrong value: what came, what is allowed, the nearest."""
    messages = list(dict.fromkeys(str(f["msg"]).removeprefix("Input should be ") for f in alternatives))
    if fault["loc"][0] in ("validation", "test"):
        messages = [message.replace("a valid string", "a file or folder") for message in messages]
    text = registry.sentence(where, {**fault, "loc": fault["loc"][:1], "msg": ", or ".join(messages)})
    choices = [
        part.strip(" '") for part in str(fault.get("ctx", {}).get("expected", "")).replace(" or ", ",").split(",")
    ]
    guess = nearest(str(fault.get("input")), choices) if fault["type"] == "literal_error" else None
    return f"{text} Did you mean '{guess}'?" if guess else text


def _share_or_path(value: Any) -> Any:
    """A flag brings text: "0.3" is a share, all else a path, which then holds from anywhere as the location does."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        path = os.path.expandvars(os.path.expanduser(value))
        return str(Path(path).resolve()) if Path(path).exists() else path


def _field_options(table: Any, faults: list[str]) -> Any:
    """Move `data.<kind>` tables into `data.fields`, checked against the field's hyperparameters."""
    if not isinstance(table, Mapping):
        return table
    plain, options = dict(table), {}
    fields = plain.pop("fields", {})
    if isinstance(fields, Mapping):
        options = dict(fields)
    else:
        faults.append(f"data.fields should be a table, but {fields!r} came.")
    for key in [key for key in plain if key in registry.fields]:
        options[key] = plain.pop(key)
    for kind, given in options.items():
        if kind not in registry.fields:
            faults.append(unknown("kind of field", kind, registry.fields.names(), "data"))
        elif not isinstance(given, Mapping):
            faults.append(f"data.{kind} should be a table, but {given!r} came.")
        else:
            faults += registry.fields[kind].options(given, f"data.{kind}")[1]
    for key in ("target", "input", "compare"):
        if isinstance(plain.get(key), str):
            plain[key] = [name.strip() for name in plain[key].split(",")]
        elif isinstance(plain.get(key), int) and not isinstance(plain[key], bool):
            plain[key] = [str(plain[key])]  # a frame may number its columns
        elif isinstance(plain.get(key), list | tuple):
            plain[key] = [str(name) if isinstance(name, int) else name for name in plain[key]]
    for key in ("validation", "test"):
        if key in plain:
            plain[key] = _share_or_path(plain[key])
    return {**plain, "fields": options}


def _network(table: Any, faults: list[str]) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        faults.append(f"network should be a table, but {table!r} came.")
        return {}
    given = dict(table)
    beginning = _beginning(given, faults)
    name = network_name(given)
    if name is None or name == OWN:
        return {**given, **beginning}
    if not isinstance(name, str):
        faults.append(f"network.name = {name!r} is not allowed: it should be one name, as in network.name=mlp.")
        return given
    if name not in registry.networks:
        faults.append(unknown("network", str(name), registry.networks.names(), "network.name"))
        return given
    options = {key: value for key, value in given.items() if key != "name"}
    complete, wrong = registry.networks[name].options(options, "network")
    faults += wrong
    return {"name": name, **beginning, **complete}


def _beginning(given: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    """Take `from` out of a network's table, which is no option of any network; a path holds from anywhere."""
    location = given.pop(FROM, None)
    if location is None:
        return {}
    if not isinstance(location, str | os.PathLike) or not str(location).strip():
        faults.append(f"network.from = {location!r} is not allowed: it should be a run folder or a .safetensors file.")
        return {}
    path = os.path.expandvars(os.path.expanduser(os.fspath(location)))
    return {FROM: str(Path(path).resolve()) if Path(path).exists() else path}


def options_of(table: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters in a network's table: all of it but its name and where its weights come from."""
    return {key: value for key, value in table.items() if key not in ("name", FROM)}


def network_name(table: Mapping[str, Any]) -> Any:
    """The network that a table names: by its name, or by a list of layers; None where Fathom decides.

    How many layers another network has (`network.layers=2`) is a number, and names none.
    """
    listed = not isinstance(table.get("layers", 1), int)
    return table.get("name") or ("layers" if listed else None)


OWN = "own"  # the name of a module that the user handed over
FROM = "from"  # key of the network's table: the run or file whose weights it begins with


def _augment(table: Any, faults: list[str]) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        faults.append(f"augment should be a table, but {table!r} came.")
        return {}
    for name, strength in table.items():
        if name not in registry.augmentations:
            faults.append(unknown("augmentation", name, registry.augmentations.names(), "augment"))
            continue
        low, high = registry.augmentations[name].about["range"]
        number = isinstance(strength, int | float) and not isinstance(strength, bool)
        if not (number and low <= strength <= high):
            faults.append(f"augment.{name} = {strength!r} is not allowed: it should be from {low} to {high}.")
        elif isinstance(low, int) and strength != int(strength):
            faults.append(f"augment.{name} = {strength!r} is not allowed: it counts pixels, so give a whole number.")
    return dict(table)


def _algorithm(tree: dict[str, Any], name: str | None, faults: list[str]) -> dict[str, Any]:
    for other in [key for key in tree if key in registry.algorithms]:
        if name is not None and other != name:
            faults.append(f"The table [{other}] has no meaning here: the algorithm is {name}.")
        given = tree.pop(other)
        if not isinstance(given, Mapping):
            faults.append(f"{other} should be a table, but {given!r} came.")
            continue
        options, wrong = registry.algorithms[other].options(given, other)
        faults += wrong
        return options
    return registry.algorithms[name].options({}, name)[0] if name else {}


def _stages(tables: Any, training: Training | None, faults: list[str]) -> list[Any]:
    """Stages, each of which says how long it takes; so `training` must not say it as well."""
    if not isinstance(tables, list):
        faults.append(f"stage should be a list of tables, but {tables!r} came.")
        return []
    stages = [_section(StageTable, table, f"stage[{i}]", faults) for i, table in enumerate(tables)]
    for i, stage in enumerate(stages):
        if stage is not None and not _says_how_long(stage):
            faults.append(f"stage[{i}] should say how long it takes, in epochs or in steps, or as a share of all steps.")
    shares = [stage.share for stage in stages if stage is not None and stage.share is not None]
    if shares:
        faults += _wrong_shares(shares, len(stages))
        return stages
    total = sum((stage.steps or 0) for stage in stages if stage is not None)
    for key in ("epochs", "steps", "minutes") if stages and training else ():
        value = getattr(training, key)
        if value is not None and (key, value) != ("steps", total):
            faults.append(f"training.{key} has no meaning beside [[stage]] tables, which say how long each takes.")
    return stages


def _says_how_long(stage: StageTable) -> bool:
    """In one way; the steps of a share are worked out, and written beside it."""
    if stage.share is not None:
        return stage.epochs is None
    return (stage.epochs is None) != (stage.steps is None)


def _wrong_shares(shares: Sequence[float], stages: int) -> list[str]:
    if len(shares) < stages:
        return ["Some [[stage]] tables take a share of all steps and others say their own length; use one way for all."]
    if abs(sum(shares) - 1) > 1e-6:
        return [f"The shares of the [[stage]] tables add up to {sum(shares):g}; make them add up to 1."]
    return []


def in_shares(stages: Sequence[Any]) -> bool:
    """Whether stages (tables, checked or not) divide a budget that `training` states."""
    return any((s.get("share") if isinstance(s, Mapping) else getattr(s, "share", None)) is not None for s in stages)


def divided(total: int, shares: Sequence[float]) -> list[int]:
    """Steps of each stage: at least one, and `total` in all where that is enough.

    >>> divided(10, [0.3, 0.7]), divided(2, [0.8, 0.2]), divided(1, [0.3, 0.7])
    ([3, 7], [1, 1], [1, 1])
    """
    stages = len(shares)
    wanted = [round(total * sum(shares[: i + 1])) for i in range(stages)]
    ends = [min(max(end, i + 1), max(total, stages) - (stages - 1 - i)) for i, end in enumerate(wanted)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _without_steps(table: Any) -> Any:
    """A stage of a share, whose steps follow from a budget that has changed."""
    return {k: v for k, v in table.items() if k != "steps"} if isinstance(table, Mapping) else table


def merge(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` (dotted key -> value) over `tree`; a new budget replaces the others.

    >>> merge({"training": {"epochs": 5}}, {"training.steps": 10})
    {'training': {'steps': 10}}
    """
    wrong = [key for key in ("data", "network", "training", "augment") if not isinstance(tree.get(key, {}), Mapping)]
    if wrong:
        raise RecipeError([f"{key} should be a table, but {tree[key]!r} came." for key in wrong])
    result: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in tree.items()}
    if any(change in BUDGETS for change in changes):
        for key in (*BUDGETS, "training.stop_after", "training.replans"):
            result.get("training", {}).pop(key.removeprefix("training."), None)
        if isinstance(stages := result.get("stage"), list) and in_shares(stages):
            result["stage"] = [_without_steps(table) for table in stages]
    if "network.name" in changes and changes["network.name"] != result.get("network", {}).get("name"):
        result["network"] = {key: value for key, value in result.get("network", {}).items() if key == FROM}
    for key, value in changes.items():
        *path, last = key.split(".")
        if not path:
            raise FathomError(f"'{key}' is not a key of a recipe; write section.key=value, as in training.epochs=5.")
        table = result
        for i, part in enumerate(path):
            inner = table.get(part)
            if inner is not None and not isinstance(inner, Mapping):
                raise FathomError(f"'{key}' cannot be set: '{'.'.join(path[: i + 1])}' is not a table.")
            table[part] = dict(inner or {})
            table = table[part]
        table[last] = value
    return result


def parse_assignment(text: str) -> tuple[str, Any]:
    """`section.key=value` -> (key, value). The value is read as TOML; what is not TOML is text or a list of words.

    >>> parse_assignment("training.l2=1e-3"), parse_assignment("network.hidden=64,32"), parse_assignment("data.target=y")
    (('training.l2', 0.001), ('network.hidden', [64, 32]), ('data.target', 'y'))
    """
    key, sign, raw = text.partition("=")
    if not sign or "." not in key:
        full = next(_full_keys(key.strip()), None) if sign else None
        hint = f" Did you mean {full}={raw}?" if full else ""
        raise FathomError(f"'{text}' is not understood; write section.key=value, as in training.epochs=5.{hint}")
    for candidate in (raw, f"[{raw}]") if "," in raw and not raw.startswith("[") else (raw,):
        try:
            tables = tomllib.loads(f"value = {candidate}")
        except tomllib.TOMLDecodeError:
            continue
        # A number ends where a comment or a line begins, and a date is a type of its own; here all of it is text.
        whole = isinstance(tables["value"], str | list | dict) or not {"#", "\n"} & set(candidate)
        if whole and not isinstance(tables["value"], date | clock_time):
            return key.strip(), tables["value"]
    return key.strip(), [word.strip() for word in raw.split(",")] if "," in raw else raw.strip()


def _full_keys(key: str) -> Iterator[str]:
    """The keys of the recipe that a word without its section may mean."""
    for section, table in (("training", Training), ("data", Data)):
        if key in table.model_fields:
            yield f"{section}.{key}"
    if any(key in entry.hyperparameters for entry in registry.networks):
        yield f"network.{key}"
    if key in registry.augmentations:
        yield f"augment.{key}"


def flag_changes(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Short names -> dotted keys; what is None was not given.

    Raises:
        FathomError: a name is not a flag (dotted names pass as they are), a key is given twice, or two budgets are.
    """
    changes: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, value in flags.items():
        if value is None:
            continue
        name = "from" if name == "from_" else name  # a word of Python itself: fathom.fit(..., from_=run)
        key = FLAGS[name].key if name in FLAGS else "data.download" if name == "download" else name
        if key in names:
            raise FathomError(f"'{key}' is given twice, as '{names[key]}' and '{name}'; leave one out.")
        names[key] = name
        if "." in key:
            changes[key] = value
        else:
            guess = difflib.get_close_matches(name, FLAGS, n=1)
            hint = f" Did you mean '{guess[0]}'?" if guess else ""
            raise FathomError(
                f"fit has no argument '{name}'.{hint} Known: {', '.join(FLAGS)}, or a key as 'network.dropout'."
            )
    budgets = [names[key] for key in BUDGETS if key in names]
    if len(budgets) > 1:
        raise FathomError(f"'{budgets[0]}' and '{budgets[1]}' both say how long to train; leave one out.")
    return {key: os.fspath(v) if isinstance(v, os.PathLike) else v for key, v in changes.items()}
