# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Text with blanks, `"The <blank:3> sat on the <blank:1-4>."`, as token ids and back."""

import heapq
import itertools
import math
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase


BLANK = re.compile(r"<blank(?::([0-9]+)(?:-([0-9]+))?)?>")

# Text to decode tokens behind: a letter, which no tokenizer makes of bytes.
ANCHOR = "a"
# What stands in a blank while the text behind it is tokenised: a character that merges with no other, or letters for
# tokenizers that do not know it.
STAND_INS = "☺qzxk"
# How many words are tried to find out whether the tokenizer joins them with the white space before them.
PROBES = 3


def read_blanks(text: str) -> tuple[list[str], list[range], list[str]]:
    r"""Splits a text at its blanks.

    Args:
        text: `<blank>`, `<blank:n>` and `<blank:m-n>` are blanks, everything else is text. Backslashes directly before
            one of these forms are read in pairs, each of which stands for one; a single one that is left makes the form
            text: `\<blank>`.

    Returns:
        The text before, between and after blanks, one piece more than there are blanks; the lengths, in tokens, that
        each blank may have; and the blanks as they are written. Blanks side by side are one.

    Raises:
        ValueError: for a blank without tokens, and one whose shortest length is above its longest.
    """
    pieces, lengths, written, end = [""], [], [], 0
    for match in BLANK.finditer(text):
        before = text[end : match.start()]
        backslashes = len(before) - len(before.rstrip("\\"))
        pieces[-1] += before[: len(before) - (backslashes + 1) // 2]
        end = match.end()
        if backslashes % 2:
            pieces[-1] += match[0]
            continue
        shortest = 1 if match[1] is None else _number(match[1])
        longest = shortest if match[2] is None else _number(match[2])
        if not 1 <= shortest <= longest:
            raise ValueError(
                "A blank of `text` must be written <blank>, <blank:n> or <blank:m-n> with m <= n, and be at least one "
                rf"token long, got {_cut(match[0])}. Write \{_cut(match[0])} for these characters themselves."
            )
        if lengths and not pieces[-1]:
            # A character's bytes may be shared out between blanks side by side.
            shortest, longest = shortest + lengths[-1][0], longest + lengths[-1][-1]
            lengths[-1], written[-1] = range(shortest, longest + 1), written[-1] + match[0]
        else:
            lengths.append(range(shortest, longest + 1))
            written.append(match[0])
            pieces.append("")
    pieces[-1] += text[end:]
    return pieces, lengths, written


def _number(digits: str) -> int:
    """Python does not read numbers of thousands of digits. 18 are more than any model has positions for."""
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= 18 else 10**18


def _cut(text: str) -> str:
    """`text`, cut to a length for messages."""
    return text if len(text) <= 80 else f"{text[:80]}..."


def write_blanks(pieces: Sequence[str], blanks: Sequence[str]) -> str:
    r"""Writes any pieces of text with blanks between them; [`read_blanks`] reads the same pieces.

    Backslashes are put where a piece has the form of a blank, and doubled directly before a blank.

    Args:
        pieces: one more than there are blanks.
        blanks: `<blank>`, `<blank:n>` or `<blank:m-n>`.
    """
    escaped = [_escape(piece) for piece in pieces]
    before = [_double_last_backslashes(piece) + blank for piece, blank in zip(escaped[:-1], blanks, strict=True)]
    return "".join(before) + escaped[-1]


def _escape(piece: str) -> str:
    escaped, end = "", 0
    for match in BLANK.finditer(piece):
        escaped += _double_last_backslashes(piece[end : match.start()]) + "\\" + match[0]
        end = match.end()
    return escaped + piece[end:]


def _double_last_backslashes(text: str) -> str:
    return text + text[len(text.rstrip("\\")) :]


def with_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """`ids` behind the beginning-of-sentence token, unless they begin with it or the tokenizer has none."""
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


class Vocabulary:
    """A tokenizer's ids, and the text behind other text of those that begin with white space.

    Args:
        tokenizer: it is not kept.
    """

    _cache: "weakref.WeakKeyDictionary[PreTrainedTokenizerBase, Vocabulary]" = weakref.WeakKeyDictionary()

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.ids = sorted(set(tokenizer.get_vocab().values()))
        self.size = len(tokenizer)
        anchor = tokenizer.encode(ANCHOR, add_special_tokens=False)
        start = len(_decode(tokenizer, anchor))
        decoded = tokenizer.batch_decode([[*anchor, index] for index in self.ids], clean_up_tokenization_spaces=False)
        texts = ((index, text[start:]) for index, text in zip(self.ids, decoded, strict=True))
        self.spaced = {index: text for index, text in texts if text[:1].isspace()}
        self._probes: dict[str, list[str]] = {}
        self._beginning: dict[tuple[str, bool], list[int]] = {}

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Vocabulary":
        """The tokenizer's vocabulary, made once for as long as no tokens are added."""
        known = cls._cache.get(tokenizer)
        if known is None or known.size != len(tokenizer):
            known = cls._cache[tokenizer] = cls(tokenizer)
        return known

    def probes(self, space: str) -> list[str]:
        """Words that tokens join with the white space before them, first those with the character `space`."""
        if space not in self._probes:
            words = (text for text in self.spaced.values() if text[1:].isalpha())
            shortest = heapq.nsmallest(PROBES, words, key=lambda text: (text[0] != space, len(text)))
            self._probes[space] = [text[1:] for text in shortest]
        return self._probes[space]

    def beginning_with(self, space: str, goes_on: bool) -> list[int]:
        """The ids whose text begins with `space`, and goes on behind it if `goes_on`."""
        key = space, goes_on
        if key not in self._beginning:
            self._beginning[key] = [
                index
                for index, text in self.spaced.items()
                if text.startswith(space) and not (goes_on and text == space)
            ]
        return self._beginning[key]


@dataclass
class TextTemplate:
    """A text with blanks.

    White space before a blank is a token of its own only where the tokenizer would not join it with the next word. It
    is moved into the blank otherwise, whose first token then begins with it.

    Args:
        pieces: the text before, between and after blanks: one more than there are blanks.
        piece_ids: the token ids of each piece, without white space that is moved; the first begins with the
            beginning-of-sentence token, if there is one.
        unmoved_ids: the token ids of each piece, with all of its white space.
        moved: the white space that is moved into each blank, which its first token begins with.
        lengths: the lengths, in tokens, that each blank may have.
        placeholder: the id that stands in blanks, which is never read.
    """

    pieces: list[str]
    piece_ids: list[list[int]]
    unmoved_ids: list[list[int]]
    moved: list[str]
    lengths: list[range]
    placeholder: int

    @classmethod
    def from_text(
        cls, tokenizer: PreTrainedTokenizerBase, text: str, max_length: int, appended: int = 0
    ) -> "TextTemplate":
        """Reads a text.

        Args:
            tokenizer: the model's.
            text: as in [`read_blanks`].
            max_length: the model's `max_position_embeddings`.
            appended: how many tokens will be appended to the text.

        Raises:
            ValueError: for blanks that may make the text longer than `max_length`, and as in [`read_blanks`].
        """
        pieces, lengths, written = read_blanks(text)
        piece_ids, unmoved_ids, moved = [], [], []
        for number, piece in enumerate(pieces):
            encode = encode_behind_blank if number else _encode
            unmoved = encode(tokenizer, piece)
            ids, space = unmoved, ""
            if number < len(lengths):
                ids, space = _move_space(tokenizer, encode, piece, unmoved)
            if number == 0:
                unmoved, ids = with_bos(tokenizer, unmoved), with_bos(tokenizer, ids)
                if not ids:
                    # The first token is what the others are predicted from.
                    ids, space = unmoved, ""
            piece_ids.append(ids)
            unmoved_ids.append(unmoved)
            moved.append(space)
        placeholder = 0 if tokenizer.mask_token_id is None else tokenizer.mask_token_id
        given = sum(map(len, piece_ids)) + appended
        longest = given + sum(each[-1] for each in lengths)
        if lengths and longest > max_length:
            raise ValueError(
                f"`text` must have at most max_position_embeddings={max_length} tokens with its blanks at their "
                f"longest; got {longest}, of which {given} are given, with {_cut(', '.join(written))}. Write shorter "
                "blanks or less text."
            )
        return cls(pieces, piece_ids, unmoved_ids, moved[: len(lengths)], lengths, placeholder)

    def canvases(self, max_candidates: int) -> Iterator["TextCanvas"]:
        """A canvas for each combination of lengths, the shorter first.

        Raises:
            ValueError: for more than `max_candidates` of them, and for more than one without a given first token.
        """
        number = math.prod(map(len, self.lengths))
        if number > max_candidates:
            raise ValueError(
                f"`text` must not have more than max_candidates={max_candidates} combinations of blank lengths, got "
                f"{number} for lengths from {[(each[0], each[-1]) for each in self.lengths]}."
            )
        if number > 1 and not self.piece_ids[0]:
            raise ValueError(
                "`text` must not begin with a blank where lengths are unknown and the tokenizer has no "
                "beginning-of-sentence token: candidates are compared given their first token, which must be the same."
            )
        for blank_lengths in itertools.product(*self.lengths):
            yield TextCanvas(self, blank_lengths)


@dataclass
class TextCanvas:
    """A text whose blanks have lengths, to be filled.

    Args:
        template: the text.
        blank_lengths: how many tokens each blank has.
        fillings: the token ids shown in each blank, once it is filled: as many as its length, or fewer.
        log_probability: nats, of the filled text, once it is scored.
    """

    template: TextTemplate
    blank_lengths: tuple[int, ...]
    fillings: list[list[int]] = field(default_factory=list)
    log_probability: float = 0.0

    def columns(self) -> tuple[list[int], list[range]]:
        """Token ids with placeholders in blanks, and the columns of each blank."""
        ids, blanks = list(self.template.piece_ids[0]), []
        for length, piece_ids in zip(self.blank_lengths, self.template.piece_ids[1:], strict=True):
            blanks.append(range(len(ids), len(ids) + length))
            ids += [self.template.placeholder] * length + piece_ids
        return ids, blanks

    def filled_ids(self) -> list[int]:
        """The token ids of the filled text."""
        template, ids = self.template, []
        for filling, piece_ids, unmoved_ids in zip(
            self.fillings, template.piece_ids[:-1], template.unmoved_ids[:-1], strict=True
        ):
            # An end of sentence may have closed the blank. No token of it holds the white space then.
            ids += piece_ids + filling if filling else unmoved_ids
        return ids + template.piece_ids[-1]

    def text(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The filled text: the pieces as they were written, and the fillings decoded."""
        template = self.template
        text, before = template.pieces[0], template.piece_ids[0]
        if before[:1] == [tokenizer.bos_token_id]:
            before = before[1:]
        for filling, moved, piece, piece_ids in zip(
            self.fillings, template.moved, template.pieces[1:], template.piece_ids[1:], strict=True
        ):
            # A piece holds whole characters, so what is before it does not matter to what follows.
            text += _decode_behind(tokenizer, before, filling).removeprefix(moved) + piece
            before = piece_ids or before + filling
        return text


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def encode_behind_blank(tokenizer: PreTrainedTokenizerBase, piece: str) -> list[int]:
    """The ids of a piece of text that follows a blank, without a space that the tokenizer would put in front."""
    ids = _encode(tokenizer, piece)
    text = _decode_behind(tokenizer, _encode(tokenizer, ANCHOR), ids)
    continued = piece[: len(piece) - len(piece.lstrip())] + text.lstrip()
    if text == continued:
        return ids
    for stand_in in STAND_INS:
        before, both = _encode(tokenizer, stand_in), _encode(tokenizer, stand_in + piece)
        behind = both[len(before) :]
        if both == before + behind and _decode_behind(tokenizer, before, behind) == continued:
            return behind
    return ids


def _move_space(
    tokenizer: PreTrainedTokenizerBase,
    encode: Callable[[PreTrainedTokenizerBase, str], list[int]],
    piece: str,
    ids: list[int],
) -> tuple[list[int], str]:
    """The ids of a piece before a blank without the white space that a word there would join, and that white space.

    A word is put behind the piece. White space that its token begins with is what the tokenizer joins.
    """
    if not piece[-1:].isspace():
        return ids, ""
    vocabulary = Vocabulary.of(tokenizer)
    for word in vocabulary.probes(piece[-1]):
        *before, last = encode(tokenizer, piece + word)
        text = vocabulary.spaced.get(last, "")
        space = text.removesuffix(word)
        # Some decoders drop the space at the start of a text.
        is_shown = _decode_behind(tokenizer, before, [last]) in (text, word)
        if text.endswith(word) and space.isspace() and is_shown:
            return before, space
    return ids, ""


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _decode_behind(tokenizer: PreTrainedTokenizerBase, before: list[int], ids: list[int]) -> str:
    """The text of `ids` where they follow `before`."""
    start, both = _decode(tokenizer, before), _decode(tokenizer, before + ids)
    # Bytes that are no character spoil a character before them that is made of bytes too. They are decoded alone then.
    return both[len(start) :] if both.startswith(start) else _decode(tokenizer, ids)


__all__ = [
    "TextCanvas",
    "TextTemplate",
    "Vocabulary",
    "encode_behind_blank",
    "read_blanks",
    "with_bos",
    "write_blanks",
]
