"""Examples from files, folders, the hub or a program, as checked texts, token ids and batches. NumPy only."""

from flaxbert.data.batches import BatchPipeline, evaluation_batches
from flaxbert.data.columns import Examples, LabelSet, count_labels, encode_labels, read_examples
from flaxbert.data.docstrings import DocstringCorpus, DocstringExample, build_corpus
from flaxbert.data.holdout import ExampleSet, hold_out
from flaxbert.data.ordering import default_length_buckets, resolve_length_buckets
from flaxbert.data.pipeline import Batch
from flaxbert.data.sources import as_texts, read_table
from flaxbert.data.tables import Table
from flaxbert.data.tokenization import TokenizedExamples, TruncationWarning, tokenize

__all__ = [
    "Batch",
    "BatchPipeline",
    "DocstringCorpus",
    "DocstringExample",
    "ExampleSet",
    "Examples",
    "LabelSet",
    "Table",
    "TokenizedExamples",
    "TruncationWarning",
    "as_texts",
    "build_corpus",
    "count_labels",
    "default_length_buckets",
    "encode_labels",
    "evaluation_batches",
    "hold_out",
    "read_examples",
    "read_table",
    "resolve_length_buckets",
    "tokenize",
]
