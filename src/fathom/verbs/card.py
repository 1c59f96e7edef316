"""The model card: README.md of the deployable, in the layout that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_card(name: str, results: Mapping[str, Any]) -> str:
    """What the network is for, how good it is, on what it was judged, and what it was not made for.

    Args:
        name: of the run.
        results: the content of results.json.
    """
    lines = [
        "---",
        "library_name: fathom",
        f"pipeline_tag: {results['task'].replace(' ', '-')}",
        "---",
        "",
        f"# {name}",
        "",
    ]
    lines += [
        f"A network for {results['task']}, trained by Fathom: "
        f"{results['network']['name']}, {results['parameters']:,} parameters.",
        "",
    ]
    lines += [results["verdict"], "", "| metric on the test rows | value | 95 % interval |", "|---|---|---|"]
    for metric, estimate in results["test"].items():
        lines.append(
            f"| {metric.replace('_', ' ')} | {estimate['value']:.4g} | {estimate['low']:.4g} to {estimate['high']:.4g} |"
        )
    rows = ", ".join(f"{count:,} {part}" for part, count in results["splits"].items())
    lines += ["", f"{f'Rows: {rows}. ' if rows else ''}Weights: {results['kept']}.", ""]
    lines += [
        "These figures hold for rows like those it was judged on. On others they must be measured again",
        f"(`fathom evaluate {name} DATA`).",
        "",
    ]
    return "\n".join(lines)
