"""Whole comparisons: the same model stored in several ways, other labels, other tasks, other sizes."""

import dataclasses

import pytest

from flaxbert.comparison.compare import compare_models
from flaxbert.config import DataConfig
from flaxbert.errors import ConfigError, DataError
from flaxbert.model import load
from tests.comparison.conftest import QUICK, write_examples
from tests.weights.tiny import CONFIG, random_params, write_tiny

ONLY = DataConfig(max_length=0)


def by_name(comparison):
    return {model.folder.name: model for model in comparison.models}


def test_the_same_model_stored_in_four_ways(comparison):
    found = by_name(comparison)
    assert list(found) == ["float", "int8", "int4", "both"]
    reference = found["float"]
    assert reference.quality.metrics["accuracy"] == 0.75
    assert (reference.layers, reference.weights, reference.refused) == ((), None, {})
    assert all(not model.refused for model in found.values())
    for name in ("int8", "int4", "both"):
        assert found[name].folder.size.size_bytes < reference.folder.size.size_bytes
        assert found[name].quality.num_examples == 8
        assert found[name].quality.difference is not None
        assert 0.0 <= found[name].quality.agreement <= 1.0
        assert len(found[name].layers) == 3
        assert found[name].weights.left_out == {}
    errors = {name: found[name].layers[-1].relative_error for name in ("int8", "int4", "both")}
    assert 0.0 < errors["int8"] < errors["int4"] < errors["both"]
    assert all(0.0 < found[name].output_error < 2.0 for name in errors)


def test_low_precision_is_told_of_the_program_not_of_the_storage(comparison):
    shares = {name: model.low_precision_share("float32") for name, model in by_name(comparison).items()}
    assert shares["float"] == shares["int4"] == 0.0
    assert 0.0 < shares["int8"] == shares["both"] < 1.0


def test_every_model_is_timed_in_groups_with_the_reference(comparison):
    for model in comparison.models:
        (latency,) = model.latencies
        assert (latency.batch_size, latency.length, latency.rounds) == (2, 16, 3)
        assert latency.median_seconds <= latency.p90_seconds
        assert latency.rows_per_second == pytest.approx(2 / latency.median_seconds)
    assert comparison.reference.latencies[0].speedup == 1.0
    assert comparison.settings.lengths == (16,)


def test_the_text_has_all_tables(comparison):
    text = comparison.to_text()
    for title in ("Size and products", "Speed", "Quality on dev.tsv", "Distance from the reference"):
        assert title in text
    assert all(model.folder.name in text for model in comparison.models)


@pytest.mark.slow
def test_other_labels_sizes_and_blocks_are_compared_as_far_as_they_go(models, examples, tmp_path):
    config = CONFIG.replace(num_hidden_layers=1, labels=("a", "b", "c"))
    student = write_tiny(tmp_path / "student", config=config)
    wide = write_tiny(tmp_path / "wide", config=CONFIG.replace(hidden_size=24, max_position_embeddings=12))
    settings = dataclasses.replace(QUICK, examples=examples, lengths=(8, 16))
    found = by_name(compare_models([models["float"], str(student), str(wide)], settings, ONLY))
    assert "its labels are a, b, c" in found["student"].refused["quality"]
    assert found["student"].quality is None
    assert [entry.reference_layer for entry in found["student"].layers] == [0, 2]
    assert found["student"].output_error is None
    assert all(".layers." not in leaf.name for leaf in found["student"].weights.leaves)
    assert "blocks" in found["student"].weights.left_out["encoder.layers.0.attention.query.kernel"]
    assert found["wide"].quality is not None
    assert "12 tokens" in found["wide"].refused["speed"]
    assert [entry.length for entry in found["wide"].latencies] == [8]
    assert {"hidden states", "speed"} <= set(found["wide"].refused)


@pytest.mark.slow
def test_other_tasks_and_tokenizers_are_compared_without_examples(models, tmp_path):
    tagger = write_tiny(tmp_path / "tagger", task="token-classification")
    other = write_tiny(tmp_path / "words")
    words = (other / "vocab.txt").read_text().split("\n")
    (other / "vocab.txt").write_text("\n".join([*words[:5], *reversed(words[5:-1]), ""]))
    found = by_name(compare_models([models["float"], str(tagger), str(other)], QUICK, ONLY))
    assert len(found["tagger"].layers) == 3
    assert found["tagger"].output_error is None
    assert found["tagger"].latencies
    assert "other tokens" in found["words"].refused["hidden states"]
    assert found["words"].weights.leaves
    assert all(model.quality is None for model in found.values())


@pytest.mark.slow
def test_a_model_for_another_task_has_no_quality_beside_the_reference(models, tmp_path):
    tagger = write_tiny(tmp_path / "tagger", task="token-classification")
    examples = write_examples(tmp_path / "two.tsv", [("fine", "good"), ("bad film", "bad")])
    settings = dataclasses.replace(QUICK, examples=examples)
    found = by_name(compare_models([models["float"], str(tagger)], settings, ONLY))["tagger"]
    assert found.quality is None
    assert found.refused["quality"] == "it is for token-classification, the reference for sequence-classification."


@pytest.mark.slow
def test_sentence_encoders_are_compared_on_scored_pairs(tmp_path):
    from flaxbert.weights.save import save_checkpoint
    from flaxbert.weights.sentence_transformers import SentencePooling

    folders = []
    for seed in (0, 1):
        folder = tmp_path / f"sentences{seed}"
        params = random_params(CONFIG, "sentence-similarity", seed)
        save_checkpoint(folder, config=CONFIG, task="sentence-similarity", params=params, pooling=SentencePooling())
        write_tiny(tmp_path / "words")
        for name in ("vocab.txt", "tokenizer_config.json"):
            (folder / name).write_text((tmp_path / "words" / name).read_text())
        folders.append(str(folder))
        for path in sorted((tmp_path / "words").iterdir()):
            path.unlink()
        (tmp_path / "words").rmdir()
    rows = [("fine", "a fine film", 5), ("bad", "fine", 1), ("the film", "films", 3), ("bad film", "was bad .", 4)]
    examples = write_examples(tmp_path / "pairs.tsv", rows, "first\tsecond\tscore")
    data = DataConfig(max_length=0, text_column="first", text_pair_column="second", label_column="score")
    settings = dataclasses.replace(QUICK, examples=examples)
    found = by_name(compare_models(folders, settings, data))
    assert {model.quality.primary for model in found.values()} == {"spearman"}
    other = found["sentences1"].quality
    assert other.agreement_name.startswith("Spearman")
    assert -1.0 <= other.agreement < 1.0


def test_what_can_not_begin_is_refused_before_any_work(models, examples, tmp_path):
    settings = dataclasses.replace(QUICK, examples=examples, lengths=(17,))
    with pytest.raises(ConfigError, match="'float' takes at most 16 tokens"):
        compare_models([models["float"], models["int8"]], settings, ONLY)
    masked = write_tiny(tmp_path / "masked", task="fill-mask")
    with pytest.raises(ConfigError, match="'fill-mask'"):
        compare_models([str(masked), models["int8"]], dataclasses.replace(QUICK, examples=examples), ONLY)
    wrong = write_examples(tmp_path / "wrong.tsv", [("fine", "god")])
    with pytest.raises(DataError, match=r"wrong\.tsv, line 2: the label 'god'"):
        compare_models([models["float"], models["int8"]], dataclasses.replace(QUICK, examples=wrong), ONLY)


@pytest.mark.slow
def test_a_model_without_tokenizer_is_run_on_drawn_ids(models, tmp_path):
    folders = []
    for name in ("first", "second"):
        folder = write_tiny(tmp_path / name)
        for file in ("vocab.txt", "tokenizer_config.json"):
            (folder / file).unlink()
        folders.append(str(folder))
    assert load(folders[0]).tokenizer is None
    found = by_name(compare_models(folders, QUICK, ONLY))
    assert [entry.relative_error for entry in found["second"].layers] == [0.0, 0.0, 0.0]
    assert found["second"].latencies
    texts = tmp_path / "texts.txt"
    texts.write_text("fine\n")
    with pytest.raises(ConfigError, match="no tokenizer, so that .* can not be read"):
        compare_models(folders, dataclasses.replace(QUICK, texts=str(texts)), ONLY)
