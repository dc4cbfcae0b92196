"""More training texts: words of the given ones replaced by what a masked language model could put there (Jiao et al., 2020, algorithm 1)."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from flaxbert.config import AugmentationConfig
from flaxbert.core.sharding import batch_share
from flaxbert.data.batches import evaluation_batches
from flaxbert.data.columns import Examples
from flaxbert.data.tokenization import tokenize
from flaxbert.data.words import word_table
from flaxbert.errors import ConfigError
from flaxbert.families.graph import forward, graph_definition
from flaxbert.model import Model, load
from flaxbert.train.recipes.setup import Prepared, Say, count_steps, make_pipeline

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
"""What may be replaced: letters and digits, with hyphens and apostrophes between them."""

_BATCH_SIZE = 64
_MOST_SPARE = 8
"""Words that are asked for beyond those that are drawn from, since one of them may be the word itself."""


def augment(prepared: Prepared, config: AugmentationConfig, say: Say) -> Prepared:
    """Returns a run whose training examples have copies in which words are replaced.

    A copy has the label of its example; where the labels are not learned, the teacher says what it is worth.

    Args:
      prepared: The run.
      config: How many copies, and how words are drawn.
      say: Where lines for the user go.

    Raises:
      ConfigError: The task has labels of words, or the model fills in none.
      WeightsError: The model can not be loaded.
    """
    data = prepared.data
    encoded = data.splits["train"]
    if not isinstance(encoded.examples, Examples):
        raise ConfigError(
            f"augmentation.copies replaces words of texts with one label; the task {data.task.name} points into its texts. Leave it out."
        )
    examples, seed = encoded.examples, prepared.config.train.seed
    proposer = WordProposer.load(config, data.setting.max_length)
    first = proposer.copies(examples.texts, config, seed)
    second = None if examples.pairs is None else proposer.copies(examples.pairs, config, seed + 1)
    chosen = np.arange(len(examples)).repeat(1 + config.copies)
    more = examples.select(chosen)
    more = dataclasses.replace(more, texts=first, pairs=second)
    splits = {**data.splits, "train": data.task.encode(prepared.model.tokenizer, more, data.setting)}
    report = dataclasses.replace(
        data.report["train"],
        num_examples=len(more),
        num_tokens=len(splits["train"].features.input_ids),
        num_truncated=splits["train"].features.num_truncated,
        longest_tokens=int(splits["train"].features.lengths.max()),
        label_counts=data.task.summary(splits["train"], data.setting),
    )
    data = dataclasses.replace(data, splits=splits, report={**data.report, "train": report})
    pipeline = make_pipeline(prepared.config, data, batch_share(prepared.mesh))
    changed = sum(text != more.texts[number - number % (1 + config.copies)] for number, text in enumerate(more.texts))
    say(
        f"Augmentation: {len(more) - len(examples):,} texts beside the {len(examples):,} given, {changed:,} of them changed, by {config.model}."
    )
    return dataclasses.replace(
        prepared,
        data=data,
        pipeline=pipeline,
        steps_per_epoch=pipeline.steps_per_epoch,
        total_steps=count_steps(prepared.config, pipeline.steps_per_epoch),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class WordProposer:
    """A masked language model that says what could stand in the place of a word.

    Attributes:
      model: The model.
      max_length: Most tokens of a text.
    """

    model: Model
    max_length: int

    @classmethod
    def load(cls, config: AugmentationConfig, max_length: int) -> "WordProposer":
        """Loads the model.

        Args:
          config: Which one.
          max_length: Most tokens of a text.

        Returns:
          The proposer.

        Raises:
          ConfigError: It fills in no words.
          WeightsError: It can not be loaded.
        """
        model = load(config.model, task="fill-mask", revision=config.revision or None, offline=config.offline)
        missing = model.account.initialized if model.account is not None else ()
        if missing or model.tokenizer is None or model.tokenizer.mask_token is None:
            what = f"{missing[0]} is missing" if missing else "its tokenizer has no mask token"
            raise ConfigError(
                f"augmentation.model {config.model} fills in no words ({what}); name a pre-trained model."
            )
        return cls(model, min(max_length, model.max_length))

    @functools.cached_property
    def proposable(self) -> Bool[np.ndarray, "vocab"]:
        """Which tokens are whole words of letters and digits."""
        tokenizer, size = self.model.tokenizer, self.model.config.vocab_size
        table, found = word_table(tokenizer), np.zeros(size, np.bool_)
        for number in tokenizer.get_vocab().values():
            if number < size and table.starts[number] and not table.special[number]:
                found[number] = WORD.fullmatch(tokenizer.decode([number]).strip()) is not None
        return found

    def copies(self, texts: Sequence[str], config: AugmentationConfig, seed: int) -> list[str]:
        """Returns every text followed by its copies.

        Args:
          texts: The texts.
          config: How many copies, and how words are drawn.
          seed: Seed of the draw; a copy depends on it, the number of its text and the model alone.
        """
        words = [list(WORD.finditer(text)) for text in texts]
        drawn = [
            np.random.default_rng((seed, number)).random((config.copies, len(found))) < config.probability
            for number, found in enumerate(words)
        ]
        needed = [
            (number, place) for number, rows in enumerate(drawn) for place in np.flatnonzero(rows.any(axis=0)).tolist()
        ]
        proposed = self.propose([self._masked(texts[text], words[text][place]) for text, place in needed], config)
        options = {
            where: self._options(ids, words[where[0]][where[1]].group(), config.num_candidates)
            for where, ids in zip(needed, proposed, strict=True)
        }
        found = []
        for number, text in enumerate(texts):
            generator = np.random.default_rng((seed, number, 1))
            found.append(text)
            for copy in range(config.copies):
                chosen = {}
                for place in np.flatnonzero(drawn[number][copy]).tolist():
                    candidates = options[number, place]
                    if candidates:
                        chosen[place] = candidates[int(generator.integers(len(candidates)))]
                found.append(_replace(text, words[number], chosen))
        return found

    def _masked(self, text: str, word: re.Match[str]) -> str:
        return text[: word.start()] + self.model.tokenizer.mask_token + text[word.end() :]

    def _options(self, ids: Int[np.ndarray, "candidates"], word: str, count: int) -> list[str]:
        """Returns the best words for a place that differ from the one there, written as it is."""
        named = [self.model.tokenizer.decode([int(number)]).strip() for number in ids if number >= 0]
        written = [name.capitalize() if word[:1].isupper() and name.islower() else name for name in named]
        return [name for name in dict.fromkeys(written) if name.casefold() != word.casefold()][:count]

    def propose(self, masked: Sequence[str], config: AugmentationConfig) -> Int[np.ndarray, "texts candidates"]:
        """Returns the ids of the most likely words for the mask token of each text, best first; -1 where it was cut off.

        Args:
          masked: Texts with one mask token.
          config: How many.
        """
        count = min(config.num_candidates + _MOST_SPARE, int(self.proposable.sum()))
        found = np.full((len(masked), count), -1, np.int64)
        if not masked:
            return found
        features = tokenize(self.model.tokenizer, masked, max_length=self.max_length, warn=False)
        params = jax.device_put(self.model.params)
        for batch in evaluation_batches(features, _BATCH_SIZE):
            is_mask = batch["input_ids"] == self.model.tokenizer.mask_token_id
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
            best = self._best(count)(params, {**inputs, "masked_positions": is_mask.argmax(axis=1)[:, None]})
            real = (batch["example_index"] >= 0) & is_mask.any(axis=1)
            found[batch["example_index"][real]] = np.asarray(best)[real]
        return found

    @functools.lru_cache(maxsize=1)  # noqa: B019 - lives as long as the proposer, which makes one program
    def _best(self, count: int) -> Any:
        graphdef = graph_definition(self.model.config, self.model.task, self.model.execution)
        banned = np.where(self.proposable, 0.0, -np.inf).astype(np.float32)

        def run(params: Any, batch: Mapping[str, Any]) -> jax.Array:
            logits = forward(graphdef, params, batch).logits[:, 0].astype(np.float32)
            return jax.lax.top_k(logits + banned, count)[1]

        return jax.jit(run)


def _replace(text: str, words: Sequence[re.Match[str]], chosen: Mapping[int, str]) -> str:
    parts, end = [], 0
    for place, word in enumerate(words):
        parts += [text[end : word.start()], chosen.get(place, word.group())]
        end = word.end()
    return "".join([*parts, text[end:]])
