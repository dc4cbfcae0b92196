"""Which leaf a tensor name belongs to."""

import pytest

from flaxbert.errors import WeightsError
from flaxbert.families import get_family
from flaxbert.weights.name_table import TensorAccount, check_unexpected, derive_task, head_of, name_tensors
from tests.weights.tiny import CONFIG

BERT = get_family("bert")
BARE = [entry.tensor for entry in BERT.tensor_table(CONFIG).values() if entry.in_base]


@pytest.mark.parametrize(
    ("outer", "note"),
    [
        ("", "prefix 'bert.' added"),
        ("bert.", ""),
        ("module.bert.", "prefix 'module.' removed"),
        ("module.", "prefix 'module.' removed"),
        ("0.auto_model.", "prefix '0.auto_model.' removed"),
    ],
)
def test_prefixes(outer, note):
    named = name_tensors([outer + name for name in BARE], BERT, CONFIG)
    assert named.unexpected == ()
    assert named.prefix == note
    assert (
        named.leaves["encoder.layers.1.attention.query.kernel"] == f"{outer}encoder.layer.1.attention.self.query.weight"
    )


def test_heads_have_no_prefix():
    names = [f"bert.{name}" for name in BARE] + ["classifier.weight", "classifier.bias"]
    assert name_tensors(names, BERT, CONFIG).leaves["classifier.kernel"] == "classifier.weight"


def test_old_names_and_weightless_tensors():
    names = ["bert.embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.beta", "bert.embeddings.position_ids"]
    named = name_tensors(names, BERT, CONFIG)
    assert named.leaves == {"embeddings.norm.scale": names[0], "embeddings.norm.bias": names[1]}
    assert named.renamed == {names[0]: "bert.embeddings.LayerNorm.weight", names[1]: "bert.embeddings.LayerNorm.bias"}
    assert named.ignored == (names[2],)


def test_tied_and_foreign_tensors_are_known():
    named = name_tensors(["cls.predictions.decoder.weight", "qa_outputs.weight", "fit_denses.0.weight"], BERT, CONFIG)
    assert named.tied == {"cls.predictions.decoder.weight": "cls.predictions.decoder.weight"}
    assert named.leaves == {"span.kernel": "qa_outputs.weight"}
    assert named.foreign == ("fit_denses.0.weight",)


def test_what_only_checkpoints_of_tensorflow_hold():
    names = ["global_step", "bert/pooler/dense/kernel/adam_v", "generator/encoder/layer_0/output/dense/bias"]
    named = name_tensors([*BARE, *names], BERT, CONFIG)
    assert named.ignored == tuple(names[:2])
    assert named.foreign == (names[2],)
    assert named.unexpected == ()


def test_long_lists_are_shortened():
    names = tuple(f"t{number}" for number in range(20))
    assert TensorAccount(ignored=names).summary().splitlines()[1].endswith("t14, t15 and 4 more")


def test_two_tensors_of_one_leaf():
    with pytest.raises(WeightsError, match=r"both claim the leaf 'embeddings.norm.scale'"):
        name_tensors(["embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"], BERT, CONFIG)


def test_two_encoders():
    with pytest.raises(WeightsError, match="more than one encoder"):
        name_tensors([outer + name for name in BARE for outer in ("encoder.", "decoder.")], BERT, CONFIG)


def test_unexpected_names_are_listed_with_the_nearest():
    names = [*BARE, "encoder.layer.0.attention.self.querry.weight", "encoder.layer.9.output.dense.bias"]
    named = name_tensors(names, BERT, CONFIG)
    with pytest.raises(WeightsError, match=r"2 tensors .* Did you mean .*self\.query\.weight.*layer\.9"):
        check_unexpected(named, BERT, CONFIG)
    check_unexpected(name_tensors(BARE, BERT, CONFIG), BERT, CONFIG)


@pytest.mark.parametrize(
    ("heads", "task"),
    [
        ((), "feature-extraction"),
        (("pooler.dense.bias",), "feature-extraction"),
        (("pooler.dense.bias", "classifier.bias"), "sequence-classification"),
        (("classifier.bias",), "token-classification"),
        (("masked_lm.bias",), "fill-mask"),
        (("masked_lm.bias", "next_sentence.bias", "pooler.dense.bias"), "pretraining"),
        (("next_sentence.bias", "pooler.dense.bias"), "next-sentence-prediction"),
    ],
)
def test_task_from_leaves(heads, task):
    assert derive_task(["embeddings.norm.bias", *heads]) == task


def test_head_of():
    assert head_of("classifier.kernel") == "classifier"
    assert head_of("encoder.layers.0.attention.query.kernel") == ""


def test_summary_names_what_matters():
    text = TensorAccount(
        used=("a", "b"), unused=("c",), initialized=("classifier.kernel",), notes=("Noted.",)
    ).summary()
    assert text.splitlines() == [
        "2 tensors used",
        "unused by this task: c",
        "newly initialised: classifier.kernel",
        "Noted.",
    ]
