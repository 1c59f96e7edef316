"""Judging what writes text: how surprised it is by the test texts, and how near its answers come to the references.

    written(predictor, texts, sets)         statistics of network and baselines, one row a test text
    surprise(predictor, data, name)         nats of every token, by windows that overlap by half
    gaps(predictor, data, name)             what the network puts into the gaps of some texts

The statistics are sums (see `fields/text_metrics`), so that `evaluate` resamples them like the outputs of any other
network. A language model is measured over the whole split, each token once and with at least half a window before it,
beside an n-gram model of the same tokens. A translation is measured by the BLEU and chrF of its decoded, cased text,
beside a dictionary's. A masked language model is measured on hidden tokens, the same at every time, beside how often each
token comes.

In comments: N rows, T tokens, S statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fathom.analysis.baseline_text import Dictionary, NGrams
from fathom.core.contract import Batch, Columns, Predictor, Schema, TensorSet
from fathom.core.tensors import ROW, end_to_end, to_list
from fathom.fields.masking import SHARE, fixed, hide, plain
from fathom.fields.text import PAD, SPECIAL, START, Text
from fathom.fields.text_metrics import LIKELIHOOD, overlap_sums

ROWS = 64  # rows answered, or windows read, at once
EXAMPLES = 12  # answers shown in the report
LONGEST = 60  # tokens of a text that is shown with its gaps
GAP = "[...]"


@dataclass(frozen=True)
class Written:
    """What `evaluate.results` needs.

    Args:
        outputs: target -> (N, S) float64 statistics of the network.
        baselines: name -> the same.
        metric: the one that decides.
        examples: source, reference and answer of some rows.
        notes: how it was measured.
    """

    outputs: Batch
    baselines: dict[str, Batch]
    metric: str
    examples: list[dict[str, Any]]
    notes: list[str]


def writes(schema: Schema) -> bool:
    """Whether the target is a text to be written."""
    return any(item.kind == "text" for item in schema.targets.values())


def written(predictor: Predictor, texts: Mapping[str, Columns], sets: Mapping[str, TensorSet]) -> Written:
    """Measure on the test rows.

    Args:
        predictor: what is deployed.
        texts: "test", and "train" where baselines can be learnt -> raw rows.
        sets: the same, encoded.
    """
    name = next(name for name, item in predictor.schema.targets.items() if item.kind == "text")
    if predictor.schema.inputs:
        return _translation(predictor, name, texts, sets)
    if "masked" in predictor.scores:
        return _masked(predictor, name, sets)
    return _language_model(predictor, name, sets)


def _language_model(predictor: Predictor, name: str, sets: Mapping[str, TensorSet]) -> Written:
    field = _field(predictor, name)
    tokens, offsets = end_to_end(sets["test"], name)
    counts = (tokens != START).double()
    counts[0] = 0  # nothing stands before it
    size = field.byte_counts(tokens[:, None]).nan_to_num() * counts

    def statistics(nats: Tensor) -> Batch:
        each = torch.stack([nats * counts, counts, size], 1)  # (T, 3)
        row = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
        return {name: torch.zeros(len(offsets) - 1, LIKELIHOOD, dtype=torch.float64).index_add_(0, row, each)}

    baselines = {}
    if "train" in sets:
        ngrams = NGrams(end_to_end(sets["train"], name)[0].numpy(), field.size)
        baselines[f"{ngrams.order}-gram counts"] = statistics(torch.from_numpy(ngrams.nats(tokens.numpy())))
    return Written(
        statistics(surprise(predictor, tokens, name, field.length)),
        baselines,
        "bits_per_byte" if float(size.sum()) else "perplexity",
        [],
        [
            f"Every token of the test texts was predicted once, after {field.length // 2} to {field.length} tokens "
            "before it where there are as many."
        ],
    )


def surprise(predictor: Predictor, tokens: Tensor, name: str, window: int) -> Tensor:
    """(T,) float64 nats of each token after those before it; 0 for the first.

    Args:
        predictor: of a language model.
        tokens: (T,) a text.
        name: of the target.
        window: tokens that the network sees at once; windows overlap by half, and only what is new in one counts.
    """
    nats = torch.zeros(len(tokens), dtype=torch.float64)
    stride = max(window // 2, 1)
    starts = list(range(0, max(len(tokens) - 1 - window, 0) + stride, stride))
    device = next(p.device for layer in predictor.layers.values() for p in layer.parameters())
    with torch.inference_mode():
        for first in range(0, len(starts), ROWS):
            places = [torch.arange(start, min(start + window + 1, len(tokens))) for start in starts[first : first + ROWS]]
            batch = torch.nn.utils.rnn.pad_sequence([tokens[place] for place in places], True, PAD).long().to(device)
            logits = predictor.forward({name: batch[:, :-1]})[name]
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="none"
            )
            for place, found in zip(places, losses.view(len(places), -1).double().cpu(), strict=True):
                known = window - stride if int(place[0]) else 0  # the window before predicted these
                nats[place[1:][known:]] = found[: len(place) - 1][known:]
    return nats


def _masked(predictor: Predictor, name: str, sets: Mapping[str, TensorSet]) -> Written:
    field, test = _field(predictor, name), sets["test"]
    device = next(p.device for layer in predictor.layers.values() for p in layer.parameters())
    with torch.inference_mode():
        found = [
            predictor.scores["masked"]({key: value.to(device) for key, value in batch.items()}).cpu()
            for batch in test.batches(ROWS)
        ]
    baselines = {}
    if "train" in sets:
        baselines["unigram frequencies"] = {name: _frequencies(field, name, sets["train"], test)}
    return Written(
        {name: torch.cat(found)},
        baselines,
        "perplexity",
        gaps(predictor, test, name),
        [
            f"Of the tokens of each test text {SHARE:.0%} were chosen, always the same, and guessed from all others within "
            f"{field.length} tokens. Of them 80 % are hidden, 10 % replaced and 10 % left as they are. Perplexity and accuracy "
            "are of these guesses."
        ],
    )


def _frequencies(field: Text, name: str, train: TensorSet, test: TensorSet) -> Tensor:
    """(N, 4) statistics of a model that knows only how often each token comes in the training texts."""
    tokens = end_to_end(train, name)[0]
    tokens = tokens[tokens >= len(SPECIAL)]
    nats = torch.from_numpy(NGrams(tokens.numpy(), field.size, 1).nats(np.arange(field.size)))  # (V,)
    commonest = torch.bincount(tokens).argmax()
    found = []
    for batch in test.batches(ROWS):
        asked = plain(batch[name], field.continuous)
        wanted = hide(asked, fixed(batch[ROW], asked.shape[1]), field.size)[1]
        there = wanted != PAD
        sums = [(nats[wanted] * there).sum(1), there.sum(1), torch.zeros(len(wanted)), (wanted == commonest).sum(1)]
        found.append(torch.stack([each.double() for each in sums], 1))
    return torch.cat(found)


def gaps(predictor: Predictor, data: TensorSet, name: str) -> list[dict[str, Any]]:
    """The first texts with gaps (source), what stood there (reference) and what the network puts there (answer)."""
    field = _field(predictor, name)
    device = next(p.device for layer in predictor.layers.values() for p in layer.parameters())
    shown = []
    for batch in data.subset(torch.arange(min(EXAMPLES, len(data)))).batches(1):  # one by one, since logits are large
        tokens = plain(batch[name], field.continuous)[:, : min(field.length, LONGEST)].long()
        there = hide(tokens, fixed(batch[ROW], tokens.shape[1]), field.size)[1] != PAD
        with torch.inference_mode():
            answer = predictor.forward({name: tokens.masked_fill(there, field.size).to(device)})[name].argmax(2).cpu()
        place = there[0].nonzero()[:, 0].tolist()
        shown.append(
            {
                "source": _with_gaps(field, tokens[0], place),
                "reference": ", ".join(field.texts(tokens[0, i].view(1, 1))[0] for i in place),
                "answer": ", ".join(field.texts(answer[0, i].view(1, 1))[0] for i in place),
            }
        )
    return shown


def _with_gaps(field: Text, tokens: Tensor, places: list[int]) -> str:
    """The text (T,) with a sign for each hidden token."""
    edges = [-1, *places, len(tokens)]
    parts = [field.texts(tokens[None, before + 1 : after])[0] for before, after in pairwise(edges)]
    return (f" {GAP} " if field.level == "word" else GAP).join(parts).strip()


def _translation(
    predictor: Predictor, name: str, texts: Mapping[str, Columns], sets: Mapping[str, TensorSet]
) -> Written:
    field, test = _field(predictor, name), sets["test"]
    wanted = {part: _texts(columns, field.columns[0]) for part, columns in texts.items()}
    answers = field.texts(predictor.outputs(test, ROWS)[name])
    with torch.inference_mode():
        nats = torch.cat([predictor.scores["nats"](batch).double() for batch in test.batches(ROWS)])
    truth = test.column(name)
    likelihood = torch.stack([nats, (truth > PAD).sum(1) - 1.0, field.byte_counts(truth).nan_to_num()], 1)
    outputs = {name: torch.cat([likelihood, overlap_sums(answers, wanted["test"])], 1)}
    sources = [item.columns[0] for item in predictor.schema.inputs.values() if item.kind == "text"]
    read = {part: _texts(columns, sources[0]) for part, columns in texts.items()}
    baselines = {}
    if "train" in texts:
        dictionary = Dictionary(read["train"], wanted["train"])
        word_for_word = overlap_sums([dictionary.answer(text) for text in read["test"]], wanted["test"])
        nothing = torch.zeros(len(word_for_word), LIKELIHOOD, dtype=torch.float64)
        baselines["word-for-word dictionary"] = {name: torch.cat([nothing, word_for_word], 1)}
    shown = [
        {"source": source, "reference": reference, "answer": answer}
        for source, reference, answer in list(zip(read["test"], wanted["test"], answers, strict=True))[:EXAMPLES]
    ]
    return Written(
        outputs, baselines, "bleu", shown,
        [f"BLEU and chrF of cased, detokenized text, as sacrebleu scores them ({signature()})."],
    )  # fmt: skip


def signature() -> str:
    """How sacrebleu names these settings."""
    import sacrebleu

    return f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"


def _field(predictor: Predictor, name: str) -> Text:
    field = predictor.schema.targets[name]
    assert isinstance(field, Text), "a text is written"
    return field


def _texts(columns: Columns, name: str) -> list[str]:
    """The raw texts; the turns of a dialogue in lines."""
    values = to_list(columns[name])
    return ["\n".join(value) if isinstance(value, list) else str(value or "") for value in values]
