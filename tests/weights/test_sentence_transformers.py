"""Both folder layouts of sentence-transformers."""

import json
import warnings

import numpy as np
import pytest
import safetensors.numpy

from flaxbert.errors import WeightsError
from flaxbert.weights.load import load_checkpoint
from flaxbert.weights.save import save_checkpoint
from flaxbert.weights.sentence_transformers import DenseLayer, SentencePooling, read_pooling
from flaxbert.weights.tokenizer import load_tokenizer
from tests.weights.tiny import CONFIG, random_params, write_tiny

TASK = "sentence-similarity"
OLD = "sentence_transformers.models"
NEW = "sentence_transformers.sentence_transformer.modules.pooling"


def _modules(folder, *entries):
    folder.mkdir(exist_ok=True)
    listed = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (kind, path) in enumerate(entries)]
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


def _pooling(folder, **settings):
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))


def test_a_plain_folder_has_no_pooling(tmp_path):
    assert read_pooling(tmp_path) is None


def test_older_layout(tmp_path):
    _modules(tmp_path, (f"{OLD}.Transformer", ""), (f"{OLD}.Pooling", "1_Pooling"), (f"{OLD}.Normalize", "2_Normalize"))
    _pooling(tmp_path, pooling_mode_cls_token=True, pooling_mode_mean_tokens=True, pooling_mode_max_tokens=False)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    (tmp_path / "config_sentence_transformers.json").write_text(
        '{"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query", "similarity_fn_name": "dot"}'
    )
    found = read_pooling(tmp_path)
    assert (found.modes, found.normalize, found.max_length) == (("cls", "mean"), True, 12)
    assert (found.prompts, found.default_prompt, found.similarity) == ({"query": "query: "}, "query", "dot")


@pytest.mark.parametrize(("mode", "modes"), [("mean", ("mean",)), (["mean", "cls"], ("mean", "cls"))])
def test_newer_layout(tmp_path, mode, modes):
    transformer = "sentence_transformers.base.modules.transformer.Transformer"
    _modules(tmp_path, (transformer, ""), (f"{NEW}.Pooling", "1_Pooling"))
    _pooling(tmp_path, embedding_dimension=12, pooling_mode=mode, include_prompt=False)
    (tmp_path / "sentence_bert_config.json").write_text('{"transformer_task": "feature-extraction"}')
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 14}')
    found = read_pooling(tmp_path)
    assert (found.modes, found.normalize, found.include_prompt, found.max_length) == (modes, False, False, 14)


def test_cross_encoder_is_no_sentence_model(tmp_path):
    folder = write_tiny(tmp_path / "model")
    _modules(folder, ("sentence_transformers.base.modules.transformer.Transformer", ""))
    (folder / "config_sentence_transformers.json").write_text('{"model_type": "CrossEncoder"}')
    assert load_checkpoint(folder).task == "sequence-classification"


@pytest.mark.parametrize(
    ("entries", "settings", "message"),
    [
        ([(f"{OLD}.Transformer", ""), (f"{OLD}.Pooling", "../1_Pooling")], {}, "not inside the model folder"),
        ([(f"{OLD}.Pooling", "1_Pooling"), (f"{OLD}.LSTM", "2_LSTM")], {"pooling_mode": "mean"}, "has the module LSTM"),
        ([(f"{OLD}.Pooling", "1_Pooling")], {"pooling_mode": "median"}, "asks for median"),
        ([(f"{OLD}.Pooling", "1_Pooling")], {"pooling_mode_cls_token": False}, "asks for no mode at all"),
        ([(f"{OLD}.Pooling", "9_Pooling")], {}, "9_Pooling/config.json can not be read"),
    ],
)
def test_unknown_modules_and_modes(tmp_path, entries, settings, message):
    _modules(tmp_path, *entries)
    _pooling(tmp_path, **settings)
    with pytest.raises(WeightsError, match=message):
        read_pooling(tmp_path)


def test_malformed_module_list(tmp_path):
    (tmp_path / "modules.json").write_text('{"a": 1}')
    with pytest.raises(WeightsError, match="no list of modules"):
        read_pooling(tmp_path)


def _dense(activation="Tanh", bias=True):
    random = np.random.default_rng(0)
    kernel = random.standard_normal((12, 5)).astype(np.float32)
    return DenseLayer(kernel, random.standard_normal(5).astype(np.float32) if bias else None, activation)


def test_dense_modules_survive_the_round_trip(tmp_path):
    pooling = SentencePooling(
        modes=("mean", "cls")[:1], normalize=True, dense=(_dense(), _dense("Identity", bias=False))
    )
    pooling = pooling.replace(dense=pooling.dense[:1])
    params = random_params(task=TASK)
    folder = save_checkpoint(tmp_path / "model", config=CONFIG, task=TASK, params=params, pooling=pooling)
    found = load_checkpoint(folder).pooling
    assert found.normalize
    assert found.output_size(12) == 5
    vectors = np.random.default_rng(1).standard_normal((3, 12)).astype(np.float32)
    np.testing.assert_array_equal(found.apply_dense(vectors), pooling.apply_dense(vectors))
    np.testing.assert_allclose(
        found.apply_dense(vectors), np.tanh(vectors @ pooling.dense[0].kernel + pooling.dense[0].bias), rtol=1e-6
    )


def test_order_of_several_modes_survives(tmp_path):
    for modes in (("cls", "max", "mean"), ("mean", "cls")):
        folder = save_checkpoint(
            tmp_path / "-".join(modes),
            config=CONFIG,
            task=TASK,
            params=random_params(task=TASK),
            pooling=SentencePooling(modes=modes),
        )
        assert load_checkpoint(folder).pooling.modes == modes


def test_strange_dense_folders(tmp_path):
    _modules(tmp_path, (f"{OLD}.Pooling", "1_Pooling"), (f"{OLD}.Dense", "2_Dense"))
    _pooling(tmp_path, pooling_mode="mean")
    dense = tmp_path / "2_Dense"
    dense.mkdir()
    (dense / "config.json").write_text('{"activation_function": "torch.nn.modules.activation.Softsign"}')
    with pytest.raises(WeightsError, match="activation Softsign"):
        read_pooling(tmp_path)
    (dense / "config.json").write_text("{}")
    (dense / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(WeightsError, match="neither a zip archive nor a pickle"):
        read_pooling(tmp_path)
    safetensors.numpy.save_file({"weight": np.ones((2, 2), np.float32)}, dense / "model.safetensors")
    with pytest.raises(WeightsError, match="linear.weight and linear.bias"):
        read_pooling(tmp_path)


def test_unknown_mode_in_code():
    with pytest.raises(WeightsError, match="Did you mean 'mean'"):
        SentencePooling(modes=("meen",))


@pytest.mark.parity
@pytest.mark.parametrize("activation", ["Identity", "Tanh", "ReLU", "Sigmoid", "SiLU"])
def test_sentence_transformers_reads_our_folder_with_a_dense_module(tmp_path, activation):
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs the test extra")
    tiny = write_tiny(tmp_path / "tiny", TASK)
    loaded = load_checkpoint(tiny)
    pooling = SentencePooling(modes=("max", "mean")[1:], dense=(_dense(activation),), max_length=9)
    folder = save_checkpoint(
        tmp_path / "model",
        config=loaded.config.replace(vocab_size=31),
        task=TASK,
        params=loaded.params,
        tokenizer=load_tokenizer(tiny, loaded.config),
        pooling=pooling,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        tokens = theirs.encode(["a fine film was bad"], output_value="token_embeddings")[0].numpy()
        vector = theirs.encode(["a fine film was bad"])[0]
    assert theirs.max_seq_length == 9
    np.testing.assert_allclose(pooling.apply_dense(tokens.mean(axis=0)[None])[0], vector, atol=1e-5)
