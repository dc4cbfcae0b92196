"""``flaxbert prepare``: makes a tokenized corpus of raw text."""

from flaxbert.config import CorpusConfig, DedupConfig, PrepareConfig


def run(
    corpus: CorpusConfig = CorpusConfig(),
    prepare: PrepareConfig = PrepareConfig(),
    dedup: DedupConfig = DedupConfig(),
) -> int:
    """Reads raw text, leaves out what it has twice, tokenizes it, and writes it in shards that pre-training reads at any place.

    Args:
      corpus: Which text, and what its documents and sentences are.
      prepare: Tokenizer, folder, shards, workers.
      dedup: Which documents count as repeated.

    Returns:
      The exit code.
    """
    from flaxbert.train.recipes.prepare import prepare_corpus

    prepare_corpus(prepare, corpus, dedup)
    return 0
