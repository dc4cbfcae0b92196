"""One file per task: what its examples are, how they become tokens, and how outputs become predictions and scores."""
