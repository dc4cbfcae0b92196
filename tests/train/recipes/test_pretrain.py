"""Pre-training from text to a model that can be fine-tuned: learns, resumes bit for bit, refuses what does not fit."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from flaxbert.config import (
    CorpusConfig,
    DedupConfig,
    ExtensionConfig,
    MaskingConfig,
    ObjectiveConfig,
    OutputConfig,
    PrepareConfig,
    PretrainConfig,
    PretrainData,
    PretrainModel,
    PretrainPhase,
    TokenizerConfig,
    TrainConfig,
)
from flaxbert.core.trees import flatten_names
from flaxbert.errors import CheckpointError, ConfigError, DataError
from flaxbert.families import FAMILIES, get_family
from flaxbert.model import load
from flaxbert.nn.disentangled_attention import DisentangledOptions
from flaxbert.planning.workloads import pretraining_workloads
from flaxbert.train.callbacks import read_metrics
from flaxbert.train.folder_lock import FolderLock
from flaxbert.train.goodput import KINDS
from flaxbert.train.profile_window import trace_files
from flaxbert.train.recipes import plan
from flaxbert.train.recipes.prepare import prepare_corpus
from flaxbert.train.recipes.pretrain import pretrain
from flaxbert.train.recipes.pretraining_networks import build_networks, new_model_config
from flaxbert.train.recipes.pretraining_setup import metric_names, prepare_pretraining
from flaxbert.train.recipes.tokenizer import extend_tokenizer_for_corpus, train_tokenizer_of_corpus
from flaxbert.weights.tokenizer import tokenizer_alone
from tests.train.recipes.conftest import TINY
from tests.train.recipes.stopped_runs import StopAt


def config_of(corpus, folder, *, steps=30, pairs="none", model=None, train=None, **data):
    return PretrainConfig(
        model=model or PretrainModel(size="tiny", architecture=TINY, precision="float32"),
        data=PretrainData(
            **{"corpora": (str(corpus),), "row_length": 64, "validation_rate": 0.1, "max_validation_rows": 16, **data}
        ),
        masking=MaskingConfig(rate=0.2),
        objective=ObjectiveConfig(pairs=pairs),
        train=TrainConfig(
            **{
                "batch_size": 8,
                "num_steps": steps,
                "learning_rate": 2e-3,
                "evaluate_every": steps,
                "log_every": 5,
                **(train or {}),
            }
        ),
        output=OutputConfig(folder=str(folder), tensorboard=False, plots=False, progress="off"),
    )


def quiet(line):
    del line


def test_words_are_learned_and_the_model_loads_everywhere(corpus, tmp_path):
    from transformers import AutoModelForMaskedLM

    lines = []
    result = pretrain(config_of(corpus, tmp_path, steps=150), say=lines.append)
    assert result.before["perplexity"] > 25
    assert result.after["perplexity"] < 4
    assert result.after["masked_accuracy"] > 0.6
    assert set(result.after) == set(metric_names(ObjectiveConfig()))
    assert any("270 rows of 64 tokens, 270 pieces, packed to" in line for line in lines)
    folder = tmp_path / "model"
    assert load(folder).task == "fill-mask"
    stock = AutoModelForMaskedLM.from_pretrained(folder)
    assert stock.config.hidden_size == 32
    assert load(folder, task="sequence-classification", labels=("a", "b")).predict(["The cat sees the dog."])


@pytest.mark.slow
@pytest.mark.parametrize("pairs", ["sentence_order", "next_sentence"])
def test_pairs_are_learned(pairs, corpus, tmp_path):
    train = {"batch_size": 16, "learning_rate": 3e-3}
    result = pretrain(
        config_of(
            corpus, tmp_path, steps=300, pairs=pairs, validation_rate=0.3, max_validation_rows=0, train=train
        ),  # 30 held-out pairs are too few to tell 0.73 from 0.8
        say=quiet,
    )
    assert result.model.task == "pretraining"
    assert set(result.after) == set(metric_names(ObjectiveConfig(pairs=pairs)))
    assert result.before["pair_loss"] > 0.6
    # In a language of so few texts, one in a dozen that stand for another's is the next one by chance.
    loss, accuracy = (0.3, 0.85) if pairs == "sentence_order" else (0.5, 0.75)
    assert result.after["pair_loss"] < loss
    assert result.after["pair_accuracy"] > accuracy


def params_of(result):
    return flatten_names(result.model.params)


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(corpus, tmp_path):
    options = {"steps": 20, "train": {"num_steps": 20, "evaluate_every": 10}}
    whole = pretrain(config_of(corpus, tmp_path / "whole", **options), say=quiet)
    stopped = pretrain(config_of(corpus, tmp_path / "cut", **options), say=quiet, extra_callbacks=[StopAt(5)])
    assert (stopped.reason, stopped.after) == ("preempted", {})
    again = pretrain(config_of(corpus, tmp_path / "cut", num_workers=1, **options), say=quiet)
    assert all(np.array_equal(leaf, params_of(again)[name]) for name, leaf in params_of(whole).items())
    changed = config_of(corpus, tmp_path / "cut", **options)
    data = dataclasses.replace(changed.data, row_length=32)
    with pytest.raises(ConfigError, match=r"data\.row_length: 64 -> 32 \(refused\)"):
        pretrain(dataclasses.replace(changed, data=data))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [4, 8])
def test_a_run_that_was_stopped_before_an_evaluation_makes_it_first(stop, corpus, tmp_path):
    """Bad first steps make the last state the best one, whose metric is known only after the evaluation that is owed."""
    train = {"num_steps": 8, "evaluate_every": 4, "log_every": 1, "checkpoint_every": 5}
    whole = pretrain(config_of(corpus, tmp_path / "whole", train=train), say=quiet)
    pretrain(config_of(corpus, tmp_path / "cut", train=train), say=quiet, extra_callbacks=[StopAt(stop)])
    again = pretrain(config_of(corpus, tmp_path / "cut", train=train), say=quiet)
    assert [line["step"] for line in whole.history] == [line["step"] for line in again.history] == [4, 8]
    assert (again.step, again.after) == (whole.step, whole.after)
    assert all(np.array_equal(leaf, params_of(again)[name]) for name, leaf in params_of(whole).items())


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (
            {"hiden_dropout_prob": 0.0},
            r"names hiden_dropout_prob, which a new bert does not have\. Did you mean 'hidden_dropout_prob'",
        ),
        ({"vocab_size": 50}, "vocab_size in model.architecture is 50, but the tokenizer has ids up to 80"),
    ],
)
def test_an_architecture_that_would_not_do_is_refused(architecture, message):
    with pytest.raises(ConfigError, match=message):
        new_model_config(PretrainModel(size="tiny", architecture=architecture), 81, 64, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_made_new_and_as_its_own_config_says(family):
    pad = 1 if family == "mpnet" else 0
    config = new_model_config(PretrainModel(family=family, size="mini"), 96, 64, pad)
    written = {**get_family(family).config_to_json(config, "fill-mask"), "use_cache": True}
    again = new_model_config(PretrainModel(family=family, size="tiny", architecture=written), 96, 64, pad)
    assert again == config
    sizes = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size)
    assert sizes == (4, 256, 4, 1024)
    assert pretraining_workloads(PretrainConfig(PretrainModel(family=family, size="mini")))[0].flops_per_row > 0


def test_a_corpus_without_a_token_to_hide_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sees the dog.\n\n" * 30)
    (tmp_path / "b.txt").write_text("ÞÞÞ ÐÐÐ ÞÐ ÐÞÐ ÞÞ ÐÐ ÞÐÞ ÐÐÞ ÞÐÐ.\n\n".replace(".", "") * 30)
    tokenizer = TokenizerConfig(folder=str(tmp_path / "tokenizer"), vocab_size=40)
    train_tokenizer_of_corpus(tokenizer, CorpusConfig(inputs=(str(tmp_path / "a.txt"),)), say=quiet)
    prepare = PrepareConfig(
        folder=str(tmp_path / "c"), tokenizer=str(tmp_path / "tokenizer"), num_shards=1, num_workers=1
    )
    prepare_corpus(prepare, CorpusConfig(inputs=(str(tmp_path / "b.txt"),)), DedupConfig(), say=quiet)
    with pytest.raises(DataError, match="have no token that could be hidden: all are special ones"):
        pretrain(config_of(tmp_path / "c", tmp_path / "run", min_tokens=2), say=quiet)


@pytest.mark.slow
def test_a_run_knows_its_speed_its_time_and_its_norms(corpus, tmp_path):
    folder = tmp_path / "run"
    train = {"num_steps": 8, "log_every": 2, "checkpoint_every": 3, "profile": "3:4"}
    pretrain(config_of(corpus, folder, train=train), say=quiet)
    lines = read_metrics(folder / "metrics.jsonl")
    trained = [line for line in lines if line["kind"] == "train"]
    for line in trained:
        assert line["packing_efficiency"] == pytest.approx(1 - line["padding_rate"])
        assert 0.5 < line["packing_efficiency"] <= 1
        assert line["model_flops_per_second"] > 0
        assert line["param_norm"] > line["update_norm"] > 0
    end = lines[-1]
    assert set(end["seconds_by_kind"]) == set(KINDS)
    assert all(end["seconds_by_kind"][kind] > 0 for kind in ("step", "compile", "evaluation", "checkpoint", "profile"))
    assert 0 < end["goodput_rate"] < 1
    assert len(trace_files(folder / "profile")) == 1


def test_a_second_run_in_the_same_folder_is_refused(corpus, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    lock = FolderLock(tmp_path / "checkpoints")
    try:
        with pytest.raises(CheckpointError, match="already open for writing"):
            pretrain(config_of(corpus, tmp_path), say=quiet)
    finally:
        lock.release()
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_checkpoint_is_trained_further(corpus, tmp_path):
    first = pretrain(config_of(corpus, tmp_path / "a", steps=60), say=quiet)
    source = PretrainModel(path=str(tmp_path / "a" / "model"), precision="float32")
    second = pretrain(config_of(corpus, tmp_path / "b", steps=5, model=source), say=quiet)
    assert second.before["loss"] == pytest.approx(first.after["loss"], abs=0.02)


@pytest.mark.slow
def test_a_longer_vocabulary_goes_on_from_a_checkpoint(corpus, tmp_path):
    pretrain(config_of(corpus, tmp_path / "a", steps=2), say=quiet)
    tokenizer = tmp_path / "tokenizer"
    (tmp_path / "new.txt").write_text("The cat sees the foxdoghen and the hencatdog.\n" * 40)
    text = CorpusConfig(inputs=(str(tmp_path / "new.txt"),), document="line")
    extension = ExtensionConfig(base=str(tmp_path / "a" / "model"), folder=str(tokenizer), num_words=2)
    longer = extend_tokenizer_for_corpus(extension, text, say=quiet)
    prepare = PrepareConfig(folder=str(tmp_path / "corpus"), tokenizer=str(tokenizer), num_shards=1, num_workers=1)
    prepare_corpus(prepare, text, DedupConfig(), say=quiet)
    source = PretrainModel(path=str(tmp_path / "a" / "model"), precision="float32")
    result = pretrain(config_of(tmp_path / "corpus", tmp_path / "b", steps=2, model=source), say=quiet)
    size = len(longer.get_vocab())
    assert result.model.config.vocab_size == size
    again = load(tmp_path / "b" / "model")
    assert (again.config.vocab_size, len(again.tokenizer.get_vocab())) == (size, size)


@pytest.mark.slow
def test_phases_change_the_shape_of_batches_and_resume_between(corpus, tmp_path):
    phases = (PretrainPhase(share=2, row_length=32, batch_size=8), PretrainPhase(share=1, row_length=64, batch_size=16))
    options = {"steps": 9, "phases": phases, "train": {"num_steps": 9, "evaluate_every": 3, "log_every": 1}}
    whole = pretrain(config_of(corpus, tmp_path / "whole", **options), say=quiet)
    for step in (4, 7):
        pretrain(config_of(corpus, tmp_path / "cut", **options), say=quiet, extra_callbacks=[StopAt(step)])
    again = pretrain(config_of(corpus, tmp_path / "cut", **options), say=quiet)
    assert again.reason == "finished"
    assert all(np.array_equal(leaf, params_of(again)[name]) for name, leaf in params_of(whole).items())
    with pytest.raises(ConfigError, match=r"data\.phases need a number in train\.batch_size"):
        pretrain(config_of(corpus, tmp_path / "auto", **{**options, "train": {"batch_size": "auto"}}), say=quiet)


@pytest.mark.slow
def test_accumulation_changes_nothing(corpus, tmp_path):
    results = [
        pretrain(
            config_of(
                corpus,
                tmp_path / str(count),
                steps=4,
                pairs="next_sentence",
                train={"batch_size": 32, "accumulation_steps": count},
            ),
            say=quiet,
        )
        for count in (1, 4)
    ]
    assert results[0].after["loss"] == pytest.approx(results[1].after["loss"], abs=5e-3)
    assert results[0].after["pair_loss"] == pytest.approx(results[1].after["pair_loss"], abs=5e-3)


@pytest.mark.slow
def test_micro_batches_are_found_from_memory_for_all_phases(corpus, tmp_path, monkeypatch):
    phases = (
        PretrainPhase(share=1, row_length=32, batch_size=32),
        PretrainPhase(share=1, row_length=64, batch_size=16),
    )
    options = {"steps": 4, "phases": phases, "train": {"accumulation_steps": "auto", "batch_size": 32}}
    whole = pretrain(config_of(corpus, tmp_path / "whole", **options), say=quiet)
    needed, lines = [], []
    real = plan.estimate_step_memory

    def remember(compiled):
        needed.append(real(compiled))
        return needed[-1]

    monkeypatch.setattr(plan, "estimate_step_memory", remember)
    pretrain(config_of(corpus, tmp_path / "seen", **options), say=quiet)
    monkeypatch.setattr(plan, "memory_budget_bytes", lambda device: max(found.total for found in needed) - 1)
    cut = pretrain(config_of(corpus, tmp_path / "cut", **options), say=lines.append)
    (found,) = [line for line in lines if line.startswith("Batch size auto: 32 examples per step as ")]
    assert " as 1 micro batch " not in found
    assert cut.after["loss"] == pytest.approx(whole.after["loss"], abs=5e-3)


def test_what_does_not_fit_is_refused(corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.corpora is empty"):
        pretrain(PretrainConfig())
    with pytest.raises(DataError, match="is no prepared corpus"):
        pretrain(config_of(tmp_path, tmp_path))
    model = PretrainModel(family="roberta", size="tiny", architecture=TINY)
    with pytest.raises(ConfigError, match="The family roberta has no head for 'pretraining'"):
        pretrain(config_of(corpus, tmp_path, pairs="sentence_order", model=model))
    with pytest.raises(ConfigError, match=r"row_length is 600.*max_position_embeddings"):
        new_model_config(PretrainModel(size="tiny"), 64, 600, 0)
    other = tmp_path / "other"
    (tmp_path / "b.txt").write_text("Some other text. " * 50)
    text = CorpusConfig(inputs=(str(tmp_path / "b.txt"),))
    train_tokenizer_of_corpus(TokenizerConfig(folder=str(other), vocab_size=50), text, say=quiet)
    prepare_corpus(
        PrepareConfig(folder=str(tmp_path / "c"), tokenizer=str(other), num_shards=1, num_workers=1),
        text,
        DedupConfig(),
        say=quiet,
    )
    data = PretrainData(corpora=(str(corpus), str(tmp_path / "c")))
    with pytest.raises(DataError, match="was prepared with another tokenizer"):
        pretrain(PretrainConfig(data=data))
    written = json.loads((corpus / "corpus.json").read_text())
    assert written["num_documents"] == 300


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["tied", "disentangled", "none"])
def test_replaced_tokens_are_learned(sharing, corpus, tmp_path):
    sizes = {**TINY, "embedding_size": 32}
    model = PretrainModel(family="electra", size="tiny", architecture=sizes, precision="float32")
    train = {"batch_size": 16, "learning_rate": 3e-3}
    config = config_of(corpus, tmp_path, steps=100, model=model, max_validation_rows=0, train=train)
    objective = ObjectiveConfig(replaced_tokens=True, sharing=sharing, generator_rate=0.5)
    result = pretrain(dataclasses.replace(config, objective=objective), say=quiet)
    assert result.model.task == "replaced-token-detection"
    assert result.before["replaced_loss"] > 0.6
    assert result.after["replaced_loss"] < 0.3
    assert result.after["replaced_accuracy"] > 1.0 - result.after["replaced_rate"] + 0.02
    assert result.after["replaced_recall"] > 0.4
    generator = load(tmp_path / "generator")
    assert (generator.task, generator.config.hidden_size) == ("fill-mask", 16)
    assert load(tmp_path / "model", task="sequence-classification", labels=("a", "b")).config.family == "electra"


@pytest.mark.slow
def test_deberta_learns_replaced_tokens_with_disentangled_embeddings(corpus, tmp_path):
    model = PretrainModel(family="deberta-v2", size="tiny", architecture=TINY, precision="float32")
    train = {"batch_size": 16, "learning_rate": 3e-3}
    config = config_of(corpus, tmp_path, steps=150, model=model, max_validation_rows=0, train=train)
    objective = ObjectiveConfig(replaced_tokens=True, sharing="disentangled", generator_rate=0.5)
    result = pretrain(dataclasses.replace(config, objective=objective), say=quiet)
    options = result.model.config.own(DisentangledOptions)
    assert (options.scores_contents, options.scores_positions, options.position_buckets) == (True, True, 256)
    assert result.before["replaced_loss"] > 0.6
    assert result.after["replaced_loss"] < 0.3
    assert result.after["replaced_recall"] > 0.4
    assert load(tmp_path / "generator").config.num_hidden_layers == 1
    again = load(tmp_path / "model", task="replaced-token-detection")
    assert again.account.initialized == ()
    assert load(tmp_path / "model", task="sequence-classification", labels=("a", "b")).config.family == "deberta-v2"


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["tied", "disentangled", "none"])
def test_replaced_tokens_go_on_from_checkpoints(sharing, corpus, tmp_path):
    model = PretrainModel(
        family="electra", size="tiny", architecture={**TINY, "embedding_size": 32}, precision="float32"
    )
    config = config_of(corpus, tmp_path / "first", steps=10, model=model, train={"learning_rate": 3e-3})
    objective = ObjectiveConfig(replaced_tokens=True, generator_rate=0.5)
    first = pretrain(dataclasses.replace(config, objective=objective), say=quiet)
    folder = tmp_path / "first"
    config = config_of(
        corpus, tmp_path / "second", steps=1, model=PretrainModel(path=str(folder / "model"), precision="float32")
    )
    objective = ObjectiveConfig(replaced_tokens=True, generator=str(folder / "generator"), sharing=sharing)
    second = pretrain(dataclasses.replace(config, objective=objective), say=quiet)
    assert second.before == pytest.approx(first.after, rel=1e-5)
    assert load(tmp_path / "second" / "generator").config.hidden_size == 16


@pytest.mark.slow
def test_a_checkpoint_s_embeddings_win_over_new_ones_and_two_that_differ_are_not_tied(corpus, tmp_path):
    tokenizer = tokenizer_alone(corpus / "tokenizer")
    sizes = {**TINY, "embedding_size": 32}
    build = functools.partial(build_networks, tokenizer=tokenizer, row_length=64)
    electra = PretrainModel(family="electra", size="tiny", architecture=sizes, precision="float32")
    replaced = ObjectiveConfig(replaced_tokens=True, generator_rate=0.5, sharing="disentangled")
    made = build(electra, replaced, seed=1)
    trained = made.trained(made.params)
    for name, part in trained.items():
        part.save(tmp_path / name)
    tables = {name: part.params["embeddings"]["word"]["embedding"] for name, part in trained.items()}
    np.testing.assert_array_equal(tables["model"], tables["generator"])
    stored = PretrainModel(path=str(tmp_path / "model"), precision="float32")
    for sharing in ("tied", "disentangled"):
        found = build(stored, dataclasses.replace(replaced, sharing=sharing), seed=2)
        for part in found.trained(found.params).values():
            np.testing.assert_array_equal(part.params["embeddings"]["word"]["embedding"], tables["model"])
    other = dataclasses.replace(replaced, sharing="tied", generator=str(tmp_path / "generator"))
    found = build(electra, other, seed=2)
    np.testing.assert_array_equal(
        found.trained(found.params)["model"].params["embeddings"]["word"]["embedding"], tables["model"]
    )
    build(electra, ObjectiveConfig(), seed=3).main.save(tmp_path / "third")
    with pytest.raises(ConfigError, match="can not be tied"):
        build(stored, dataclasses.replace(other, generator=str(tmp_path / "third")), seed=2)


@pytest.mark.slow
def test_the_whole_objective_chooses_the_best_step_unless_a_metric_is_named(corpus, tmp_path):
    def metric(objective=None, family="bert", **train):
        model = PretrainModel(family=family, size="tiny", architecture=TINY, precision="float32")
        run = config_of(corpus, tmp_path, model=model, train=train)
        config = dataclasses.replace(run, objective=objective or ObjectiveConfig())
        return prepare_pretraining(config, quiet).metric

    assert metric() == ("loss", False)
    assert metric(metric="masked_accuracy") == ("masked_accuracy", True)
    assert metric(ObjectiveConfig(pairs="next_sentence")) == ("total_loss", False)
    assert metric(ObjectiveConfig(pairs="next_sentence"), metric="pair_accuracy") == ("pair_accuracy", True)
    replaced = ObjectiveConfig(replaced_tokens=True)
    assert metric(replaced, "electra", metric="replaced_recall") == ("replaced_recall", True)
    with pytest.raises(ConfigError, match="The family bert has no head for 'replaced-token-detection'"):
        metric(replaced)
    with pytest.raises(ConfigError, match=r"train\.metric is 'f1'.* has loss, perplexity, masked_accuracy\."):
        metric(metric="f1")


def test_words_of_a_script_without_blanks_need_a_segmenter(tmp_path):
    (tmp_path / "text.txt").write_text("模型训练。\n\n" * 20, "utf-8")
    text = CorpusConfig(inputs=(str(tmp_path / "text.txt"),))
    tokenizer = TokenizerConfig(folder=str(tmp_path / "tokenizer"), vocab_size=20)
    train_tokenizer_of_corpus(tokenizer, text, say=quiet)
    for segmenter, unit, told in (("", "word", True), ("", "token", False), ("builtins:list", "word", False)):
        config = PrepareConfig(
            folder=str(tmp_path / "corpus"),
            tokenizer=str(tmp_path / "tokenizer"),
            num_shards=1,
            num_workers=1,
            segmenter=segmenter,
            overwrite=True,
        )
        prepare_corpus(config, text, DedupConfig(), say=quiet)
        run = dataclasses.replace(
            config_of(tmp_path / "corpus", tmp_path, min_tokens=2), masking=MaskingConfig(unit=unit)
        )
        lines = []
        prepare_pretraining(run, lines.append)
        assert any("prepare the corpus with prepare.segmenter" in line for line in lines) is told, (segmenter, unit)


def test_rows_longer_than_the_positions_of_a_checkpoint_are_refused(corpus, tmp_path):
    tokenizer = tokenizer_alone(corpus / "tokenizer")
    short = PretrainModel(size="tiny", architecture={**TINY, "max_position_embeddings": 32}, precision="float32")
    build_networks(short, ObjectiveConfig(), tokenizer, 32, 0).main.save(tmp_path / "short")
    stored = PretrainModel(path=str(tmp_path / "short"), precision="float32")
    with pytest.raises(ConfigError, match=r"data\.row_length is 64, but the model at .*short has positions for 32"):
        build_networks(stored, ObjectiveConfig(), tokenizer, 64, 0)


def test_settings_that_pretraining_does_not_use_are_refused():
    for options in ({"label_smoothing_rate": 0.1}, {"class_weights": "balanced"}):
        with pytest.raises(ConfigError, match="does not use train"):
            PretrainConfig(train=TrainConfig(**options))


def test_contradicting_objectives_are_refused():
    with pytest.raises(ConfigError, match="do not go together"):
        ObjectiveConfig(replaced_tokens=True, pairs="next_sentence")
    with pytest.raises(ConfigError, match=r"read with objective\.replaced_tokens"):
        ObjectiveConfig(generator="folder")
