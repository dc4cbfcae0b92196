"""One model in every format gives the same leaves bit by bit, and a real TensorFlow checkpoint the logits of torch."""

import functools
import json
import re

import numpy as np
import pytest
from flax import serialization

from flaxbert.core.trees import flatten_names
from flaxbert.weights.formats.protobuf import read_fields
from flaxbert.weights.formats.sorted_table import read_sorted_table
from flaxbert.weights.load import load_checkpoint
from tests.parity.oracle import (
    Case,
    make_batch,
    make_torch_model,
    our_outputs,
    save_torch,
    torch,
    torch_outputs,
    worst_excess,
)
from tests.weights.formats.bundle import write_bundle

pytestmark = pytest.mark.parity

CASES = [
    Case("pretraining", "pretraining"),
    Case("sequence classification", "sequence-classification"),
    Case("roberta masked words", "fill-mask", family="roberta"),
    Case("roberta classification", "sequence-classification", family="roberta"),
    Case("distilbert masked words", "fill-mask", family="distilbert"),
    Case("electra classification", "token-classification", family="electra"),
]


def _tensors(model):
    """The tensors of a stock model under the names it saves, tied ones once."""
    kept = dict(model.named_parameters())
    return {name: tensor.detach().clone() for name, tensor in kept.items()}


def _write_torch(folder, model, layout):
    torch.save(_tensors(model), folder / "pytorch_model.bin", _use_new_zipfile_serialization=layout)


def _write_torch_shards(folder, model):
    tensors, weight_map = _tensors(model), {}
    for number in (1, 2):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        part = {name: tensors[name] for name in list(tensors)[number - 1 :: 2]}
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _write_flax(folder, model):
    """The tree of the former Flax classes: kernels are [in, out], tables and norms have words of their own."""
    tree = {}
    for name, tensor in _tensors(model).items():
        *path, last = name.split(".")
        array = tensor.numpy()
        if last == "weight":
            kind = "embedding" if "embeddings" in path[-1] else "scale" if array.ndim == 1 else "kernel"
            array, last = (array.T if kind == "kernel" else array), kind
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = np.ascontiguousarray(array)
    (folder / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))


def _to_variable(name, array):
    """Google's name and axes of a tensor of BERT."""
    name = re.sub(r"\.layer\.(\d+)\.", r".layer_\1.", name)
    last = name.rsplit(".", 1)[-1]
    if name == "cls.predictions.bias":
        return "cls/predictions/output_bias", array
    if name.startswith(("cls.seq_relationship", "classifier")):
        kind = "output_weights" if last == "weight" else "output_bias"
        return ("cls/seq_relationship/" if name.startswith("cls") else "") + kind, array
    if "LayerNorm" in name:
        return name.removesuffix(last).replace(".", "/") + {"weight": "gamma", "bias": "beta"}[last], array
    if "_embeddings" in name:
        return name.removesuffix(".weight").replace(".", "/"), array
    if last == "weight":
        return name.removesuffix(last).replace(".", "/") + "kernel", np.ascontiguousarray(array.T)
    return name.replace(".", "/"), array


def _write_tensorflow(folder, model):
    variables = dict(_to_variable(name, tensor.numpy()) for name, tensor in _tensors(model).items())
    slots = {f"{name}/{slot}": array * 2 for name, array in variables.items() for slot in ("adam_m", "adam_v")}
    write_bundle(folder / "bert_model.ckpt", variables | slots | {"global_step": np.array(7)}, num_shards=2)


WRITERS = {
    "archive": functools.partial(_write_torch, layout=True),
    "old layout": functools.partial(_write_torch, layout=False),
    "shards": _write_torch_shards,
    "flax": _write_flax,
    "tensorflow": _write_tensorflow,
}


PAIRS = [(case, kind) for case in CASES for kind in WRITERS if kind != "tensorflow" or case.family == "bert"]
"""Google's layout is that of BERT."""


@pytest.mark.parametrize(("case", "kind"), PAIRS, ids=[f"{case.name}, {kind}" for case, kind in PAIRS])
def test_every_format_gives_the_same_leaves(tmp_path, case, kind):
    model = make_torch_model(case)
    folder = save_torch(model, tmp_path / "model")
    expected = load_checkpoint(folder, case.task)
    (folder / "model.safetensors").unlink()
    WRITERS[kind](folder, model)
    found = load_checkpoint(folder, case.task)
    assert found.config == expected.config
    assert found.account.initialized == ()
    leaves, due = flatten_names(found.params), flatten_names(expected.params)
    assert leaves.keys() == due.keys()
    for name, leaf in leaves.items():
        assert (leaf.dtype, leaf.shape) == (due[name].dtype, due[name].shape)
        assert leaf.flags.c_contiguous
        assert leaf.tobytes() == due[name].tobytes(), name


def _real_variables(folder):
    """The variables of the real checkpoint, cut out of its data by hand."""
    data = (folder / "bert_model.ckpt.data-00000-of-00001").read_bytes()
    variables = {}
    for key, value in read_sorted_table(folder / "bert_model.ckpt.index", "TensorFlow checkpoint")[1:]:
        fields = dict(read_fields(value))
        shape = [dict(read_fields(dim)).get(1, 0) for _, dim in read_fields(fields.get(2, b""))]
        offset = fields.get(4, 0)
        dtype = {1: "<f4", 9: "<i8"}[fields[1]]
        variables[key.decode()] = np.frombuffer(data[offset : offset + fields[5]], dtype).reshape(shape).copy()
    return variables


def _assign(model, variables):
    """Puts variables into a stock model by walking through its modules, as transformers once did."""
    assigned = []
    for name, array in variables.items():
        if name == "global_step" or name.endswith(("adam_m", "adam_v")):
            continue
        target = model
        for part in re.sub(r"layer_(\d+)", r"layer/\1", name).split("/"):
            word = {"kernel": "weight", "gamma": "weight", "beta": "bias", "output_bias": "bias"}.get(part, part)
            word = {"output_weights": "weight"}.get(word, word)
            target = target[int(word)] if word.isdigit() else getattr(target, word)
        if isinstance(target, torch.nn.Embedding):
            target = target.weight
        array = array.T if name.endswith("kernel") else array
        assert tuple(target.shape) == array.shape, name
        with torch.no_grad():
            target.copy_(torch.from_numpy(np.ascontiguousarray(array)))
        assigned.append(name)
    return assigned


def test_a_real_tensorflow_checkpoint_gives_the_logits_of_torch(test_data):
    import transformers

    folder = test_data / "tf_ckpt_tiny"
    settings = json.loads((folder / "bert_config.json").read_text())
    model = transformers.BertForPreTraining(transformers.BertConfig(**settings)).eval()
    assigned = _assign(model, _real_variables(folder))
    loaded = load_checkpoint(folder, "pretraining")
    assert len(assigned) == len(loaded.account.used) == 46
    assert len(loaded.account.ignored) == 2 * 46 + 1
    assert loaded.account.initialized == loaded.account.unused == ()
    kernel = loaded.params["encoder"]["layers"]["1"]["feed_forward"]["up"]["kernel"]
    np.testing.assert_array_equal(kernel, model.bert.encoder.layer[1].intermediate.dense.weight.detach().numpy().T)
    batch = make_batch(Case("real", "pretraining", {"vocab_size": 15, "type_vocab_size": 2}))
    ours = our_outputs(loaded.config, loaded.task, loaded.params, batch)
    float32, float64 = (torch_outputs(model, batch, dtype) for dtype in (torch.float32, torch.float64))
    assert ours.keys() >= float32.keys()
    assert worst_excess(ours, float32, float64, batch) <= 1
    assert load_checkpoint(folder).task == "pretraining"
    assert load_checkpoint(folder, "fill-mask").account.initialized == ()
