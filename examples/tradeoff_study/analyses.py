# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Analyses of trained cells: where they attend, and how coherent and diverse their sampled text is."""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from modeling_aoarm.analysis import (
    AttentionMass,
    HiddenRowLosses,
    attention_mass,
    hidden_row_losses,
    plot_attention_mass,
    plot_hidden_rows,
)
from modeling_aoarm.evaluation.text_metrics import measure_coherence, measure_diversity, split_words
from modeling_aoarm.io import convert_for_json

from .measures import HeldOut
from .predictions import draw_orders, model_inputs
from .recipe import Cell
from .text import TextSource


TEMPERATURES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)


def attention_batches_of(
    model: PreTrainedModel, held_out: HeldOut, examples: int, batch: int = 16
) -> list[dict[str, torch.Tensor]]:
    """Makes batches of held-out sentences in their orders for the analysis of attention. All rows predict.

    `bidirectional` gets each sentence with each of the prefixes that likelihoods are measured with, and predicts the
    next symbol.
    """
    tokens, order = held_out.tokens[:examples], held_out.order[:examples]
    if model.config.attention_variant == "bidirectional":
        measured = held_out.measured_rows()[:examples]
        copies = torch.arange(len(tokens), device=tokens.device).repeat_interleave(measured.shape[1])
        observed, tokens, order = measured.flatten(), tokens[copies], order[copies]
        rows = model_inputs(model, tokens, order, observed)
        next_column = order.gather(1, observed[:, None]) + 1
        labels = torch.full_like(rows["input_ids"], -100)
        rows["labels"] = labels.scatter(1, next_column, tokens.gather(1, next_column - 1))
    else:
        first = torch.full_like(tokens[:, :1], model.config.vocab_size - 2)
        rows = {
            "input_ids": torch.cat([first, tokens.gather(1, order)], dim=1),
            "position_ids": torch.cat([torch.zeros_like(first), order + 1], dim=1),
        }
    return [
        {name: value[start : start + batch] for name, value in rows.items()} for start in range(0, len(tokens), batch)
    ]


def analyse_attention(
    model: PreTrainedModel,
    held_out: HeldOut,
    stem: Path,
    examples: int = 64,
    counts: Sequence[int] = (1, 2, 4, 8, 16),
    near: int = 4,
    progress: bool = True,
) -> dict:
    """Measures attention mass by distance and the cost of hiding rows; see `modeling_aoarm.analysis`.

    Figures and their numbers go to `<stem>-mass` and `<stem>-hidden`, `.png` and `.json`.

    Returns:
        The scores of heads by stream, and for each stream and choice the excess loss (nats per symbol) by number of
        hidden rows, with standard errors. For two streams also `own_row`, the same with a row as its own most recent
        row: attention to itself then counts as attention to recent rows.
    """
    batches = attention_batches_of(model, held_out, examples)
    mass = attention_mass(model, batches, near=near, progress=progress)
    # All prefixes of a sentence are one example.
    copies = sum(len(rows["input_ids"]) for rows in batches) // len(held_out.tokens[:examples])
    losses = hidden_row_losses(model, batches, counts, progress=progress).joined(copies)
    cell = held_out.cell
    title = f"{cell.model}, {cell.source}, length {cell.length}, {cell.order}"
    plot_attention_mass(mass, stem.with_name(f"{stem.name}-mass.png"), title)
    plot_hidden_rows(losses, stem.with_name(f"{stem.name}-hidden.png"), title)
    found = {"nll": losses.nll, "counts": list(losses.counts)} | _attention_results(mass, losses)
    if len(mass.streams) > 1:
        options = dict(own_row=True, progress=progress)
        found["own_row"] = _attention_results(
            attention_mass(model, batches, near=near, **options),
            hidden_row_losses(model, batches, counts, choices=("nearest", "recent"), **options),
        )
    return convert_for_json(found)


def _attention_results(mass: AttentionMass, losses: HiddenRowLosses) -> dict:
    scores = {stream: mass.specialisation(stream) for stream in mass.nearest}
    numbers = losses.to_dict()
    return {
        "specialisation": {stream: {"score": each.score, "spread": each.spread} for stream, each in scores.items()},
        "mass_dissociation": mass.dissociation,
        "excess": numbers["excess"],
        "loss_dissociation": numbers["dissociation"],
    }


@torch.no_grad()
def sample_sentences(
    model: PreTrainedModel, order: str, length: int, count: int, temperature: float, seed: int
) -> torch.Tensor:
    """Samples whole sentences one symbol at a time in orders of [`draw_orders`], int64 `[count, length]`.

    The beginning of the sentence is given. Neither it nor the token of blanks is sampled.
    """
    begin = model.config.vocab_size - 2
    canvas = torch.full((count, length + 1), begin, device=model.device)
    is_blank = torch.ones_like(canvas, dtype=torch.bool)
    is_blank[:, 0] = False
    return model.generate(
        canvas,
        generation_mask=is_blank,
        decoding_order=draw_orders(order, count, length, seed, device=model.device) + 1,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        suppress_tokens=[begin, begin + 1],
        generator=torch.Generator(model.device).manual_seed(seed),
    )[:, 1:]


def analyse_samples(
    model: PreTrainedModel,
    cell: Cell,
    vocabulary: Collection[str],
    held_out_text: TextSource,
    num_words: int = 10_000,
    temperatures: Sequence[float] = TEMPERATURES,
    batch: int = 200,
    progress: bool = True,
) -> dict:
    """Measures coherence against diversity of sampled text over temperatures, and of held-out text and noise.

    The first and the last word of a sentence may be cut, so they do not count.

    Args:
        model: trained on text of the 27 symbols.
        cell: the model's cell.
        vocabulary: the words of the training text.
        held_out_text: held-out text.
        num_words: number of sampled words at each temperature, at least. Diversity is that of equally many words.
        temperatures: one point each, from the same seeds.
        batch: sentences sampled at a time.
        progress: whether to show a progress bar.

    Returns:
        `points`: for each temperature `temperature`, `coherence`, `diversity`, `words`, `sentences`, and three
        `samples`. `references`: `coherence`, `diversity` and `words` of held-out text, and of noise with the same
        frequencies of symbols, both in windows of the cell's length.
    """
    points = []
    with tqdm(total=len(temperatures) * num_words, unit="word", disable=not progress, leave=False) as bar:
        for temperature in temperatures:
            texts, found, part = [], 0, 0
            # A model that makes hardly any spaces would never end.
            while found < num_words and part < 50:
                sentences = sample_sentences(model, cell.order, cell.length, batch, temperature, seed=part)
                new = [whole_words(text) for text in TextSource.spell(sentences)]
                gained = sum(len(split_words(text)) for text in new)
                bar.update(min(gained, num_words - found))
                texts, found, part = texts + new, found + gained, part + 1
            point = measure_words(texts, vocabulary, num_words) if found >= num_words else {}
            points.append({"temperature": temperature, "sentences": len(texts), "samples": texts[:3], **point})
    return {"points": points, "references": measure_references(held_out_text, cell.length, vocabulary, num_words)}


def measure_references(text: TextSource, length: int, vocabulary: Collection[str], num_words: int) -> dict:
    """Measures held-out text, and noise with the frequencies of its symbols, in windows of `length` symbols."""
    device = text.codes.device
    generator = torch.Generator(device).manual_seed(0)
    windows = text.sample(num_words, length, generator)
    columns = torch.randint(len(text.codes), (num_words, length), generator=generator, device=device)
    found = {}
    for name, tokens in (("held-out text", windows), ("noise", text.codes[columns].long())):
        texts, count = [], 0
        for window in map(whole_words, TextSource.spell(tokens)):
            if count < num_words:
                texts.append(window)
                count += len(split_words(window))
        found[name] = measure_words(texts, vocabulary, num_words)
    return found


def whole_words(text: str) -> str:
    """A window's text without the parts before its first and after its last space."""
    return text[text.find(" ") + 1 : text.rfind(" ")] if text.count(" ") > 1 else ""


def measure_words(texts: list[str], vocabulary: Collection[str], num_words: int) -> dict:
    """Coherence of texts, and the diversity of their first `num_words` words."""
    return {
        "coherence": measure_coherence(texts, vocabulary),
        "diversity": measure_diversity(texts, num_words=num_words),
        "words": sum(len(split_words(text)) for text in texts),
    }
