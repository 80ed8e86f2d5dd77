# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Figures of sampled text: coherence, diversity, sample entropy, and perplexity under a left-to-right model."""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..canvas_aoarm import check_count, padded_rows
from ..compat_aoarm import input_device
from ..data.tokenizers import checked_texts
from .likelihood import evaluation_mode
from .stats import Estimate, ratio


_WORD = re.compile(r"[^\W\d_]+")


def words(text: str) -> list[str]:
    """The words of a text: maximal runs of letters (of any alphabet), in lower case.

    Everything else separates words: white space, digits, punctuation, so `"Don't"` is two. In a text that is cut out of
    a longer one the first and the last word may be fragments, and count as they are.

    Raises:
        TypeError: `text` is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {type(text).__name__}.")
    return _WORD.findall(text.lower())


def vocabulary_of(texts: Iterable[str]) -> frozenset[str]:
    """The different `words` of texts."""
    return frozenset(word for text in checked_texts(texts) for word in words(text))


def coherent_words(text: str, vocabulary: Collection[str], min_letters: int = 4) -> tuple[int, int]:
    """How many `words` of at least `min_letters` letters a text has in the vocabulary, and how many it has in all.

    Args:
        text: a sample.
        vocabulary: words in lower case; a set, so that looking a word up is fast.
        min_letters: shorter words are not counted: most short strings of letters are words.
    """
    long = [word for word in words(text) if len(word) >= min_letters]
    return sum(word in vocabulary for word in long), len(long)


def coherence(texts: Iterable[str], vocabulary: Collection[str], min_letters: int = 4) -> float:
    """Share of the words of at least `min_letters` letters that are in a vocabulary, all texts pooled.

    Real text does not reach 1: it has rare words, and fragments where it is cut. Held-out text cut in the same way says
    what can be reached.

    Args:
        texts: samples.
        vocabulary: words in lower case: those of the training text, see [`vocabulary_of`].
        min_letters: shorter words are not counted.

    Returns:
        A share in [0, 1]; NaN where no word is that long, since nothing was there to be judged.

    Raises:
        TypeError: `texts` or `vocabulary` is a single string, or `texts` holds something that is not a string.
        ValueError: `vocabulary` is empty, or `min_letters` is no integer of at least 1.
    """
    vocabulary = check_vocabulary(vocabulary, min_letters)
    counts = [coherent_words(text, vocabulary, min_letters) for text in checked_texts(texts)]
    counted = sum(all_long for _, all_long in counts)
    return sum(known for known, _ in counts) / counted if counted else math.nan


def check_vocabulary(vocabulary: Collection[str], min_letters: int) -> frozenset[str]:
    """The vocabulary of [`coherence`] as a set, or the error that is documented there."""
    if isinstance(vocabulary, str) or not isinstance(vocabulary, Collection):
        raise TypeError(f"vocabulary must be a collection of words, got {type(vocabulary).__name__}.")
    if len(vocabulary) == 0:
        raise ValueError("vocabulary must hold at least one word, got none.")
    check_count("min_letters", min_letters)
    return frozenset(vocabulary)


def diversity(texts: Iterable[str], num_words: int | None = None) -> float:
    """Unique-word ratio: different words divided by words, of all lengths, all texts pooled.

    The ratio falls as text grows, because words come again. Only ratios of equally many words can be compared: give
    the same `num_words` to all that are.

    Args:
        texts: samples.
        num_words: take exactly the first `num_words` words of the texts, in their order. Default: all there are.

    Returns:
        A ratio in (0, 1]; NaN where there is no word at all.

    Raises:
        TypeError: `texts` is a single string, or holds something that is not a string.
        ValueError: `num_words` is no integer of at least 1, or the texts have fewer words.
    """
    pooled = [word for text in checked_texts(texts) for word in words(text)]
    if num_words is not None and check_count("num_words", num_words) > len(pooled):
        raise ValueError(f"num_words must be at most the {len(pooled)} words that the texts have, got {num_words}.")
    pooled = pooled[:num_words]
    return len(set(pooled)) / len(pooled) if pooled else math.nan


def sample_entropy(samples: Iterable[Sequence[int]]) -> list[float]:
    """Shannon entropy of the histogram of tokens within each sample, in nats.

    It is reported beside generative perplexity, which repetitions make look good: they have a low entropy. A sample of
    n tokens has at most log n.

    Args:
        samples: token ids of each sample.

    Returns:
        Nats for each sample; NaN for one without tokens.
    """
    return [_entropy(Counter(int(token) for token in sample)) for sample in samples]


def _entropy(counts: Counter) -> float:
    total = counts.total()
    # As logarithms of total / count, none of which is negative, so that a single token has 0 and not -0.
    return sum(count / total * math.log(total / count) for count in counts.values()) if total else math.nan


@dataclass(frozen=True)
class GenerativePerplexity:
    """How likely samples are under a left-to-right model that judges them.

    Attributes:
        sample_nll: float64 `[samples]`, nats summed over the judge's predicted tokens of each sample.
        sample_tokens: int64 `[samples]`, how many tokens of each sample the judge predicted.
    """

    sample_nll: torch.Tensor
    sample_tokens: torch.Tensor

    @property
    def nll(self) -> Estimate:
        """Nats per token of the judge, every token with the same weight; the standard error is over the samples."""
        return ratio(self.sample_nll, self.sample_tokens)

    @property
    def perplexity(self) -> float:
        """exp of `nll`."""
        return math.exp(self.nll.value)


@torch.no_grad()
def generative_perplexity(
    texts: Iterable[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 16,
    progress: bool = False,
) -> GenerativePerplexity:
    """Negative log-likelihood of texts under a left-to-right model, the judge.

    Texts are tokenised as the judge's tokenizer does it, without special tokens; text that spells one is ordinary text.
    One beginning-of-sentence token is put in front where the tokenizer has one; without one a text's first token is
    not predicted and not counted.

    Args:
        texts: samples.
        model: any causal language model of transformers, or an any-order model, which is one from left to right.
        tokenizer: the judge's own.
        batch_size: texts in a forward pass. It changes nothing, and neither does the order of the texts.
        progress: show a progress bar.

    Raises:
        TypeError: `texts` is a single string, or holds something that is not a string.
        ValueError: `batch_size` is no integer of at least 1, there are no texts, none of them has a token to predict,
            a text is longer than the judge's `max_position_embeddings`, a token is not in its vocabulary, or the judge
            does not predict from left to right (`bidirectional`).
    """
    check_count("batch_size", batch_size)
    if getattr(model.config, "attention_variant", None) == "bidirectional":
        raise ValueError("model must predict from left to right, got one of attention_variant='bidirectional'.")
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows = [
        first + tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
        for text in checked_texts(texts)
    ]
    # What a judge cannot predict is not run at all: models refuse rows without tokens.
    predicted = [index for index, ids in enumerate(rows) if len(ids) > 1]
    if not predicted:
        raise ValueError(f"texts must hold at least one text with a token to predict, got {len(rows)} without any.")
    most = getattr(model.config, "max_position_embeddings", None) or math.inf
    for index in predicted:
        if len(rows[index]) > most:
            raise ValueError(
                f"texts must have at most max_position_embeddings={most} of the judge's tokens, got {len(rows[index])} "
                f"in text {index}."
            )
        if max(rows[index]) >= model.config.vocab_size:
            raise ValueError(
                f"tokenizer must give ids below the judge's vocab_size={model.config.vocab_size}, got "
                f"{max(rows[index])} in text {index}."
            )
    sample_nll = torch.zeros(len(rows), dtype=torch.float64)
    batches = [predicted[start : start + batch_size] for start in range(0, len(predicted), batch_size)]
    with evaluation_mode(model):
        for batch in tqdm(batches, desc="judging", leave=False, disable=not progress):
            # On the right, where a left-to-right model never sees padding.
            ids, mask = (each.to(input_device(model)) for each in padded_rows([rows[index] for index in batch]))
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
            token_nll = functional.cross_entropy(
                logits.float().transpose(1, 2), labels, ignore_index=-100, reduction="none"
            )
            sample_nll[batch] = token_nll.double().sum(1).cpu()
    return GenerativePerplexity(sample_nll, torch.tensor([max(0, len(ids) - 1) for ids in rows]))


__all__ = [
    "GenerativePerplexity",
    "check_vocabulary",
    "coherence",
    "coherent_words",
    "diversity",
    "generative_perplexity",
    "sample_entropy",
    "vocabulary_of",
    "words",
]
