"""Loading folders: every tensor accounted for, old layouts read, bad folders refused."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from flaxbert.core.trees import flatten_names
from flaxbert.errors import ConfigError, WeightsError
from flaxbert.weights.folder import check_folder
from flaxbert.weights.load import load_checkpoint
from flaxbert.weights.save import save_checkpoint
from tests.weights.tiny import CONFIG, change_config, change_tensors, random_params, write_tiny

WORD = "bert.embeddings.word_embeddings.weight"
CLASSIFIER = ("classifier.kernel", "classifier.bias")


@pytest.fixture
def folder(tmp_path):
    return write_tiny(tmp_path / "model")


def _equal(first, second):
    first, second = flatten_names(first), flatten_names(second)
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_what_was_saved_comes_back(folder):
    loaded = load_checkpoint(folder)
    assert loaded.task == "sequence-classification"
    assert loaded.config == CONFIG
    assert _equal(loaded.params, random_params())
    assert loaded.account.initialized == loaded.account.unused == loaded.account.notes == ()
    assert len(loaded.account.used) == len(flatten_names(loaded.params))


def test_kernels_are_transposed(folder):
    tensors = change_tensors(folder, lambda tensors: tensors)
    kernel = load_checkpoint(folder).params["encoder"]["layers"]["1"]["feed_forward"]["up"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["bert.encoder.layer.1.intermediate.dense.weight"].T)
    assert kernel.shape == (12, 20)
    assert kernel.flags.c_contiguous


def test_old_names_no_prefix_position_ids_and_narrow_types(folder):
    def age(tensors):
        old = {}
        for name, array in tensors.items():
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            old[name.removeprefix("bert.")] = array.astype(ml_dtypes.bfloat16)
        return old | {"embeddings.position_ids": np.arange(16)[None]}

    change_tensors(folder, age)
    loaded = load_checkpoint(folder)
    rounded = jax.tree.map(lambda array: array.astype(ml_dtypes.bfloat16).astype(np.float32), random_params())
    assert _equal(loaded.params, rounded)
    account = loaded.account
    assert account.ignored == ("embeddings.position_ids",)
    assert account.prefix == "prefix 'bert.' added"
    assert len(account.renamed) == 10
    assert account.notes == ("Tensors stored as bfloat16 are held in float32.",)


@pytest.mark.parametrize(
    ("task", "leaves", "unused"),
    [
        (
            "fill-mask",
            5,
            ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"],
        ),
        ("next-sentence-prediction", 2, ["classifier.bias", "classifier.weight"]),
        (
            "token-classification",
            2,
            ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"],
        ),
        ("feature-extraction", 0, ["classifier.bias", "classifier.weight"]),
    ],
)
def test_another_task_draws_its_head_and_lists_what_it_leaves(folder, task, leaves, unused):
    loaded = load_checkpoint(folder, task)
    assert len(loaded.account.initialized) == leaves
    assert sorted(loaded.account.unused) == unused
    assert not any(name.startswith(("encoder", "embeddings")) for name in loaded.account.initialized)


def test_new_leaves_follow_the_seed(folder):
    first, again, other = (load_checkpoint(folder, "fill-mask", seed=seed) for seed in (1, 1, 2))
    assert _equal(first.params, again.params)
    kernels = [loaded.params["masked_lm"]["transform"]["kernel"] for loaded in (first, other)]
    assert not np.array_equal(*kernels)
    assert 0.005 < float(np.std(kernels[0])) < 0.04


def test_labels_of_another_number_draw_the_classifier_anew(folder):
    loaded = load_checkpoint(folder, labels=("no", "yes"))
    assert loaded.account.initialized == CLASSIFIER
    assert loaded.config.labels == ("no", "yes")
    assert loaded.params["classifier"]["kernel"].shape == (12, 2)
    assert "newly initialised" in loaded.account.notes[0]


def test_labels_in_another_order_reorder_the_classifier(folder):
    loaded = load_checkpoint(folder, labels=("good", "bad", "fair"))
    for part in ("kernel", "bias"):
        np.testing.assert_array_equal(
            loaded.params["classifier"][part], random_params()["classifier"][part][..., [2, 0, 1]]
        )


def test_number_of_labels_from_the_tensor_where_the_config_is_silent(folder):
    change_config(folder, id2label=None, label2id=None)
    assert load_checkpoint(folder).config.num_labels == 3


def test_missing_architectures(folder):
    change_config(folder, architectures=None)
    loaded = load_checkpoint(folder)
    assert loaded.task == "sequence-classification"
    assert "names no architectures" in loaded.account.notes[0]
    assert load_checkpoint(folder, "sequence-classification").account.initialized == ()


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_missing_model_type_in_googles_config(family, tmp_path):
    write_tiny(tmp_path, "sequence-classification", CONFIG.replace(family=family))
    change_config(tmp_path, model_type=None, architectures=None)
    (tmp_path / "config.json").rename(tmp_path / f"{family}_config.json")
    loaded = load_checkpoint(tmp_path)
    assert loaded.config.family == family
    assert f"{family}_config.json has no model_type; taken for {family}" in loaded.account.notes[0]


def test_missing_model_type_and_strange_names(folder):
    change_config(folder, model_type=None)
    change_tensors(folder, lambda tensors: {"wte.weight": tensors[WORD]})
    with pytest.raises(WeightsError, match="fit no family"):
        load_checkpoint(folder)


def test_unknown_class_needs_a_task(folder):
    change_config(folder, architectures=["BertLMHeadModel"])
    with pytest.raises(ConfigError, match="BertLMHeadModel, for which flaxbert has no task"):
        load_checkpoint(folder)
    loaded = load_checkpoint(folder, "sequence-classification")
    assert loaded.account.initialized == CLASSIFIER, "another task's classifier is not taken for this one's"


def test_tied_decoder_is_checked(tmp_path):
    folder = write_tiny(tmp_path / "model", "fill-mask")
    change_tensors(
        folder,
        lambda t: (
            t | {"cls.predictions.decoder.weight": t[WORD], "cls.predictions.decoder.bias": t["cls.predictions.bias"]}
        ),
    )
    account = load_checkpoint(folder).account
    assert sorted(account.tied) == ["cls.predictions.decoder.bias", "cls.predictions.decoder.weight"]
    change_tensors(folder, lambda t: t | {"cls.predictions.decoder.weight": t[WORD] + 1})
    with pytest.raises(
        WeightsError, match=r"decoder.weight' .* should repeat 'bert.embeddings.word_embeddings.weight'"
    ):
        load_checkpoint(folder)
    assert "cls.predictions.decoder.weight" in load_checkpoint(folder, "feature-extraction").account.unused


def test_decoder_stands_in_for_a_left_out_embedding(tmp_path):
    folder = write_tiny(tmp_path / "model", "fill-mask")
    change_tensors(
        folder, lambda t: {("cls.predictions.decoder.weight" if name == WORD else name): a for name, a in t.items()}
    )
    loaded = load_checkpoint(folder)
    assert _equal(loaded.params, random_params(task="fill-mask"))
    assert "which is tied to it" in loaded.account.notes[0]


def test_missing_encoder_tensor(folder):
    change_tensors(
        folder, lambda tensors: {name: a for name, a in tensors.items() if "layer.1.output.dense" not in name}
    )
    with pytest.raises(WeightsError, match=r"lack 2 tensors of the encoder: 'encoder.layer.1.output.dense.weight'"):
        load_checkpoint(folder)


def test_unexpected_tensor(folder):
    change_tensors(
        folder, lambda tensors: tensors | {"bert.encoder.layer.7.output.dense.bias": np.zeros(12, np.float32)}
    )
    with pytest.raises(WeightsError, match=r"no bert of 2 layers has: 'bert.encoder.layer.7.output.dense.bias'"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"vocab_size": 30},
            r"word_embeddings.weight' of .*model.safetensors has shape \(31, 12\), but the config needs \(30, 12\)",
        ),
        (
            {"intermediate_size": 24},
            r"intermediate.dense.weight' .* has shape \(20, 12\), but the config needs \(24, 12\)",
        ),
        ({"num_hidden_layers": 3}, "lack 16 tensors of the encoder"),
        ({"num_hidden_layers": 1}, "16 tensors that no bert of 1 layers has"),
        (
            {"id2label": {"0": "bad", "1": "good"}},
            r"classifier.weight' .* has shape \(3, 12\), but the config needs \(2, 12\)",
        ),
    ],
)
def test_config_of_another_model(folder, change, message):
    change_config(folder, **change)
    with pytest.raises(WeightsError, match=message):
        load_checkpoint(folder)


def test_integer_weights_are_refused(folder):
    change_tensors(folder, lambda tensors: tensors | {WORD: tensors[WORD].astype(np.int32)})
    with pytest.raises(WeightsError, match="holds int32"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "robertta"}, "config.json: Unknown family 'robertta'.*Did you mean 'roberta'"),
        ({"model_type": "fancy", "auto_map": {"AutoModel": "fancy.Model"}}, "code of its own .* never runs"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": "12"}, "hidden_size of config.json is '12'"),
        ({"hidden_act": "gelo"}, "Unknown activation 'gelo'.*Did you mean 'gelu'"),
        ({"is_decoder": True}, "describes a decoder"),
    ],
)
def test_unusable_config(folder, change, message):
    change_config(folder, **change)
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(folder)


def test_code_of_the_folder_is_never_run_and_that_is_said(folder):
    change_config(folder, auto_map={"AutoModel": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('the code ran')")
    assert any("auto_map" in note and "never runs" in note for note in load_checkpoint(folder).account.notes)


def test_unknown_task(folder):
    with pytest.raises(ConfigError, match="Did you mean 'fill-mask'"):
        load_checkpoint(folder, "fil-mask")


def test_folders_that_are_no_model(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("x")
    for name, message in (
        ("absent", "does not exist"),
        ("file", "is a file"),
        ("notes", "no config.json. Needed are .* there is todo.txt"),
    ):
        with pytest.raises(WeightsError, match=message):
            check_folder(tmp_path / name)


def test_safetensors_under_the_name_of_a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model.bin is no whole PyTorch file: .* neither a zip archive"):
        load_checkpoint(folder)


def test_from_scratch_reads_the_config_only(folder):
    (folder / "model.safetensors").unlink()
    loaded = load_checkpoint(folder, from_scratch=True, labels=("x", "y"), seed=4)
    assert loaded.config.num_labels == 2
    assert set(loaded.account.initialized) == set(flatten_names(loaded.params))
    assert all(isinstance(leaf, np.ndarray) for leaf in flatten_names(loaded.params).values())


def test_pooling_only_where_there_is_no_head(folder, tmp_path):
    assert load_checkpoint(folder).pooling is None
    assert load_checkpoint(folder, "feature-extraction").pooling is None
    assumed = load_checkpoint(folder, "sentence-similarity")
    assert assumed.pooling is not None
    assert assumed.pooling.modes == ("mean",)
    assert "the mean of the token vectors is taken" in assumed.account.notes[-1]


def test_pooler_is_kept_where_the_folder_has_one(tmp_path):
    config = CONFIG.replace(labels=(), num_labels=2, has_pooler=False)
    params = random_params(config, "feature-extraction")
    save_checkpoint(tmp_path / "model", config=config, task="feature-extraction", params=params)
    assert not load_checkpoint(tmp_path / "model").config.has_pooler


def test_transformer_in_a_folder_of_its_own(folder, tmp_path):
    outer = tmp_path / "outer"
    shutil.copytree(folder, outer / "0_Transformer")
    (outer / "1_Pooling").mkdir()
    (outer / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    modules = [
        {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (outer / "modules.json").write_text(json.dumps(modules))
    loaded = load_checkpoint(outer)
    assert loaded.task == "sentence-similarity"
    assert loaded.pooling.modes == ("cls",)
