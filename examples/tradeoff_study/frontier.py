# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Coherence against diversity of sampled text, over temperatures."""

from collections.abc import Sequence

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from modeling_aoarm.evaluation.text_metrics import measure_coherence, measure_diversity, split_words

from .predictions import draw_orders
from .text import TextSource


TEMPERATURES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)


@torch.no_grad()
def sample_sentences(
    model: PreTrainedModel, order: str, length: int, count: int, temperature: float, seed: int
) -> torch.Tensor:
    """Samples whole sentences one symbol at a time in orders drawn from a distribution, int64 `[count, length]`.

    Tokens are drawn with `generate`, by inversion in float64. A beginning of the sentence is given; neither it nor the
    token of blanks is drawn.

    Args:
        model: of [`study_model`].
        order: as in [`draw_orders`].
        length: of the sentences.
        count: how many.
        temperature: of all tokens.
        seed: of orders and tokens.
    """
    begin = model.config.vocab_size - 2
    canvas = torch.full((count, length + 1), begin, device=model.device)
    generator = torch.Generator(model.device).manual_seed(seed)
    columns = draw_orders(order, count, length, generator) + 1
    is_blank = torch.ones_like(canvas, dtype=torch.bool)
    is_blank[:, 0] = False
    return model.generate(
        canvas,
        generation_mask=is_blank,
        decoding_order=columns,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        suppress_tokens=[begin, begin + 1],
        generator=generator,
    )[:, 1:]


def frontier(
    model: PreTrainedModel,
    order: str,
    length: int,
    vocabulary: set[str],
    num_words: int = 10_000,
    temperatures: Sequence[float] = TEMPERATURES,
    batch: int = 200,
    seed: int = 0,
    progress: bool = True,
) -> list[dict]:
    """Coherence and diversity of at least `num_words` sampled words at each temperature; diversity of equally many.

    The first and the last word of a sentence may be cut, so they do not count.

    Args:
        model: trained on text of the 27 symbols.
        order: of generation.
        length: of the samples.
        vocabulary: the words of the training text.
        num_words: how many words are pooled.
        temperatures: one point each.
        batch: sentences that are sampled at a time.
        seed: of orders and tokens, the same at all temperatures.
        progress: show a progress bar.

    Returns:
        For each temperature `temperature`, `coherence`, `diversity`, `words`, `sentences`, and three `samples`.
    """
    points = []
    with tqdm(total=len(temperatures) * num_words, unit="word", disable=not progress, leave=False) as bar:
        for temperature in temperatures:
            texts, found, part = [], 0, 0
            # A model that makes hardly any spaces would never end.
            while found < num_words and part < 50:
                sentences = sample_sentences(model, order, length, batch, temperature, seed + part)
                new = [whole_words(text) for text in TextSource.spell(sentences)]
                texts += new
                gained = sum(len(split_words(text)) for text in new)
                bar.update(min(gained, num_words - found))
                found, part = found + gained, part + 1
            point = measure_words(texts, vocabulary, num_words) if found >= num_words else None
            points.append({"temperature": temperature, "sentences": len(texts), "samples": texts[:3], **(point or {})})
    return points


def whole_words(text: str) -> str:
    """A window's text without what stands before its first and after its last space."""
    return text[text.find(" ") + 1 : text.rfind(" ")] if text.count(" ") > 1 else ""


def measure_words(texts: list[str], vocabulary: set[str], num_words: int) -> dict:
    """Coherence of texts, and the diversity of their first `num_words` words."""
    return {
        "coherence": measure_coherence(texts, vocabulary),
        "diversity": measure_diversity(texts, num_words=num_words),
        "words": sum(len(split_words(text)) for text in texts),
    }


def references(held_out: TextSource, length: int, vocabulary: set[str], num_words: int, seed: int = 0) -> dict:
    """What held-out text, and noise with the frequencies of its symbols, reach in windows of a length."""
    generator = torch.Generator(held_out.codes.device).manual_seed(seed)
    count = num_words
    text = TextSource.spell(held_out.sample(count, length, generator))
    device = held_out.codes.device
    places = torch.randint(len(held_out.codes), (count, length), generator=generator, device=device)
    noise = TextSource.spell(held_out.codes[places].long())
    found = {}
    for name, windows in (("held-out text", text), ("noise", noise)):
        whole = [whole_words(window) for window in windows]
        found[name] = measure_words(_first_words(whole, num_words), vocabulary, num_words)
    return found


def _first_words(texts: list[str], num_words: int) -> list[str]:
    """The first texts that have so many words together."""
    kept, count = [], 0
    for text in texts:
        if count >= num_words:
            break
        kept.append(text)
        count += len(split_words(text))
    return kept
