"""A tiny BERTweet tokenizer."""

from flaxbert.architecture import ModelConfig
from flaxbert.weights.tokenizer import load_tokenizer

CODES = "f i 10\nfi n 9\nfin e</w> 8\ni l 7\nil m</w> 6\n@ U 5\n@U S 5\n@US E 5\n@USE R</w> 5\n"
WORDS = "a 10\nfine 9\nf@@ 8\nilm 7\n@USER 6\nHTTPURL 5\n:grinning_face: 4\n"


def bertweet(tmp_path):
    """The tokenizer of a folder that this writes in BERTweet's layout."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "vocab.txt").write_text(WORDS)
    (folder / "bpe.codes").write_text(CODES)
    (folder / "config.json").write_text('{"model_type": "roberta", "tokenizer_class": "BertweetTokenizer"}')
    config = ModelConfig(family="roberta", vocab_size=300_000, max_position_embeddings=130, position_offset=2)
    return load_tokenizer(folder, config)
