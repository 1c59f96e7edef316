"""What to train, decided from the data before training: network, rivals, settings, layers, cost.

choose(schema, rows, given)   the network and the values of every key that the user left open
layer_table(model, batch)     name, type, output shape and parameters of each layer
memory(model, ...)            bytes that training will need
oversized(models, ...)        a sentence where nearly all weights read a flattened picture, far too many for the rows
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fathom.analysis.evaluate import is_rare
from fathom.core.contract import Batch, Model, Schema
from fathom.core.errors import FathomError, count_text
from fathom.core.recipe import BUDGETS, OWN, network_name
from fathom.core.registry import Entry, algorithms, networks

OF_OPTIMIZER = ("training.learning_rate", "training.momentum")  # what is meant for the optimizer that is suggested beside
HEAVY = 10_000_000  # parameters from which a flattened picture is worth a word
HEAVY_A_ROW = 10_000  # parameters for each training row, from which the rows cannot pin them down


@dataclass(frozen=True)
class Choice:
    """What was decided.

    Args:
        network: its name.
        reason: why, in half a sentence.
        paper: what introduced it.
        rivals: two others with what speaks for and against them.
        changes: dotted key -> value, for what the user left open.
    """

    network: str
    reason: str
    paper: str
    rivals: list[dict[str, str]]
    changes: dict[str, Any]


def choose(schema: Schema, rows: int, given: Mapping[str, Any]) -> Choice:
    """Decide what the user left open.

    Args:
        schema: fitted.
        rows: of the training split.
        given: the user's nested tables.

    Raises:
        FathomError: no algorithm or network fits the data.
    """
    algorithm = given.get("training", {}).get("algorithm") or _algorithm(schema)
    _check_acting(schema, algorithm)
    asked = algorithms[algorithm].about.get("asks", lambda schema: schema)(schema)  # of the network, where not the schema
    ranked = sorted(_candidates(asked, rows, algorithm), key=lambda pair: -pair[0])
    named = network_name(given.get("network", {}))
    if named is None and not ranked:
        raise FathomError(
            f"No network fits inputs of kind {', '.join(sorted({i.kind for i in schema.inputs.values()}))}."
        )
    name = named or ranked[0][1].name
    entry = networks[name] if name != OWN else None
    changes: dict[str, Any] = {"training.algorithm": algorithm, "network.name": name}
    if suggest := algorithms[algorithm].about.get("training"):  # where no number of rows decides
        changes.update(suggest(schema, name))
    else:
        changes.update(general(schema, rows))
        if _rare(schema) and "watches" not in algorithms[algorithm].about:
            changes["training.monitor"] = "auprc"
        if entry is not None and (suggest := entry.about.get("training")):
            changes.update(_by_optimizer(suggest(asked, rows), given))
    open_keys = {key: value for key, value in changes.items() if not is_given(given, key)}
    open_keys["network.name"] = name
    if any(is_given(given, key) for key in BUDGETS):
        open_keys = {key: value for key, value in open_keys.items() if key not in BUDGETS}
    rivals = [rival for _, rival in ranked if rival.name != name][:2]
    reason = "you chose it" if named else str(entry.about["reason"] if entry else "")
    return Choice(
        name,
        reason,
        str(entry.about["paper"]) if entry else "",
        [_rival(rival) for rival in rivals],
        open_keys,
    )


def _by_optimizer(suggested: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a network suggests, without what is meant for an optimizer of its own where the user names another one."""
    named = given.get("training", {}).get("optimizer")
    own = suggested.get("training.optimizer")
    apart = OF_OPTIMIZER if own is not None and named not in (None, own) else ()
    return {key: value for key, value in suggested.items() if key not in apart}


def _algorithm(schema: Schema) -> str:
    for entry in algorithms:
        if entry.about["suits"](schema):
            return entry.name
    raise FathomError("No algorithm fits this data: it has no target. Name a column with --target.")


def acts(schema: Schema) -> bool:
    """Whether an agent is to act."""
    return any(target.kind == "action" for target in schema.targets.values())


def _check_acting(schema: Schema, algorithm: str) -> None:
    """Refuse to learn rows by acting, or an environment from rows."""
    acting = [entry.name for entry in algorithms if entry.about.get("acts")]
    if acts(schema) and algorithm not in acting:
        raise FathomError(f"An environment has no rows for {algorithm} to learn from; it is learnt by: {', '.join(acting)}.")
    if not acts(schema) and algorithm in acting:
        raise FathomError(
            f"{algorithm} learns by acting in an environment, and these data are rows. Name an environment, as in: "
            f"fathom fit CartPole-v1 --algorithm {algorithm}"
        )


def _candidates(schema: Schema, rows: int, algorithm: str) -> list[tuple[float, Entry]]:
    """Networks that fit, with how well; of those among which the algorithm chooses, where it names them."""
    among = algorithms[algorithm].about.get("networks", networks.names())
    scored = [
        (float(entry.about["suits"](schema, rows)), entry)
        for entry in networks
        if entry.about.get("algorithm") in (None, algorithm) and entry.name in among
    ]
    return [(score, entry) for score, entry in scored if score > 0]


def _rival(entry: Entry) -> dict[str, str]:
    return {"name": entry.name, "pros": entry.about["pros"], "cons": entry.about["cons"]}


def is_given(given: Mapping[str, Any], key: str) -> bool:
    """Whether a dotted key stands in nested tables."""
    table: Any = given
    for part in key.split("."):
        if not isinstance(table, Mapping) or part not in table:
            return False
        table = table[part]
    return True


def general(schema: Schema, rows: int) -> dict[str, Any]:
    """Settings that depend on the data alone: batch, rate, epochs, and which weights are kept."""
    pictures = any(item.kind == "image" for item in schema.inputs.values())
    return {
        "training.batch": batch_size(rows, pictures),
        "training.learning_rate": 1e-3,
        "training.epochs": 10,
        # A schedule that ends at rate zero ends at its best; tables overfit sooner than that.
        "training.keep": "last" if pictures else "best",
    }


def _rare(schema: Schema) -> bool:
    """Whether the one target has a positive class so rare that its average precision decides, not the loss of all rows."""
    target = next(iter(schema.targets.values()), None)
    counts = target.state.get("counts") if target is not None and target.kind == "category" else None
    if target is None or len(schema.targets) > 1 or not counts or not sum(counts):
        return False
    return is_rare(target, torch.tensor(counts, dtype=torch.float64) / sum(counts))


def batch_size(rows: int, pictures: bool) -> int:
    """The power of two nearest to the root of the rows: few steps for little data, little noise for much."""
    power = round(math.log2(max(rows, 1)) / 2)
    return int(2 ** min(max(power, 4), 8 if pictures else 12))


def task_name(schema: Schema, algorithm: str | None = None) -> str:
    """The task in two words: "image classification", "table regression" ...; an algorithm may have its own name for it."""
    if algorithm and (own := algorithms[algorithm].about.get("task")):
        return str(own)
    kinds = {item.kind for item in schema.inputs.values()}
    targets = {item.kind for item in schema.targets.values()}
    if "text" in targets:
        return "translation" if kinds else "language model"
    if targets == {"forecast"}:
        return "forecast"
    alone = kinds & {"image", "text", "series"} if len(kinds) == 1 else set()
    what = min(alone or ({"series"} & kinds) or ({"mixed"} if kinds & {"image", "text"} else {"table"}))
    how = {"category": "classification", "number": "regression", "labels": "labelling"}
    return f"{what} {how.get(next(iter(targets)), 'learning') if len(targets) == 1 else 'prediction'}"


def layer_table(model: Model, batch: Batch) -> list[dict[str, Any]]:
    """One line a layer, in the order in which they run.

    Returns:
        name, type, output (shape less the batch), parameters.
    """
    lines: list[dict[str, Any]] = []
    handles = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            shape = list(output.shape[1:]) if isinstance(output, Tensor) else []
            own = sum(p.numel() for p in module.parameters(recurse=False))
            lines.append({"name": name, "type": type(module).__name__, "output": shape, "parameters": own})

        return hook

    for name, module in model.named_modules():
        if not any(module.children()):
            handles.append(module.register_forward_hook(watch(name.removeprefix("module."))))
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return lines


def layer_tables(models: Mapping[str, Model], batch: Batch) -> list[dict[str, Any]]:
    """The layers of every network, under the name of its role where several play a game of their own inputs.

    Args:
        models: one a role. Where all read the same inputs (an actor and its critic) the first stands for them.
        batch: what they read.
    """
    first, *others = models.items()
    lines = layer_table(first[1], batch)
    if all(model.input_names == first[1].input_names for _, model in others):
        return lines
    named = [(role, line) for role, model in others for line in layer_table(model, batch)]
    return [{**line, "name": f"{role}.{line['name']}"} for role, line in [*((first[0], line) for line in lines), *named]]


def parameters(models: Mapping[str, nn.Module]) -> int:
    """Numbers that are learnt."""
    return sum(p.numel() for model in models.values() for p in model.parameters())


def memory(count: int, lines: list[dict[str, Any]], batch: int, data_bytes: int) -> int:
    """Bytes at the peak of training: weights, gradients, two moments and an average; outputs kept for backward; data."""
    kept = sum(math.prod(line["output"]) for line in lines) * batch * 4
    return count * 4 * 5 + kept * 2 + data_bytes


def oversized(models: Mapping[str, nn.Module], schema: Schema, rows: int) -> list[str]:
    """A sentence about a dense layer that reads a whole flattened picture and outweighs all else.

    It is what the first textbooks end a convolutional network with. Its weights grow with the pixels and are no longer
    those of a small pattern, so that few pictures are learnt by heart (Lin et al. 2014, Network in network, section 3.2,
    put global average pooling in its place).

    Args:
        models: one a role, whose weights begin at random.
        schema: of the task.
        rows: of the training split.

    Returns:
        One sentence or none.
    """
    count = parameters(models)
    layers = [(name, layer) for m in models.values() for name, layer in m.named_modules() if isinstance(layer, nn.Linear)]
    if not layers or count < max(HEAVY, HEAVY_A_ROW * rows) or all(item.kind != "image" for item in schema.inputs.values()):
        return []
    name, layer = max(layers, key=lambda pair: pair[1].weight.numel())
    if layer.weight.numel() < count / 2:
        return []
    return [
        f"{count:,} parameters are to be learnt from {count_text(rows, 'training row')}: {layer.weight.numel():,} of them are "
        f"in {name.removeprefix('module.')}, which reads a flattened picture of {layer.in_features:,} values. Such a network "
        f"learns the rows by heart, and its weights, gradients and moments take {memory(count, [], 0, 0) / 2**30:.1f} GiB. "
        "One that averages each map first has far fewer (--network resnet); so has a smaller data.image.size."
    ]
