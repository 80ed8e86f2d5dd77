# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Metrics of sampled text: coherence, diversity, sample entropy, and perplexity under a left-to-right model."""

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
from .stats import Estimate, estimate_ratio


_WORD = re.compile(r"[^\W\d_]+")


def split_words(text: str) -> list[str]:
    """Splits a text into words: maximal runs of letters of any alphabet, in lower case.

    All other characters separate words (white space, digits, punctuation), so `"Don't"` is two words. If the text is
    cut out of a longer one, its first and last word may be fragments. They count as they are.

    Raises:
        TypeError: `text` is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {type(text).__name__}.")
    return _WORD.findall(text.lower())


def collect_vocabulary(texts: Iterable[str]) -> frozenset[str]:
    """Collects the different words of texts, see [`split_words`]."""
    return frozenset(word for text in checked_texts(texts) for word in split_words(text))


def count_coherent_words(text: str, vocabulary: Collection[str], min_letters: int = 4) -> tuple[int, int]:
    """Counts a text's words of at least `min_letters` letters: those in a vocabulary (lower case), and all of them."""
    long = [word for word in split_words(text) if len(word) >= min_letters]
    return sum(word in vocabulary for word in long), len(long)


def measure_coherence(texts: Iterable[str], vocabulary: Collection[str], min_letters: int = 4) -> float:
    """Measures the share of the words of at least `min_letters` letters that are in a vocabulary, all texts pooled.

    Real text does not reach 1, because of rare words and of fragments where it is cut. The coherence of held-out text
    that is cut in the same way is the reference.

    Args:
        texts: samples.
        vocabulary: words in lower case, such as those of the training text (see [`collect_vocabulary`]).
        min_letters: shorter words are not counted, since most short strings of letters are words.

    Returns:
        A share in [0, 1]; NaN if no word is long enough.

    Raises:
        TypeError: `texts` or `vocabulary` is a single string, or `texts` holds something that is not a string.
        ValueError: `vocabulary` is empty, or `min_letters` is not an integer of at least 1.
    """
    if isinstance(vocabulary, str) or not isinstance(vocabulary, Collection):
        raise TypeError(f"vocabulary must be a collection of words, got {type(vocabulary).__name__}.")
    if len(vocabulary) == 0:
        raise ValueError("vocabulary must hold at least one word, got none.")
    check_count("min_letters", min_letters)
    vocabulary = frozenset(vocabulary)
    counts = [count_coherent_words(text, vocabulary, min_letters) for text in checked_texts(texts)]
    total = sum(long for _, long in counts)
    return sum(known for known, _ in counts) / total if total else math.nan


def measure_diversity(texts: Iterable[str], num_words: int | None = None) -> float:
    """Measures the unique-word ratio: different words divided by words of all lengths, all texts pooled.

    The ratio falls as text grows, because words are repeated. Compare only ratios of the same number of words.

    Args:
        texts: samples.
        num_words: use exactly the first `num_words` words of the texts. Default: all words.

    Returns:
        A ratio in (0, 1]; NaN if there are no words.

    Raises:
        TypeError: `texts` is a single string, or holds something that is not a string.
        ValueError: `num_words` is not an integer of at least 1, or the texts have fewer words.
    """
    pooled = [word for text in checked_texts(texts) for word in split_words(text)]
    if num_words is not None and check_count("num_words", num_words) > len(pooled):
        raise ValueError(f"num_words must be at most the {len(pooled)} words that the texts have, got {num_words}.")
    pooled = pooled[:num_words]
    return len(set(pooled)) / len(pooled) if pooled else math.nan


def measure_sample_entropy(samples: Iterable[Sequence[int]]) -> list[float]:
    """Measures the Shannon entropy of the histogram of tokens within each sample, in nats.

    Report it beside generative perplexity, which is low for repetitive text: repetitions have a low entropy. A sample
    of n tokens has at most log n.

    Args:
        samples: token ids of each sample.

    Returns:
        Nats for each sample; NaN for a sample without tokens.
    """
    entropies = []
    for sample in samples:
        counts = Counter(int(token) for token in sample)
        total = counts.total()
        # The logarithms of total / count are never negative, so a single token has entropy 0 and not -0.
        entropy = sum(count / total * math.log(total / count) for count in counts.values())
        entropies.append(entropy if total else math.nan)
    return entropies


@dataclass(frozen=True)
class GenerativePerplexity:
    """The likelihood of samples under a left-to-right model, the judge.

    Attributes:
        sample_nll: float64 `[samples]`, nats summed over the predicted tokens of each sample.
        sample_tokens: int64 `[samples]`, the number of predicted tokens of each sample, in the judge's tokenisation.
    """

    sample_nll: torch.Tensor
    sample_tokens: torch.Tensor

    @property
    def nll(self) -> Estimate:
        """Nats per token of the judge. All tokens have the same weight, and the standard error is over samples."""
        return estimate_ratio(self.sample_nll, self.sample_tokens)

    @property
    def perplexity(self) -> float:
        """The exponential of `nll`."""
        return math.exp(self.nll.value)


@torch.no_grad()
def measure_generative_perplexity(
    texts: Iterable[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 16,
    progress: bool = False,
) -> GenerativePerplexity:
    """Measures the negative log-likelihood of texts under a left-to-right model, the judge.

    The judge's tokenizer encodes the texts without special tokens; text that spells one is ordinary text. A
    beginning-of-sentence token comes first if the tokenizer has one. Otherwise a text's first token is not predicted
    and not counted.

    Args:
        texts: samples.
        model: any causal language model of transformers, or an any-order model, which is one from left to right.
        tokenizer: the judge's own tokenizer.
        batch_size: texts per forward pass. Results do not depend on it, nor on the order of the texts.
        progress: whether to show a progress bar.

    Raises:
        TypeError: `texts` is a single string, or holds something that is not a string.
        ValueError: `batch_size` is not an integer of at least 1, no text has a token to predict, a text is longer than
            the judge's `max_position_embeddings`, a token is not in its vocabulary, or the judge does not predict from
            left to right (`bidirectional`).
    """
    check_count("batch_size", batch_size)
    if getattr(model.config, "attention_variant", None) == "bidirectional":
        raise ValueError("model must predict from left to right, got one of attention_variant='bidirectional'.")
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows = [
        first + tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
        for text in checked_texts(texts)
    ]
    # Texts without tokens to predict are left out, because some models refuse empty inputs.
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
        for batch in tqdm(batches, desc="generative perplexity", leave=False, disable=not progress):
            # A left-to-right model never sees padding on the right.
            ids, mask = (each.to(input_device(model)) for each in padded_rows([rows[index] for index in batch]))
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
            token_nll = functional.cross_entropy(
                logits.float().transpose(1, 2), labels, ignore_index=-100, reduction="none"
            )
            sample_nll[batch] = token_nll.double().sum(1).cpu()
    return GenerativePerplexity(sample_nll, torch.tensor([max(0, len(ids) - 1) for ids in rows]))
