"""Settings that make no sense are refused with their name."""

import pytest

from flaxbert.comparison.settings import ComparisonSettings
from flaxbert.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, r"compare\.rounds is 0"),
        ({"together": 1}, r"compare\.together is 1, but must be at least 2"),
        ({"batch_sizes": ()}, r"compare\.batch_sizes is empty"),
        ({"batch_sizes": (1, 0)}, r"compare\.batch_sizes holds 0"),
        ({"batch_sizes": (8, 8)}, r"names a number twice"),
        ({"lengths": (2,)}, r"compare\.lengths holds 2, but must hold numbers of at least 3"),
        ({"num_texts": 0}, r"compare\.num_texts is 0"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        ComparisonSettings(**changes)
