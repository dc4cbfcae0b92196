"""Raw text: what is read and left out, how it is prepared, and what a tokenizer learns from it."""

import dataclasses
import re
from typing import Literal

from flaxbert.config.checks import require_at_least
from flaxbert.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """Which raw text is read and what its documents and sentences are.

    Attributes:
      inputs: Files (text, JSON lines, Parquet; .gz too), folders of such files, patterns such as ``books/*.txt``, or ids of data sets on the hub.
      format: text, jsonl, parquet or hub. Empty: from each name.
      text_column: Name of the text in JSON lines, Parquet and data sets; each row is a document.
      name: Configuration of a data set on the hub.
      split: Split of a data set on the hub, which is streamed.
      encoding: Text encoding of the files.
      document: What is one document of a text file: the whole file, what lies between blank lines, or a line.
      sentence: Whether lines are sentences already, or paragraphs (what lies between blank lines, or a line) are split into sentences.
      start_pattern: Regular expression; what comes before and in the first line of a file that it is found in is left out, such as the head of a book.
      end_pattern: The same for what comes in and after the first such line.
      max_document_characters: Longer documents are cut, between sentences where there are any, which bounds the memory.
    """

    inputs: tuple[str, ...] = ()
    format: Literal["", "text", "jsonl", "parquet", "hub"] = ""
    text_column: str = "text"
    name: str = ""
    split: str = "train"
    encoding: str = "utf-8"
    document: Literal["file", "blank_line", "line"] = "blank_line"
    sentence: Literal["line", "split"] = "split"
    start_pattern: str = ""
    end_pattern: str = ""
    max_document_characters: int = 1_000_000

    def __post_init__(self) -> None:
        require_at_least("corpus", "max_document_characters", self.max_document_characters, 1000)
        for name in ("start_pattern", "end_pattern"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise ConfigError(
                    f"corpus.{name} {getattr(self, name)!r} is no regular expression: {error}."
                ) from error
        try:
            "".encode(self.encoding)  # refuses also what is known, but is no encoding of text, such as hex
        except LookupError as error:
            raise ConfigError(f"corpus.encoding is {self.encoding!r}, which is no text encoding of Python.") from error


@dataclasses.dataclass(frozen=True)
class DedupConfig:
    """Which documents are left out because an earlier one is like them.

    Attributes:
      exact: Leave out documents whose words are those of an earlier one, whatever their blanks and capitals.
      near: Leave out documents that share most of their 5-word sequences (characters in scripts without blanks) with an earlier one (MinHash with locality sensitive hashing; Broder, 1997).
      threshold: Estimated Jaccard similarity from which documents count as near.
      num_permutations: Hash functions behind the estimate; its standard error is about ``1 / sqrt(num_permutations)``.
    """

    exact: bool = False
    near: bool = False
    threshold: float = 0.8
    num_permutations: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"dedup.threshold is {self.threshold}, but must be over 0 and at most 1.")
        require_at_least("dedup", "num_permutations", self.num_permutations, 16)


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """What ``flaxbert prepare`` makes of raw text.

    Attributes:
      folder: Folder of the corpus that is written.
      tokenizer: Folder of a model or of a tokenizer, or an id on the hub.
      num_shards: Files that the documents are dealt out to. The same shards come out whatever the number of workers.
      num_workers: Processes; 0 takes one for each processor.
      segmenter: ``module:function`` that cuts a text into words, for whole words of languages without blanks, for example ``jieba:lcut``. Empty: words are what the vocabulary says.
      max_document_tokens: Longer documents are stored in parts, cut after sentences: a part is what is read for one input.
      overwrite: Replace a corpus that is in the folder.
    """

    folder: str = "data/corpus"
    tokenizer: str = ""
    num_shards: int = 8
    num_workers: int = 0
    max_document_tokens: int = 8192
    segmenter: str = ""
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.num_shards < 1 or self.num_workers < 0:
            raise ConfigError(
                f"prepare.num_shards is {self.num_shards} and prepare.num_workers {self.num_workers}; there must be at least one shard, "
                "and no negative number of workers."
            )
        require_at_least("prepare", "max_document_tokens", self.max_document_tokens, 64)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """What ``flaxbert tokenizer train`` learns from raw text.

    Attributes:
      folder: Folder of the tokenizer that is written.
      kind: wordpiece (BERT's), bpe (RoBERTa's pairs of bytes) or unigram (SentencePiece's, as ALBERT and DeBERTa 3 have it).
      vocab_size: Most entries, special tokens included; multiples of 64 suit accelerators.
      lowercase: Whether case and accents are dropped; for wordpiece and unigram.
      min_frequency: Words or pairs that come less often are not learned; for wordpiece and bpe.
      max_documents: Documents that are read; 0 reads all.
      overwrite: Replace a tokenizer that is in the folder.
    """

    folder: str = "data/tokenizer"
    kind: Literal["wordpiece", "bpe", "unigram"] = "wordpiece"
    vocab_size: int = 30_528
    lowercase: bool = True
    min_frequency: int = 2
    max_documents: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.vocab_size < 8:
            raise ConfigError(
                f"tokenizer.vocab_size is {self.vocab_size}, which has no room beside the special tokens."
            )
        if self.kind == "bpe" and self.vocab_size < 256 + 5:
            raise ConfigError(
                f"tokenizer.vocab_size is {self.vocab_size}, but bpe needs 261 for bytes and special tokens."
            )
        if self.min_frequency < 1 or self.max_documents < 0:
            raise ConfigError(
                f"tokenizer.min_frequency is {self.min_frequency} and tokenizer.max_documents {self.max_documents}; the first must be "
                "at least 1, the second not negative."
            )


@dataclasses.dataclass(frozen=True)
class ExtensionConfig:
    """Which words ``flaxbert tokenizer extend`` adds to a vocabulary.

    Attributes:
      base: Folder of a model or of a tokenizer, or an id on the hub, whose vocabulary gets longer.
      folder: Folder of the tokenizer that is written.
      num_words: Most words that are added.
      min_frequency: Words that come less often are not added.
      min_pieces: Words that the vocabulary already writes with fewer tokens are not added.
      max_documents: Documents that are read; 0 reads all.
      overwrite: Replace a tokenizer that is in the folder.
    """

    base: str = ""
    folder: str = "data/tokenizer"
    num_words: int = 1000
    min_frequency: int = 10
    min_pieces: int = 3
    max_documents: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, least in (("num_words", 1), ("min_frequency", 1), ("min_pieces", 2), ("max_documents", 0)):
            require_at_least("extension", name, getattr(self, name), least)
