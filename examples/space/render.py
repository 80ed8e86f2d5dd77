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
            label = escape(f"{item.text}: put “{words}” back", quote=True)
            parts.append(
                f'<button type="button" class="word blanked" data-index="{index}" aria-pressed="true" '
                f'title="{label}" aria-label="{label}">{escape(words)}</button>'
            )
        elif item.kind == "blank":
            parts.append(f'<span class="blanked">{text}</span>')
        else:
            parts.append(f"<span>{text}</span>")
    return f'<div class="text words">{"".join(parts)}</div>'


def render_progress(snapshot: Snapshot, colour_by: str) -> str:
    """The candidates while they fill."""
    shown = [_render_line(line, colour_by, snapshot.passes) for line in snapshot.lines[:MOST_LINES]]
    more = len(snapshot.lines) - len(shown)
    note = f'<p class="note">and {more} more, of other lengths or other draws</p>' if more else ""
    return "".join(f'<div class="candidate"><p class="text">{line}</p></div>' for line in shown) + note


def render_fillings(fillings: Sequence[Filling], colour_by: str) -> str:
    """The best candidates, with a button for each filled token."""
    parts = []
    for number, filling in enumerate(fillings):
        tokens = [token for blank in filling.line.blanks for token in blank]
        passes = max((token.step + 1 for token in tokens), default=0)
        line = _render_line(filling.line, colour_by, passes, number)
        scored = len(filling.ids) - 1
        each = f", {format_nats(filling.log_probability / scored)} per token" if scored else ""
        parts.append(
            f'<section class="candidate" aria-label="Candidate {number + 1}"><p class="text">{line}</p>'
            f'<p class="note">log-probability of the whole text: <b>{format_nats(filling.log_probability)} nats</b>'
            f"{each}</p></section>"
        )
    return "".join(parts)


def render_legend(colour_by: str) -> str:
    """What the colours, and the figures below tokens, say."""
    labels = LEVELS if colour_by == "probability" else PASS_LEVELS
    what = (
        "Below each token: the probability, in percent, that the model gave it when it filled it."
        if colour_by == "probability"
        else "Below each token: the pass of the model that filled it."
    )
    swatches = "".join(
        f'<span class="swatch {_colour_class(colour_by, level)}">{label or "…"}</span>'
        for level, label in enumerate(labels)
    )
    return f'<div class="legend"><p class="note">{what}</p>{swatches}</div>'


def render_alternatives(alternatives: Alternatives, token: BlankToken) -> str:
    """A table of the likeliest tokens in a place."""
    rows = [_render_row(number + 1, *each) for number, each in enumerate(alternatives.tokens)]
    if not any(stands_here for *_, stands_here in alternatives.tokens):
        rows.append(_render_row(alternatives.rank + 1, token.text, alternatives.probability, True))
    return (
        f"<h3>In place of {_quote(token.text)}</h3>"
        '<p class="note">The likeliest tokens, given all the rest of this text as it stands now.</p>'
        f'<table class="alternatives"><thead><tr><th>rank</th><th>token</th><th>probability</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
        f'<p class="note">Pass {token.step + 1} filled it with a probability of {format_percent(token.probability)}. '
        "Then the model knew only the given text and what earlier passes had filled.</p>"
    )


def render_message(message: str, is_error: bool = False) -> str:
    """A line about what happens."""
    role, name = ("alert", "status error") if is_error else ("status", "status")
    sign = "⚠ " if is_error else ""
    return f'<p class="{name}" role="{role}">{sign}{escape(message)}</p>'


def format_nats(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def format_percent(probability: float) -> str:
    """A probability in percent, with a decimal below 10."""
    percent = 100 * probability
    return f"{percent:.0f}%" if percent >= 9.95 else f"{percent:.1f}%" if percent >= 0.05 else "under 0.1%"


def _quote(text: str) -> str:
    return f"“{escape(_show_token(text))}”"


def _show_token(text: str) -> str:
    """A token with its white space visible."""
    return visible(text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")) or "∅"


def _render_row(rank: int, text: str, probability: float, stands_here: bool) -> str:
    mark = ' <span class="mark">✓ in the text</span>' if stands_here else ""
    return (
        f"<tr><td>{rank}</td><td><code>{escape(_show_token(text))}</code>{mark}</td>"
        f'<td><span class="bar" style="width:{100 * probability:.1f}%"></span>{format_percent(probability)}</td></tr>'
    )


def _colour_class(colour_by: str, level: int) -> str:
    return f"{'sure' if colour_by == 'probability' else 'pass'}{level}"


def _render_line(line: Line, colour_by: str, passes: int, candidate: int | None = None) -> str:
    parts = []
    for piece, blank in zip(line.pieces, (*line.blanks, ()), strict=True):
        parts.append(f"<span>{escape(piece)}</span>")
        parts += [_render_token(token, colour_by, passes, candidate) for token in blank]
    return "".join(parts)


def _render_token(token: BlankToken, colour_by: str, passes: int, candidate: int | None) -> str:
    if token.step < 0:
        return '<span class="token open" role="img" aria-label="blank">__</span>'
    if colour_by == "probability":
        level, figure = sum(token.probability >= bound for bound in BOUNDS), f"{100 * token.probability:.0f}"
    else:
        level, figure = (4 * token.step // max(passes - 1, 1)), str(token.step + 1)
    # White space at the start stands outside the coloured box, where lines may break.
    text = token.text.lstrip(" ")
    space = token.text[: len(token.text) - len(text)] if text else ""
    shown = escape(visible(text)) if text.strip() else escape(_show_token(token.text))
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
