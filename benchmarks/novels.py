"""A prepared corpus for the benchmarks of pre-training: the novels in ``FLAXBERT_TEST_DATA``, or a folder of one's own."""

import os
import pathlib
from typing import Literal

START, END = r"\*\*\* ?START OF", r"\*\*\* ?END OF"
"""What stands around the text of a book of Project Gutenberg."""


def prepare_novels(
    folder: pathlib.Path, vocab_size: int, document: Literal["file", "blank_line"] = "file"
) -> pathlib.Path:
    """Learns a tokenizer from the novels and prepares them with it, unless the folder has them already.

    Args:
      folder: Where to.
      vocab_size: Entries of the WordPiece vocabulary.
      document: What is one document: file, or blank_line for paragraphs.

    Returns:
      The folder of the corpus.

    Raises:
      SystemExit: There are no novels.
    """
    from flaxbert.config import CorpusConfig, DedupConfig, PrepareConfig, TokenizerConfig
    from flaxbert.train.recipes.prepare import prepare_corpus
    from flaxbert.train.recipes.tokenizer import train_tokenizer_of_corpus

    data = os.environ.get("FLAXBERT_TEST_DATA")
    books = pathlib.Path(data or "") / "gutenberg"
    if not data or not books.is_dir():
        raise SystemExit("FLAXBERT_TEST_DATA names no folder with gutenberg/; name a prepared corpus with --corpus.")
    target = folder / f"{document}-{vocab_size}"
    if (target / "corpus.json").is_file():
        return target
    text = CorpusConfig(
        inputs=(str(books),), document=document, start_pattern=START, end_pattern=END, max_document_characters=20_000
    )
    tokenizer = folder / f"tokenizer-{vocab_size}"
    if not tokenizer.is_dir():
        train_tokenizer_of_corpus(TokenizerConfig(folder=str(tokenizer), vocab_size=vocab_size), text, say=_quiet)
    config = PrepareConfig(folder=str(target), tokenizer=str(tokenizer), num_shards=4)
    prepare_corpus(config, text, DedupConfig(), say=_quiet)
    return target


def _quiet(line: str) -> None:
    del line
