"""Judge a predictor once on the test rows, beside baselines fitted on the same training rows."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fathom.analysis import decision, early, episodes, evaluate, language, reconstruction, samples, scores
from fathom.analysis.baseline import baselines
from fathom.core.contract import Columns, Predictor, Schema, TensorSet
from fathom.core.prepare import Prepared, file_columns, place_of
from fathom.core.tensors import to_list
from fathom.verbs import drawing, frozen
from fathom.verbs.generate import writes_on, written_sample

PICTURE = 72  # pixels of a thumbnail's side
LONGEST = 400  # characters of a list of moments


def judge(
    prepared: Prepared, predictor: Predictor, seed: int, compare: Sequence[str] = (), actions: int | None = None,
    count: int = episodes.EPISODES,
) -> dict[str, Any]:  # fmt: skip
    """The test part of results.json.

    Args:
        prepared: rows and splits, or an environment.
        predictor: what is deployed.
        seed: of the resampling and of the baselines.
        compare: columns of known scores (data.compare).
        actions: that an agent learnt from.
        count: episodes in which an agent is judged.
    """
    if prepared.environment is not None:
        return episodes.results(prepared.environment, predictor, seed, actions, count)
    train, test = prepared.sets["train"], prepared.sets["test"]
    blocks = prepared.blocks[prepared.splits["test"]] if prepared.blocks is not None else None
    if language.writes(prepared.schema):
        texts = {part: raw_rows(prepared, part) for part in ("train", "test")}
        results = judge_text(predictor, prepared.schema, texts, prepared.sets, seed, blocks)
        return {**results, "sample": written_sample(predictor, seed)} if writes_on(predictor) else results
    if reconstruction.reconstructs(prepared.schema):
        label = reconstruction.label_of(prepared.schema, prepared.columns, prepared.splits["test"])
        results = reconstruction.results(predictor, train, test, seed, blocks, label)
        for mistake in results["mistakes"]:
            show(mistake, int(prepared.splits["test"][mistake["row"]]), prepared, test)
        return results
    if samples.makes(prepared.schema):
        return samples.results(predictor, train, test, seed, frozen.extractor(prepared, seed))
    outputs = predictor.outputs(test)
    fitted, notes = baselines(prepared.schema, train, test, seed, raw_texts(prepared))
    asked = prepared.columns.select(compare)
    known, told = scores.alone(prepared.schema, asked.take(prepared.splits["train"]), train, asked.take(prepared.splits["test"]))
    metric = evaluate.primary(prepared.schema, evaluate.class_shares(train, prepared.schema))
    results = evaluate.results(outputs, fitted | known, test, prepared.schema, seed, metric, blocks, orders=set(known))
    in_time, remarks = early.early(predictor, prepared.sets, seed, results["primary"], fitted, blocks)
    results |= {"early": in_time} if in_time else {}
    decided = decision.judged(predictor.schema, outputs, test, seed, blocks)
    for name, made in decided.items():
        results["targets"][name]["decision"] = made
    results["evaluation_notes"] = [*decision.notes(decided), *results.pop("notes"), *notes, *told, *remarks]
    rows, worst = prepared.splits["test"], [mistake["row"] for mistake in results["mistakes"]]
    pictures = drawing.of_rows(outputs, test, prepared.schema, worst)
    for mistake, picture in zip(results["mistakes"], pictures, strict=True):
        show(mistake, int(rows[mistake["row"]]), prepared, test)
        mistake.update({"picture": picture} if picture else {})
    if boxes := drawing.boxes_of(prepared.schema):
        chosen = drawing.sampled(len(test), worst)
        made = drawing.of_rows(outputs, test, prepared.schema, chosen)
        names = [place_of(prepared.columns, prepared.schema, int(rows[row]), prepared.numbers) for row in chosen]
        results["targets"][boxes[0]]["pictures"] = [
            {"name": name, "picture": picture} for name, picture in zip(names, made, strict=True)
        ]
    return results


def raw_rows(prepared: Prepared, part: str) -> Columns:
    """The raw fields of one part's rows."""
    names = [name for item in prepared.schema.fields().values() for name in item.columns]
    return prepared.columns.select(list(dict.fromkeys(names))).take(prepared.splits[part])


def judge_text(
    predictor: Predictor, schema: Schema, texts: Mapping[str, Columns], sets: Mapping[str, TensorSet],
    seed: int, blocks: np.ndarray | None,
) -> dict[str, Any]:  # fmt: skip
    """The test part of results.json where a text is written.

    Args:
        predictor: what is deployed.
        schema: of its fields and of what is special.
        texts: "test", and "train" where baselines can be learnt -> raw rows.
        sets: the same, encoded.
        seed: of the resampling.
        blocks: test rows that are resampled together.
    """
    told = language.written(predictor, texts, sets)
    results = evaluate.results(told.outputs, told.baselines, sets["test"], schema, seed, told.metric, blocks)
    results["evaluation_notes"] = results.pop("notes") + told.notes
    results["targets"][next(iter(told.outputs))]["examples"] = told.examples
    return results


def raw_texts(prepared: Prepared) -> tuple[list[str], list[str]] | None:
    """The training and test texts as they came, uncut, turns of a dialogue in lines; None where no one input is a text."""
    read = [item.columns[0] for item in prepared.schema.inputs.values() if item.kind == "text"]
    if len(read) != 1:
        return None
    train, test = (to_list(prepared.columns.select(read).take(prepared.splits[part])[read[0]]) for part in ("train", "test"))
    return [_joined(text) for text in train], [_joined(text) for text in test]


def _joined(text: Any) -> str:
    return "\n".join(turn or "" for turn in text) if isinstance(text, list) else str(text or "")


def show(mistake: dict[str, Any], row: int, prepared: Prepared, test: TensorSet) -> None:
    """Add the picture, or the raw values, of one row of the test split."""
    columns, schema = prepared.columns, prepared.schema
    encoded = test.batch(torch.tensor([mistake["row"]]))
    mistake["row"] = prepared.number(row)
    for name, item in schema.inputs.items():
        if item.kind == "image":
            mistake["picture"] = thumbnail(encoded[name][0].numpy())
        else:
            raw = columns.select(item.columns[:12]).slice(row, row + 1)
            mistake.setdefault("values", {}).update({key: plain(to_list(raw[key])[0]) for key in raw})
    for name in file_columns(schema, columns):
        mistake["name"] = str(to_list(columns.slice(row, row + 1)[name])[0])


def plain(value: Any) -> Any:
    """A value that JSON can hold."""
    return (
        value
        if isinstance(value, str | int | bool | type(None))
        else round(value, 6)
        if isinstance(value, float) and np.isfinite(value)
        else str(value)[:LONGEST]
    )


def thumbnail(pixels: np.ndarray) -> str:
    """A picture (C, H, W) as the text of a data URI."""
    from PIL import Image

    values = pixels.astype(np.float32)
    if pixels.dtype != np.uint8:
        values = (values - values.min()) / max(float(np.ptp(values)), 1e-9) * 255
    picture = Image.fromarray(
        values.clip(0, 255).astype(np.uint8).squeeze(0)
        if len(values) == 1
        else values.astype(np.uint8).transpose(1, 2, 0)
    )
    picture.thumbnail((PICTURE, PICTURE))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
