"""What happens to a classifier when other labels are asked for."""

import pytest

from flaxbert.architecture import ModelConfig
from flaxbert.errors import ConfigError
from flaxbert.weights.labels import plan_labels

CONFIG = ModelConfig(num_labels=3, labels=("bad", "fair", "good"), problem_type="single_label_classification")
TASK = "sequence-classification"


def test_without_labels_the_checkpoint_decides():
    plan = plan_labels(CONFIG, TASK, None, None, 3, True)
    assert plan.keeps_classifier
    assert plan.config == CONFIG
    assert plan.notes == ()


def test_number_of_labels_comes_from_the_tensor_where_the_config_is_silent():
    plan = plan_labels(ModelConfig(num_labels=2), TASK, None, None, 5, False)
    assert plan.config.num_labels == 5


def test_another_number_of_labels_draws_the_classifier_anew():
    plan = plan_labels(CONFIG, TASK, ("no", "yes"), None, 3, True)
    assert not plan.keeps_classifier
    assert plan.config.labels == ("no", "yes")
    assert plan.config.problem_type == ""
    assert "3 labels, 2 are asked for" in plan.notes[0]


def test_same_labels_in_another_order_reorder_the_classifier():
    plan = plan_labels(CONFIG, TASK, ("good", "bad", "fair"), None, 3, True)
    assert plan.keeps_classifier
    assert plan.order == (2, 0, 1)
    assert plan.config.labels == ("good", "bad", "fair")


def test_other_names_rename():
    plan = plan_labels(CONFIG, TASK, ("low", "mid", "high"), None, 3, True)
    assert plan.keeps_classifier
    assert plan.order is None
    assert "now called low, mid, high" in plan.notes[0]


def test_no_stored_classifier_needs_no_note():
    plan = plan_labels(ModelConfig(), TASK, ("a", "b", "c"), None, None, False)
    assert plan.config.num_labels == 3
    assert plan.notes == ()


def test_regression_has_one_output():
    plan = plan_labels(CONFIG, TASK, None, "regression", 3, True)
    assert plan.config.num_labels == 1
    assert plan.config.labels == ()
    assert not plan.keeps_classifier


def test_one_output_without_problem_type_is_regression():
    plan = plan_labels(ModelConfig(num_labels=1), TASK, None, None, 1, True)
    assert plan.config.problem_type == "regression"


@pytest.mark.parametrize(
    ("task", "labels", "problem_type", "message"),
    [
        (TASK, ("a", "a"), None, "'a' is given twice"),
        ("fill-mask", ("a", "b"), None, "has no classifier"),
        (TASK, None, "multi_label", "Did you mean 'multi_label_classification'"),
    ],
)
def test_unusable_requests(task, labels, problem_type, message):
    with pytest.raises(ConfigError, match=message):
        plan_labels(CONFIG, task, labels, problem_type, 3, True)
