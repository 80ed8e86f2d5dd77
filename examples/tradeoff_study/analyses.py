# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""What is looked at in trained cells besides likelihoods: where they attend, and what they write."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from modeling_aoarm.analysis.attention import AttentionMass, attention_mass
from modeling_aoarm.analysis.interventions import HiddenRowLosses, hidden_row_losses
from modeling_aoarm.analysis.plots import plot_attention_mass, plot_hidden_rows
from modeling_aoarm.io import finite

from .frontier import frontier, references
from .measures import HeldOut
from .predictions import model_inputs
from .text import TextSource


def attention_batches_of(
    model: PreTrainedModel, held_out: HeldOut, examples: int, batch: int = 16
) -> list[dict[str, torch.Tensor]]:
    """Held-out sentences in their orders as the analysis of attention takes them; all rows predict.

    `bidirectional` gets each sentence with each of the prefixes that likelihoods are measured with, and predicts the
    next symbol.
    """
    tokens, order = held_out.tokens[:examples], held_out.order[:examples]
    if model.config.attention_variant == "bidirectional":
        asked = held_out.asked_rows()[:examples]
        copies = torch.arange(len(tokens), device=tokens.device).repeat_interleave(asked.shape[1])
        observed, tokens, order = asked.flatten(), tokens[copies], order[copies]
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
    """Attention mass by distance, and what hiding rows costs; see `modeling_aoarm.analysis`.

    Args:
        model: trained.
        held_out: what it is measured on.
        stem: figures and their numbers go to `<stem>-mass` and `<stem>-hidden`, `.png` and `.json`.
        examples: how many held-out sentences.
        counts: numbers of hidden rows.
        near: rows that count as near and as recent in scores.
        progress: show progress bars.

    Returns:
        The scores of heads by stream, and for each stream and choice the excess loss (nats per symbol) by number of
        hidden rows, with standard errors; where streams are two also, as `own_row`, the same with a row as the most
        recent one of its own: attention to itself then counts as attention to what is recent.
    """
    batches = attention_batches_of(model, held_out, examples)
    mass = attention_mass(model, batches, near=near, progress=progress)
    # All prefixes of a sentence are one example.
    copies = sum(len(rows["input_ids"]) for rows in batches) // len(held_out.tokens[:examples])
    losses = hidden_row_losses(model, batches, counts, progress=progress).joined(copies)
    cell = held_out.cell
    title = f"{cell.model}, {cell.source}, length {cell.length}, {cell.order}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    plot_attention_mass(mass, stem.with_name(f"{stem.name}-mass.png"), title)
    plot_hidden_rows(losses, stem.with_name(f"{stem.name}-hidden.png"), title)
    found = {"nll": losses.nll, "counts": list(losses.counts)} | _attention_figures(mass, losses)
    if len(mass.streams) > 1:
        choices = ("nearest", "recent")
        found["own_row"] = _attention_figures(
            attention_mass(model, batches, near=near, own_row=True, progress=progress),
            hidden_row_losses(model, batches, counts, choices=choices, own_row=True, progress=progress),
        )
    return finite(found)


def _attention_figures(mass: AttentionMass, losses: HiddenRowLosses) -> dict:
    scores = {stream: mass.specialisation(stream) for stream in mass.nearest}
    dissociation = losses.dissociation
    return {
        "specialisation": {stream: {"score": each.score, "spread": each.spread} for stream, each in scores.items()},
        "mass_dissociation": mass.dissociation,
        "excess": {
            stream: {choice: losses.excess(stream, choice).to_dict() for choice in losses.choices}
            for stream in losses.streams
        },
        "loss_dissociation": None if dissociation is None else dissociation.to_dict(),
    }


def analyse_samples(
    model: PreTrainedModel,
    held_out: HeldOut,
    vocabulary: frozenset[str],
    text: TextSource,
    num_words: int = 10_000,
    progress: bool = True,
) -> dict:
    """Coherence and diversity of what a model trained on text writes, and of held-out text and noise; see [`frontier`].

    Args:
        model: trained.
        held_out: of the model's cell.
        vocabulary: the words of the training text.
        text: held-out text.
        num_words: how many words are pooled at each temperature.
        progress: show a progress bar.
    """
    cell = held_out.cell
    points = frontier(model, cell.order, cell.length, vocabulary, num_words, progress=progress)
    return {"points": points, "references": references(text, cell.length, vocabulary, num_words)}
