"""What may change between a checkpoint and the run that goes on from it, and how it is told."""

import pytest

from flaxbert.config import FreezeRule, RunConfig, TrainConfig
from flaxbert.errors import ConfigError
from flaxbert.train.recipes.resume import check_same_run, find_changes

MUST_AGREE = (("train", ("learning_rate", "freeze")), ("data", ("train",)), ("model", ("architecture",)))


def config(**train):
    return RunConfig(train=TrainConfig(**train)).to_dict()


def stored(settings):
    """Settings as they come back from JSON."""
    import json

    return json.loads(json.dumps(settings))


def test_the_same_settings_say_nothing():
    settings = config(freeze=(FreezeRule("a"),), class_weights=(1.0, 2.0))
    assert check_same_run(stored(settings), settings, MUST_AGREE) == ""


def test_all_changes_are_listed_and_those_that_spoil_the_run_refused():
    before = stored(config(learning_rate=1e-5, log_every=5, weight_decay=0.1))
    after = config(learning_rate=2e-5, log_every=7, weight_decay=0.2, freeze=(FreezeRule("a"),))
    with pytest.raises(ConfigError) as caught:
        check_same_run(before, after, MUST_AGREE)
    assert str(caught.value).splitlines()[1:] == [
        '  train.freeze: \'[]\' -> \'[{"pattern": "a", "frozen": true}]\' (refused)',
        "  train.learning_rate: 1e-05 -> 2e-05 (refused)",
        "  train.weight_decay: 0.1 -> 0.2 (from here on)",
        "  train.log_every: 5 -> 7 (changes nothing that is learned)",
        "Restore those that are refused, or choose another output.folder for a new run.",
    ]


def test_other_changes_are_told_and_the_run_goes_on():
    said = check_same_run(stored(config(hang_seconds=10.0)), config(hang_seconds=20.0, max_grad_norm=2.0), MUST_AGREE)
    assert said.splitlines() == [
        "Settings that have changed since the checkpoint (before -> now):",
        "  train.max_grad_norm: 1.0 -> 2.0 (from here on)",
        "  train.hang_seconds: 10.0 -> 20.0 (changes nothing that is learned)",
    ]


def test_settings_that_an_older_version_did_not_know_are_no_change():
    before = stored(config())
    del before["train"]["hang_seconds"], before["output"]
    assert check_same_run(before, config(), MUST_AGREE) == ""


def test_entries_of_a_mapping_are_settings_too():
    before = {"model": {"architecture": {"hidden_size": 8, "heads": 2}}}
    after = {"model": {"architecture": {"hidden_size": 16, "layers": 3}}}
    found = [(change.name, change.before, change.after) for change in find_changes(before, after, MUST_AGREE)]
    assert found == [
        ("model.architecture.heads", 2, "(none)"),
        ("model.architecture.hidden_size", 8, 16),
        ("model.architecture.layers", "(none)", 3),
    ]
    assert all(change.refused for change in find_changes(before, after, MUST_AGREE))
