# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Writes what the page shows as HTML: the words to choose from, candidates, alternatives, messages."""

from collections.abc import Sequence
from html import escape

from filling import Alternatives, BlankToken, Filling, Line, Snapshot
from words import BlankedText, split_items

from modeling_aoarm.streaming import visible


# Upper bounds of the probabilities of the first four levels.
BOUNDS = (0.1, 0.25, 0.5, 0.8)
LEVELS = ("under 10%", "10 to 25%", "25 to 50%", "50 to 80%", "over 80%")
PASS_LEVELS = ("first pass", "", "", "", "last pass")
# How many candidates are shown while they fill.
MOST_LINES = 4


def render_words(blanked: BlankedText) -> str:
    """The text with a button for each word, and for each blank that has words to put back."""
    parts = []
    for index, item in enumerate(split_items(blanked)):
        text = escape(item.text)
        words = blanked.words[item.piece] if item.kind == "blank" else None
        if item.kind == "word":
            parts.append(
                f'<button type="button" class="word" data-index="{index}" aria-pressed="false">{text}</button>'
            )
        elif words is not None:
            name = visible(text.strip()) or "white space"
    label = escape(f"{name}: {format_percent(token.probability)}, pass {token.step + 1}", quote=True)
    attributes = f'class="token {_colour_class(colour_by, level)}" title="{label}"'
    ruby = f"<ruby>{shown}<rt>{figure}</rt></ruby>"
    if candidate is None:
        return f"{space}<span {attributes}>{ruby}</span>"
    place = f'data-candidate="{candidate}" data-column="{token.column}"'
    return (
        f'{space}<button type="button" {attributes} {place} aria-pressed="false" aria-label="{label}">{ruby}</button>'
    )
