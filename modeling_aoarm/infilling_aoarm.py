# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Fills blanks in text: `"The <blank:3> sat on the <blank:1-4>."`."""

import itertools
import math
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .canvas_aoarm import check_count, padded_rows
from .compat_aoarm import input_device


# A blank, and the backslashes before it.
BLANK = re.compile(r"(?<!\\)(\\*)(<blank(?::([0-9]+)(?:-([0-9]+))?)?>)")
# Tokens are decoded behind this letter, because many decoders drop a space at the start.
ANCHOR = "a"
# Text behind a blank is tokenized behind a character that merges with no other, or else behind a rare letter.
STAND_INS = "☺qzxk"
# How many words show whether the tokenizer joins words with the white space before them.
PROBES = 3
# Arguments of `generate` that `infill` sets itself: the only value that a call may give, and the way out.
RESERVED_ARGUMENTS = {
    "return_dict_in_generate": (False, "`return_candidates=True` returns more than text"),
    "num_return_sequences": (1, "repeat the text instead"),
    "max_new_tokens": (None, "write a blank at the end of `text` instead"),
    "token_sets": (None, "use `suppress_tokens`, or `generate`"),
    "column_sets": (None, "use `suppress_tokens`, or `generate`"),
}


def read_blanks(text: str) -> tuple[list[str], list[range], list[str]]:
    r"""Splits a text at its blanks.

    Args:
        text: `<blank>`, `<blank:n>` and `<blank:m-n>` are blanks, and adjacent blanks are one. Everything else is text.
            Directly before one of these forms, `\\` stands for one backslash, and a single `\` makes the form text.

    Returns:
        The pieces of text around the blanks, one more than there are blanks; the lengths, in tokens, that each blank
        may have; and the blanks as they are written.

    Raises:
        ValueError: a blank has no tokens, or its shortest length is above its longest.
    """
    pieces, lengths, written, end = [""], [], [], 0
    for match in BLANK.finditer(text):
        backslashes, form, shortest, longest = match.groups()
        pieces[-1] += text[end : match.start()] + backslashes[: len(backslashes) // 2]
        end = match.end()
        if len(backslashes) % 2:
            pieces[-1] += form
            continue
        # Python refuses numbers of thousands of digits. No model has positions for 18 digits.
        shortest, longest = (int(n.lstrip("0")[:18] or 0) for n in (shortest or "1", longest or shortest or "1"))
        if not 1 <= shortest <= longest:
            raise ValueError(
                "A blank of `text` must be written <blank>, <blank:n> or <blank:m-n> with m <= n, and be at least one "
                rf"token long; got {_cut(form)}. Write \{_cut(form)} for these characters themselves."
            )
        if lengths and not pieces[-1]:
            # Adjacent blanks may share the bytes of a character, so they are filled as one.
            before, form = lengths.pop(), written.pop() + form
            shortest, longest = before[0] + shortest, before[-1] + longest
        else:
            pieces.append("")
        lengths.append(range(shortest, longest + 1))
        written.append(form)
    pieces[-1] += text[end:]
    return pieces, lengths, written


def write_blanks(pieces: Sequence[str], blanks: Sequence[str]) -> str:
    r"""Joins pieces of text with `blanks` between them, and escapes them so that [`read_blanks`] reads the same pieces.

    There is one piece more than there are blanks (`<blank>`, `<blank:n>` or `<blank:m-n>`).
    """
    escaped = [BLANK.sub(r"\1\1\\\2", piece) for piece in pieces]
    before = [re.sub(r"(\\*)\Z", r"\1\1", piece) + blank for piece, blank in zip(escaped[:-1], blanks, strict=True)]
    return "".join(before) + escaped[-1]


def _cut(text: str) -> str:
    """Shortens a text for messages."""
    return text if len(text) <= 80 else f"{text[:80]}..."


def with_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Puts the beginning-of-sentence token before `ids`, unless they begin with it or the tokenizer has none."""
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def _decode_behind(tokenizer: PreTrainedTokenizerBase, before: list[int], ids: list[int]) -> str:
    """Decodes `ids` where they follow `before`."""
    start, both, alone = tokenizer.batch_decode([before, before + ids, ids], clean_up_tokenization_spaces=False)
    # Byte tokens that form no character can spoil the byte tokens before them.
    return both[len(start) :] if both.startswith(start) else alone


def encode_behind_blank(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenizes text behind a blank, without the space that some tokenizers put before every text."""
    ids = _encode(tokenizer, text)
    decoded = _decode_behind(tokenizer, _encode(tokenizer, ANCHOR), ids)
    continued = text[: len(text) - len(text.lstrip())] + decoded.lstrip()
    if decoded == continued:
        return ids
    for stand_in in STAND_INS:
        before, both = _encode(tokenizer, stand_in), _encode(tokenizer, stand_in + text)
        behind = both[len(before) :]
        if both == before + behind and _decode_behind(tokenizer, before, behind) == continued:
            return behind
    return ids


class Vocabulary:
    """A tokenizer's ids, and its tokens that begin with white space.

    Attributes:
        size: how many tokens there are.
        ids: all ids, sorted. A tokenizer may skip numbers.
        spaced: the text of each token that begins with white space, by its id.
        words: the words that tokens join with a white-space character, by that character, shortest first.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.size, self.ids = len(tokenizer), sorted(set(tokenizer.get_vocab().values()))
        anchor = _encode(tokenizer, ANCHOR)
        rows = [anchor, *([*anchor, index] for index in self.ids)]
        start, *texts = tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
        texts = {index: text[len(start) :] for index, text in zip(self.ids, texts, strict=True)}
        self.spaced = {index: text for index, text in texts.items() if text[:1].isspace()}
        self.words: dict[str, list[str]] = {}
        for text in sorted(self.spaced.values(), key=len):
            if text[1:].isalpha():
                self.words.setdefault(text[0], []).append(text[1:])

    def find_spaced(self, space: str, has_more: bool) -> set[int]:
        """Finds the tokens that begin with `space`. With `has_more`, they must have more characters."""
        return {i for i, text in self.spaced.items() if text.startswith(space) and not (has_more and text == space)}


_vocabularies: "weakref.WeakKeyDictionary[PreTrainedTokenizerBase, Vocabulary]" = weakref.WeakKeyDictionary()


def read_vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Reads a tokenizer's vocabulary, again only when tokens were added."""
    known = _vocabularies.get(tokenizer)
    if known is None or known.size != len(tokenizer):
        known = _vocabularies[tokenizer] = Vocabulary(tokenizer)
    return known


@dataclass
class Piece:
    """A piece of text before, between or behind blanks.

    Args:
        text: as it is written.
        ids: its tokens, without `moved`. The first piece begins with the beginning-of-sentence token, if there is one.
        unmoved_ids: its tokens, with `moved`.
        moved: white space at its end with which the first token of the next blank begins.
    """

    text: str
    ids: list[int]
    unmoved_ids: list[int]
    moved: str


def _encode_piece(tokenizer: PreTrainedTokenizerBase, text: str, is_first: bool, is_last: bool) -> Piece:
    """Tokenizes a piece. White space is moved if the tokenizer would join it with the next word."""
    encode = _encode if is_first else encode_behind_blank
    ids = unmoved_ids = encode(tokenizer, text)
    moved = ""
    if text[-1:].isspace() and not is_last:
        vocabulary = read_vocabulary(tokenizer)
        words = [*vocabulary.words.get(text[-1], []), *vocabulary.words.get(" ", [])]
        for word in words[:PROBES]:
            *before, last = encode(tokenizer, text + word)
            token = vocabulary.spaced.get(last, "")
            space = token.removesuffix(word)
            # Some decoders drop the space at the start of a text.
            shown = _decode_behind(tokenizer, before, [last])
            if token.endswith(word) and space.isspace() and shown in (token, word):
                ids, moved = before, space
                break
    if is_first:
        ids, unmoved_ids = with_bos(tokenizer, ids), with_bos(tokenizer, unmoved_ids)
        if not ids:
            # The text needs a first token, on which all others depend.
            ids, moved = unmoved_ids, ""
    return Piece(text, ids, unmoved_ids, moved)


@dataclass
class TextCanvas:
    """A text with blanks of fixed lengths.

    Args:
        pieces: the text around the blanks, one piece more than there are blanks.
        blank_lengths: how many tokens each blank has.
        fillings: the tokens in each blank: fillers at first, later the tokens that are shown.
        log_probability: the scored text's, in nats.
    """

    pieces: list[Piece]
    blank_lengths: tuple[int, ...]
    fillings: list[list[int]]
    log_probability: float = 0.0

    def join_ids(self) -> tuple[list[int], list[range]]:
        """Returns the token ids of the text, and the columns of each blank."""
        ids, blanks = [], []
        for piece, filling in zip(self.pieces[:-1], self.fillings, strict=True):
            # In a blank that an end of sentence closed, no token holds the white space.
            ids += piece.ids if filling else piece.unmoved_ids
            blanks.append(range(len(ids), len(ids) + len(filling)))
            ids += filling
        return ids + self.pieces[-1].ids, blanks

    def write_text(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Returns the pieces as they are written, with the decoded fillings between them."""
        text, before = self.pieces[0].text, self.pieces[0].ids
        if before[:1] == [tokenizer.bos_token_id]:
            before = before[1:]
        for filling, (left, right) in zip(self.fillings, itertools.pairwise(self.pieces), strict=True):
            text += _decode_behind(tokenizer, before, filling).removeprefix(left.moved) + right.text
            # A piece holds whole characters, so the text before it does not change the text behind it.
            before = right.ids or before + filling
        return text


def make_canvases(
    tokenizer: PreTrainedTokenizerBase, text: str, max_length: int, max_candidates: int = 64, appended: int = 0
) -> list[TextCanvas]:
    """Makes a canvas of a text for each combination of blank lengths, shorter ones first.

    Raises:
        ValueError: the text and `appended` more tokens are longer than `max_length`; there are more than
            `max_candidates` canvases, or several without a common first token; and as in [`read_blanks`].
    """
    check_count("max_candidates", max_candidates)
    texts, lengths, written = read_blanks(text)
    pieces = [_encode_piece(tokenizer, each, n == 0, n == len(lengths)) for n, each in enumerate(texts)]
    given = sum(len(piece.ids) for piece in pieces) + appended
    longest = given + sum(each[-1] for each in lengths)
    if lengths and longest > max_length:
        raise ValueError(
            f"`text` must have at most max_position_embeddings={max_length} tokens with its blanks at their longest; "
            f"got {longest}, of which {given} are given, with {_cut(', '.join(written))}. Write shorter blanks or less "
            "text."
        )
    number = math.prod(map(len, lengths))
    if number > max_candidates:
        raise ValueError(
            f"`text` must not have more than max_candidates={max_candidates} combinations of blank lengths, got "
            f"{number} for lengths from {[(each[0], each[-1]) for each in lengths]}."
        )
    if number > 1 and not pieces[0].ids:
        raise ValueError(
            "`text` must not begin with a blank where lengths are unknown and the tokenizer has no "
            "beginning-of-sentence token: candidates are compared given their first token, which must be the same."
        )
    filler = 0 if tokenizer.mask_token_id is None else tokenizer.mask_token_id
    return [TextCanvas(pieces, each, [[filler] * n for n in each]) for each in itertools.product(*lengths)]


@dataclass
class Candidate:
    """One way to fill a text's blanks.

    Args:
        text: the filled text.
        blank_lengths: how many tokens each blank had, shown or not.
        log_probability: of the filled text given its first token, in nats (see [`infill`]).
    """

    text: str
    blank_lengths: tuple[int, ...]
    log_probability: float


@dataclass
class Infilling:
    """The result of `infill` for a text when `return_candidates=True`.

    Args:
        text, log_probability: the best candidate's.
        candidates: all candidates, the best first. Of equal ones, shorter blanks come first.
    """

    text: str
    log_probability: float
    candidates: list[Candidate]


def infill(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str | Sequence[str],
    *,
    return_candidates: bool = False,
    candidate_order: str = "left_to_right",
    score_end: bool = False,
    max_candidates: int = 64,
    batch_size: int = 64,
    **generate_kwargs,
) -> str | list[str] | Infilling | list[Infilling]:
    r"""Fills the blanks of a text, or of each text of a batch.

    **Blanks.** `<blank:n>` is n tokens long, `<blank>` one token, `<blank:m-n>` m to n tokens. Adjacent blanks are one.
    All other text is returned as it is. `\<blank>` stands for the characters `<blank>`; see
    [`~modeling_aoarm.infilling_aoarm.write_blanks`].

    **White space.** Write text as usual: `the <blank> sat`. If the tokenizer joins words with the space before them,
    the blank's first token holds the space. Text directly behind a blank continues it: `<blank>ing` is the end of a
    word. With `the<blank> sat` the model decides whether a new word begins.

    **Unknown lengths.** Every combination of a text's lengths is a candidate. `generate` fills each one, and the
    candidate with the highest log p(filled text | its first token) is returned. The log-probability is a sum, not an
    average per token, so longer candidates pay for more tokens. It is the probability that a text *begins* with these
    tokens, so a blank at the very end nearly always gets its shortest length. `score_end=True` compares whole texts: it
    also scores an end-of-sentence token behind the text. Use it with models that saw ends in training (`pad_with_eos`
    of `DataCollatorForAnyOrderLM`); for others it adds noise. Special tokens in blanks, and all tokens behind an end of
    sentence in a blank, are neither shown nor scored.

    Args:
        model: a model with `generate(..., generation_mask=...)` and `score`.
        tokenizer: the model's. Its beginning-of-sentence token, if any, is put before texts that do not begin with it.
        text: one text or several.
        return_candidates: return an [`Infilling`] for each text, with the log-probabilities of its candidates.
        candidate_order: the order in which columns are scored: `"left_to_right"`, or `"random"`, one order for all
            candidates, drawn in each call from the global random numbers. `decoding_order` is the order of filling.
        score_end: score an end-of-sentence token behind the text too.
        max_candidates: the most candidates that a text may have.
        batch_size: the most canvases in one call of `generate` or `score`.
        **generate_kwargs: passed to `generate`: `decoding_order`, `do_sample`, `temperature`, ... Tensors of orders and
            lists of generators have one entry for each text with blanks. Each call advances the generators.

    Returns:
        The filled text, or its [`Infilling`]; a list of them for several texts.

    Raises:
        TypeError: `text` is neither a string nor a sequence of strings.
        ValueError: a blank is malformed (`<blank:0>`, `<blank:6-2>`); a text may exceed `max_position_embeddings` or
            `max_candidates`, or has no first token to condition on; an order is a tensor while lengths are unknown; the
            tokenizer does not fit the model; an argument of `generate` is one that `infill` sets itself; and as in
            `generate` and `score`.
    """
    texts = text if isinstance(text, Sequence) and not isinstance(text, str) else [text]
    for each in texts:
        if not isinstance(each, str):
            raise TypeError(f"`text` must be a string or a sequence of strings, got {type(each).__name__}.")
    for name, (only, way_out) in RESERVED_ARGUMENTS.items():
        value = generate_kwargs.pop(name, only)
        if value is not only and value != only:
            raise ValueError(f"`{name}` must be {only} in `infill`: {way_out}. Got {_cut(repr(value))}.")
    check_count("batch_size", batch_size)
    if candidate_order not in ("left_to_right", "random"):
        raise ValueError(f"`candidate_order` must be 'left_to_right' or 'random', got {candidate_order!r}.")
    if score_end and tokenizer.eos_token_id is None:
        raise ValueError("`score_end=True` needs an end-of-sentence token, but `tokenizer.eos_token_id` is None.")

    end = [tokenizer.eos_token_id] if score_end else []
    max_length, vocab_size = model.config.max_position_embeddings, model.config.vocab_size
    # The candidates of each text.
    canvases = [make_canvases(tokenizer, each, max_length, max_candidates, len(end)) for each in texts]
    largest = max([-1, *end, *(index for own in canvases for piece in own[0].pieces for index in piece.ids)])
    if largest >= vocab_size:
        raise ValueError(
            f"`tokenizer` must fit the model's vocab_size={vocab_size}, got one of {len(tokenizer)} tokens that gives "
            f"the id {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}). Take the model's own tokenizer, or call "
            f"`model.resize_token_embeddings({len(tokenizer)})` and train."
        )
    with_blanks = [own for own in canvases if own[0].blank_lengths]
    with_choice = [own for own in canvases if len(own) > 1]
    # Arguments with one entry for each text with blanks.
    per_canvas = {
        name: generate_kwargs.pop(name)
        for name in ("decoding_order", "context_order", "generator")
        if isinstance(generate_kwargs.get(name), (torch.Tensor, list, tuple))
    }
    for name, entries in per_canvas.items():
        if len(entries) != len(with_blanks):
            raise ValueError(
                f"`{name}` must have one entry for each of {len(with_blanks)} texts with blanks, got {len(entries)}."
            )
        if with_choice and isinstance(entries, torch.Tensor):
            raise ValueError(
                f"`{name}` must be a name for blanks of unknown length, since columns depend on lengths; got a tensor."
            )
    if "generator" in per_canvas:
        # All candidates of a text get the same random numbers. The longest one advances the caller's generator.
        per_canvas["generator"] = [
            generator if canvas is own[-1] else generator.clone_state()
            for generator, own in zip(per_canvas["generator"], with_blanks, strict=True)
            for canvas in own
        ]
    # Drawn before anything is filled, so that sampling and `batch_size` change nothing.
    ranks = torch.rand(max_length, dtype=torch.float32).tolist() if candidate_order == "random" else None

    to_fill = [canvas for own in with_blanks for canvas in own]
    for start in range(0, len(to_fill), batch_size):
        batch = slice(start, start + batch_size)
        entries = {name: values[batch] for name, values in per_canvas.items()}
        _fill(model, tokenizer, to_fill[batch], generate_kwargs | entries)
    to_score = [canvas for own in (canvases if return_candidates else with_choice) for canvas in own]
    # A text of one token has log-probability 0.
    to_score = [canvas for canvas in to_score if len(canvas.join_ids()[0] + end) > 1]
    for start in range(0, len(to_score), batch_size):
        _score(model, to_score[start : start + batch_size], end, ranks)

    results = []
    for own in canvases:
        own.sort(key=lambda canvas: -canvas.log_probability)
        shown = own if return_candidates else own[:1]
        candidates = [Candidate(each.write_text(tokenizer), each.blank_lengths, each.log_probability) for each in shown]
        infilling = Infilling(candidates[0].text, candidates[0].log_probability, candidates)
        results.append(infilling if return_candidates else infilling.text)
    return results[0] if isinstance(text, str) else results


def _find_special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Finds the ids that are never shown."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def make_generate_inputs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, canvases: list[TextCanvas]
) -> dict[str, torch.Tensor]:
    """Makes the arguments of `generate` for a batch of canvases, on the model's device.

    Returns:
        `input_ids` and `attention_mask`, int64, and `generation_mask`, bool, all `[batch, columns]`. If some tokens may
        not stand in some blanks, also `token_sets`, bool `[sets, vocab]`, and `column_sets`, int64 `[batch, columns]`:
        only the tokenizer's own ids are filled in, and a blank that white space was moved into begins with it.
    """
    rows = [canvas.join_ids() for canvas in canvases]
    input_ids, attention_mask = padded_rows([ids for ids, _ in rows])
    generation_mask = torch.zeros(input_ids.shape, dtype=torch.bool)
    vocabulary, special, vocab_size = read_vocabulary(tokenizer), _find_special_ids(tokenizer), model.config.vocab_size
    # The number of each set. The first one holds all of the tokenizer's ids, if they are not all of the model's.
    sets = {} if vocabulary.ids == list(range(vocab_size)) else {None: 0}
    column_sets = torch.full(input_ids.shape, len(sets) - 1)
    for row, (canvas, (_, blanks)) in enumerate(zip(canvases, rows, strict=True)):
        for piece, blank in zip(canvas.pieces[:-1], blanks, strict=True):
            generation_mask[row, blank.start : blank.stop] = True
            if piece.moved:
                # A single token must be more than the white space. The first of several may be only that.
                column_sets[row, blank.start] = sets.setdefault((piece.moved, len(blank) == 1), len(sets))
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "generation_mask": generation_mask}
    if sets:
        token_sets = torch.zeros(len(sets), vocab_size, dtype=torch.bool)
        for key, number in sets.items():
            ids = vocabulary.ids if key is None else vocabulary.find_spaced(*key) - special
            token_sets[number, [index for index in ids if index < vocab_size]] = True
        inputs |= {"token_sets": token_sets, "column_sets": column_sets}
    return {name: value.to(input_device(model)) for name, value in inputs.items()}


def _fill(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, canvases: list[TextCanvas], kwargs: dict) -> None:
    """Sets the `fillings` of canvases to the tokens that are shown. `kwargs` are passed to `generate`."""
    inputs, special = make_generate_inputs(model, tokenizer, canvases), _find_special_ids(tokenizer)
    output = model.generate(**inputs, **kwargs, return_dict_in_generate=True, num_return_sequences=1)
    for canvas, ids, order in zip(canvases, output.sequences.tolist(), output.decoding_order.tolist(), strict=True):
        # Blanks that an end of sentence closed are not in the order. Any token may pad them.
        shown = {column for column in order if ids[column] not in special}
        _, blanks = canvas.join_ids()
        canvas.fillings = [[ids[column] for column in blank if column in shown] for blank in blanks]


def _score(model: PreTrainedModel, canvases: list[TextCanvas], end: list[int], ranks: list[float] | None) -> None:
    """Sets the `log_probability` of canvases: log p(text, `end` | first token), in order of the columns' `ranks`."""
    rows = [canvas.join_ids()[0] + end for canvas in canvases]
    input_ids, attention_mask = (each.to(input_device(model)) for each in padded_rows(rows))
    order = "left_to_right"
    if ranks is not None:
        orders = [torch.tensor(sorted(range(1, len(ids)), key=ranks.__getitem__)) for ids in rows]
        order = pad_sequence(orders, batch_first=True, padding_value=-1).to(input_ids.device)
    scores = model.score(input_ids, attention_mask=attention_mask, decoding_order=order)
    for canvas, log_probability in zip(canvases, scores.log_likelihood[0].tolist(), strict=True):
        canvas.log_probability = log_probability


__all__ = ["Candidate", "Infilling", "encode_behind_blank", "infill", "make_canvases", "read_blanks", "write_blanks"]
