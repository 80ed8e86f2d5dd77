# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Fills the blanks of a text and reports each pass of the model. No page is needed.

Nothing here outlives a call, so several users can share a model.
"""

import math
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from modeling_aoarm.blanks_aoarm import TextCanvas, make_canvases, read_vocabulary
from modeling_aoarm.canvas_aoarm import padded_rows
from modeling_aoarm.infilling_aoarm import make_generate_inputs
from modeling_aoarm.streaming import TokenTexts


# The tokens of canvases, which columns are filled, the passes in which they were, and their probabilities.
State = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
# How many combinations of blank lengths a text may have.
MOST_LENGTHS = 16


@dataclass(frozen=True)
class Settings:
    """How to fill.

    Args:
        decoding_order: as in `generate`.
        num_candidates: how many fillings to show.
        temperature: of sampling. At 0 the likeliest token is taken.
        seed: of the first candidate. Each further candidate has the next number.
        most_tokens: how long a text may be with its blanks at their longest.
    """

    decoding_order: str = "left_to_right"
    num_candidates: int = 1
    temperature: float = 0.0
    seed: int = 0
    most_tokens: int = 256

    def count_copies(self) -> int:
        """How often each combination of lengths is filled: once where all fillings would be the same."""
        varies = self.temperature > 0 or self.decoding_order == "random"
        return self.num_candidates if varies else 1


@dataclass(frozen=True)
class BlankToken:
    """A token of a blank.

    Args:
        text: empty while the blank remains.
        column: where it stands in the candidate's tokens.
        step: the number, from 0, of the pass that filled it; -1 while the blank remains.
        probability: that the model gave it in that pass.
    """

    text: str
    column: int
    step: int
    probability: float


@dataclass(frozen=True)
class Line:
    """A text with the tokens of its blanks.

    Args:
        pieces: the given text around the blanks, one piece more than there are blanks.
        blanks: the tokens of each blank.
    """

    pieces: tuple[str, ...]
    blanks: tuple[tuple[BlankToken, ...], ...]

    @property
    def text(self) -> str:
        fillings = ["".join(token.text for token in blank) for blank in self.blanks] + [""]
        return "".join(piece + filling for piece, filling in zip(self.pieces, fillings, strict=True))

    def count(self) -> tuple[int, int]:
        """How many tokens are filled, and how many there are."""
        tokens = [token for blank in self.blanks for token in blank]
        return sum(token.step >= 0 for token in tokens), len(tokens)


@dataclass(frozen=True)
class Filling:
    """A candidate.

    Args:
        line: what it shows.
        ids: its tokens.
        log_probability: of all tokens given the first one, in nats.
    """

    line: Line
    ids: tuple[int, ...]
    log_probability: float


@dataclass(frozen=True)
class Snapshot:
    """All candidates after a pass. `fillings` has the best ones when all is done."""

    passes: int
    lines: tuple[Line, ...]
    fillings: tuple[Filling, ...] = ()


@dataclass(frozen=True)
class Alternatives:
    """What else the model would put in a column, given all other tokens.

    Args:
        probability: of the token that stands there.
        rank: how many tokens are likelier.
        tokens: the likeliest tokens as text, with their probabilities and whether they stand there.
    """

    probability: float
    rank: int
    tokens: tuple[tuple[str, float, bool], ...]


class Stopped(Exception):
    """Nobody waits for the filling any more."""


class StateStreamer(BaseStreamer):
    """Puts the state of the canvases into a queue after each pass of `generate`."""

    # `generate` passes the state of the canvas to `put_draft`.
    _takes_canvas_state = True

    def __init__(self):
        self.states = queue.Queue()
        self.stopped = threading.Event()

    def put(self, value: torch.Tensor) -> None:
        if self.stopped.is_set():
            raise Stopped

    def put_draft(self, value: torch.Tensor, filled=None, steps=None, confidence=None, drafted=None) -> None:
        self.put(value)
        # The canvases are changed in place.
        self.states.put(tuple(each.clone() for each in (value, filled, steps, confidence)))

    def end(self) -> None:
        pass


def fill(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, settings: Settings
) -> Iterator[Snapshot]:
    """Fills a text's blanks. Yields the candidates after each pass, and the best ones at the end.

    A caller that closes the iterator ends the filling at its next pass.

    Raises:
        ValueError: the text is empty, too long or has malformed blanks, or as in `generate`.
    """
    canvases = prepare_canvases(model, tokenizer, text, settings)
    lines = [Line(tuple(piece.text for piece in canvas.pieces), ()) for canvas in canvases]
    texts, passes = TokenTexts(tokenizer), 0
    if canvases[0].blank_lengths:
        for state in _generate(model, tokenizer, canvases, settings):
            passes, lines = int(state[2].max()) + 1, _read_lines(texts, canvases, state)
            yield Snapshot(passes, tuple(lines))
        special, rows = read_vocabulary(tokenizer).special_ids, state[0].tolist()
        lines = [_close_blanks(*each, special) for each in zip(canvases, lines, rows, strict=True)]
    fillings = _score(model, canvases, lines)
    yield Snapshot(passes, tuple(lines), _choose_best(fillings, settings.num_candidates))


def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, canvases: list[TextCanvas], settings: Settings
) -> Iterator[State]:
    """Runs `generate` in a thread of its own. Yields the state of the canvases after each pass."""
    options = {"decoding_order": settings.decoding_order, "do_sample": settings.temperature > 0}
    if settings.temperature > 0:
        # The model's own generation config may say something else about sampling.
        options |= {"temperature": settings.temperature, "top_k": 0, "top_p": 1.0}
    lengths = len(canvases) // settings.count_copies()
    options["generator"] = [
        torch.Generator(model.device).manual_seed(settings.seed + row // lengths) for row in range(len(canvases))
    ]
    inputs, streamer = make_generate_inputs(model, tokenizer, canvases), StateStreamer()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(model.generate, **inputs, **options, streamer=streamer)
        future.add_done_callback(lambda _: streamer.states.put(None))
        try:
            while (state := streamer.states.get()) is not None:
                yield state
        finally:
            streamer.stopped.set()
        future.result()


def prepare_canvases(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, settings: Settings
) -> list[TextCanvas]:
    """Makes the canvases of all candidates: those of all lengths, then again those of all lengths, ..."""
    if not text.strip():
        raise ValueError("There is no text. Write some, with <blank:3> where three tokens are missing.")
    canvases = []
    for _ in range(settings.count_copies()):
        canvases += make_canvases(tokenizer, text, model.config.max_position_embeddings, MOST_LENGTHS)
    longest = max(len(canvas.join_ids()[0]) for canvas in canvases)
    if longest > settings.most_tokens:
        raise ValueError(
            f"This page takes texts of at most {settings.most_tokens} tokens with their blanks; got {longest}. Write "
            "less text or shorter blanks."
        )
    return canvases


def _read_lines(texts: TokenTexts, canvases: list[TextCanvas], state: State) -> list[Line]:
    """The lines of all candidates in a state of the canvases. Blanks that an end of sentence closed are left out."""
    lines = []
    for canvas, ids, filled, steps, confidence in zip(canvases, *(each.tolist() for each in state), strict=True):
        tokens, blanks = texts(ids, filled), []
        for piece, columns in zip(canvas.pieces[:-1], canvas.join_ids()[1], strict=True):
            # The white space before the blank's first token stands in the piece.
            moved = {columns.start: piece.moved}
            blanks.append(
                tuple(
                    BlankToken((tokens[n] or "").removeprefix(moved.get(n, "")), n, steps[n], confidence[n])
                    for n in columns
                    if steps[n] >= 0 or not filled[n]
                )
            )
        lines.append(Line(tuple(piece.text for piece in canvas.pieces), tuple(blanks)))
    return lines


def _close_blanks(canvas: TextCanvas, line: Line, ids: list[int], special: set[int]) -> Line:
    """Leaves only the tokens that are shown in a filled canvas and its line. Special tokens are not."""
    shown = [[token for token in blank if ids[token.column] not in special] for blank in line.blanks]
    canvas.fillings = [[ids[token.column] for token in blank] for blank in shown]
    blanks = [
        tuple(replace(token, column=column) for token, column in zip(blank, columns, strict=True))
        for blank, columns in zip(shown, canvas.join_ids()[1], strict=True)
    ]
    return Line(line.pieces, tuple(blanks))


def _choose_best(fillings: list[Filling], most: int) -> tuple[Filling, ...]:
    """The best candidates with different texts."""
    best = {}
    for filling in sorted(fillings, key=lambda each: -each.log_probability):
        best.setdefault(filling.line.text, filling)
    return tuple(best.values())[:most]


def _score(model: PreTrainedModel, canvases: list[TextCanvas], lines: list[Line]) -> list[Filling]:
    """Scores filled texts from left to right, given their first token."""
    rows = [canvas.join_ids()[0] for canvas in canvases]
    scores = [0.0] * len(rows)
    if max(map(len, rows)) > 1:
        ids, mask = (each.to(model.device) for each in padded_rows(rows))
        scores = model.score(ids, attention_mask=mask, decoding_order="left_to_right").log_likelihood[0].tolist()
    return [Filling(line, tuple(ids), score) for line, ids, score in zip(lines, rows, scores, strict=True)]


class KeepLogits(LogitsProcessor):
    """Keeps the logits that `generate` reads."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.log_probs = scores[0].float().log_softmax(-1)
        return scores


def find_alternatives(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...], column: int, count: int = 8
) -> Alternatives:
    """Finds the likeliest tokens of a column, given all other tokens of the text."""
    canvas, kept = torch.tensor([ids], device=model.device), KeepLogits()
    blanks = torch.zeros_like(canvas, dtype=torch.bool)
    blanks[0, column] = True
    options = {"decoding_order": "left_to_right", "do_sample": False, "eos_token_id": None}
    model.generate(canvas, generation_mask=blanks, logits_processor=LogitsProcessorList([kept]), **options)
    own = kept.log_probs[ids[column]]
    values, indices = (each.tolist() for each in kept.log_probs.topk(min(count, len(tokenizer))))
    texts, left = TokenTexts(tokenizer), ids[max(column - 1, 0) : column]
    tokens = (
        (texts([*left, index])[-1], math.exp(value), index == ids[column])
        for value, index in zip(values, indices, strict=True)
    )
    return Alternatives(own.exp().item(), int((kept.log_probs > own).sum()), tuple(tokens))


def count_tokens(tokenizer: PreTrainedTokenizerBase, words: str) -> int:
    """How many tokens words have inside a text, with the space before them."""
    return min(len(tokenizer.encode(start + words, add_special_tokens=False)) for start in ("", " ")) or 1
