# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Text with blanks as tokens with blanks: `"The <blank:3> sat on the <blank:1-4>."`."""

import itertools
import math
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from .canvas_aoarm import check_count


# A blank, and the backslashes before it.
BLANK = re.compile(r"(?<!\\)(\\*)(<blank(?::([0-9]+)(?:-([0-9]+))?)?>)")
# Tokens are decoded behind this letter, because many decoders drop a space at the start.
ANCHOR = "a"
# Text behind a blank is tokenized behind a character that merges with no other, or else behind a rare letter.
STAND_INS = "☺qzxk"
# How many words show whether the tokenizer joins words with the white space before them.
PROBES = 3


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
                rf"token long; got {cut_text(form)}. Write \{cut_text(form)} for these characters themselves."
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


def cut_text(text: str) -> str:
    """Shortens a text for messages, to 80 characters."""
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
        version: the number of tokens and the special ids, which change when a tokenizer does.
        ids: all ids, sorted. A tokenizer may skip numbers.
        special_ids: the ids that are never shown.
        spaced: the text of each token that begins with white space, by its id.
        words: the words that tokens join with a white-space character, by that character, shortest first.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.version, self.ids = _version(tokenizer), sorted(set(tokenizer.get_vocab().values()))
        added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special_ids = added | set(tokenizer.all_special_ids)
        anchor = _encode(tokenizer, ANCHOR)
        rows = [anchor, *([*anchor, index] for index in self.ids)]
        start, *texts = tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
        texts = {index: text[len(start) :] for index, text in zip(self.ids, texts, strict=True)}
        self.spaced = {index: text for index, text in texts.items() if text[:1].isspace()}
        self.words: dict[str, list[str]] = {}
        for text in sorted(self.spaced.values(), key=len):
            if text[1:].isalpha():
                self.words.setdefault(text[0], []).append(text[1:])
        self._found: dict[tuple[str, bool], set[int]] = {}

    def find_spaced(self, space: str, has_more: bool) -> set[int]:
        """Finds the tokens that begin with `space`. With `has_more`, they must have more characters."""
        key = space, has_more
        if key not in self._found:
            found = {index: text for index, text in self.spaced.items() if text.startswith(space)}
            self._found[key] = {index for index, text in found.items() if not has_more or text != space}
        return self._found[key]


def _version(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    return len(tokenizer), *tokenizer.all_special_ids


_vocabularies: "weakref.WeakKeyDictionary[PreTrainedTokenizerBase, Vocabulary]" = weakref.WeakKeyDictionary()


def read_vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Reads a tokenizer's vocabulary, again only when tokens were added or became special."""
    known = _vocabularies.get(tokenizer)
    if known is None or known.version != _version(tokenizer):
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

    def decode_fillings(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Returns the text in each blank, without white space that is written before the blank."""
        texts, before = [], self.pieces[0].ids
        if before[:1] == [tokenizer.bos_token_id]:
            before = before[1:]
        for filling, (left, right) in zip(self.fillings, itertools.pairwise(self.pieces), strict=True):
            texts.append(_decode_behind(tokenizer, before, filling).removeprefix(left.moved))
            # A piece holds whole characters, so the text before it does not change the text behind it.
            before = right.ids or before + filling
        return texts

    def write_text(self, fillings: Sequence[str]) -> str:
        """Returns the pieces as they are written, with a text in each blank between them."""
        first, *others = (piece.text for piece in self.pieces)
        return first + "".join(itertools.chain(*zip(fillings, others, strict=True)))


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
            f"got {longest}, of which {given} are given, with {cut_text(', '.join(written))}. Write shorter blanks or "
            "less text."
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


__all__ = [
    "BLANK",
    "Piece",
    "TextCanvas",
    "Vocabulary",
    "cut_text",
    "encode_behind_blank",
    "make_canvases",
    "read_blanks",
    "read_vocabulary",
    "with_bos",
    "write_blanks",
]
