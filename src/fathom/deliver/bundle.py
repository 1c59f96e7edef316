"""The deployable: `model/` of a run. Weights as safetensors, everything else as JSON, a model card, nothing executable.

write_bundle(folder, ...)   weights.safetensors, model.json, README.md
read_bundle(folder)         refuses what is damaged, of a later format, or does not fit
read_weights(folder)        the same without building the networks, for those who begin with these weights
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fathom.core.contract import Model, Schema
from fathom.core.errors import FathomError, RunError
from fathom.core.recipe import FROM, OWN, options_of
from fathom.core.registry import algorithms, networks
from fathom.core.run import (
    FORMAT,
    check_weights,
    load_tensors,
    read_json,
    save_tensors,
    sealed_json,
    write_atomic,
)


@dataclass(frozen=True)
class Bundle:
    """A loaded deployable.

    Args:
        schema: fitted inputs and targets.
        models: one a role, in evaluation mode.
        algorithm: the name of the algorithm that makes a predictor of them.
        about: the whole of model.json.
    """

    schema: Schema
    models: dict[str, Model]
    algorithm: str
    about: dict[str, Any]


def write_bundle(
    folder: Path,
    models: Mapping[str, Model],
    schema: Schema,
    network: Mapping[str, Any],
    algorithm: str,
    card: str,
) -> None:
    """Write the three files; model.json last, so that a folder with it is whole.

    Args:
        folder: `model/` of the run.
        models: trained, one a role.
        schema: fitted.
        network: the recipe's table.
        algorithm: its name.
        card: the model card, Markdown.
    """
    weights = {
        f"{role}/{name}": tensor for role, model in models.items() for name, tensor in model.state_dict().items()
    }
    save_tensors(folder / "weights.safetensors", weights)
    write_atomic(folder / "README.md", card.encode())
    table = {key: value for key, value in network.items() if key != FROM}  # the weights are here now
    about = {"format": FORMAT, "algorithm": algorithm, "network": table, "schema": schema.to_json()}
    write_atomic(folder / "model.json", sealed_json(about))


def read_bundle(folder: Path, module: nn.Module | None = None, adopt: Any = None) -> Bundle:
    """Read what `write_bundle` wrote.

    Args:
        folder: `model/` of a run.
        module: the user's own module, where the run was trained with one.
        adopt: (module, schema) -> network, for such a module.

    Raises:
        RunError: a file is missing or damaged, or the weights do not fit.
    """
    about = _about(folder)
    try:
        schema = Schema.from_json(about["schema"])
        algorithm = algorithms[about["algorithm"]].make
        roles = algorithm.roles(schema)
        models = {
            role: Model(part, _network(about["network"], part, role, module, adopt, folder))
            for role, part in roles.items()
        }
    except (KeyError, TypeError, FathomError) as error:
        raise (
            error
            if isinstance(error, RunError)
            else RunError(f"{folder / 'model.json'} does not fit this Fathom: {error}")
        ) from error
    weights, _ = load_tensors(folder / "weights.safetensors")
    for role, model in models.items():
        mine = {name.partition("/")[2]: tensor for name, tensor in weights.items() if name.partition("/")[0] == role}
        check_weights(model.state_dict(), mine, str(folder / "weights.safetensors"))
        model.load_state_dict(mine)
        model.eval()
    return Bundle(schema, models, about["algorithm"], about)


def read_weights(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """What a bundle holds, checked against its checksums; no network is built.

    Args:
        folder: `model/` of a run.

    Returns:
        The content of model.json, and role -> name in the `Model` -> tensor.

    Raises:
        RunError: a file is missing or damaged.
    """
    about = _about(folder)
    weights, _ = load_tensors(folder / "weights.safetensors")
    roles: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        role, _, inner = name.partition("/")
        roles.setdefault(role, {})[inner] = tensor
    return about, roles


def _about(folder: Path) -> dict[str, Any]:
    about = read_json(folder / "model.json")
    if about.get("format", 0) > FORMAT:
        raise RunError(
            f"{folder} was written by a newer Fathom (format {about['format']}; this one reads {FORMAT}). Upgrade Fathom."
        )
    return about


def _network(
    table: Mapping[str, Any], schema: Schema, role: str, module: nn.Module | None, adopt: Any, folder: Path
) -> nn.Module:
    name = table["name"]
    if name == OWN:
        if module is None:
            raise RunError(
                f"{folder.parent} was trained with your own module {table['class']}, whose code is not saved. "
                f"Load it in Python: fathom.load({str(folder.parent)!r}, module={table['class']}())"
            )
        adopted: nn.Module = adopt(module, schema)
        return adopted
    options = options_of(table)
    built: nn.Module = networks[name].build(schema, role, **options)
    return built
