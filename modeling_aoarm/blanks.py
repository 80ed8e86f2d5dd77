# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Text with blanks, `"The <blank:3> sat on the <blank:1-4>."`, as token ids and back."""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase


BLANK = re.compile(r"<blank(?::(\d+)(?:-(\d+))?)?>")
LIKE_A_BLANK = re.compile(r"<\s*blank[^<>]*>", re.IGNORECASE)

# Stands for what a blank will hold while the text behind it is tokenised: a character that merges with no other.
STAND_IN = "☺"


@dataclass
class TextTemplate:
    """A text with blanks.

    Args:
        pieces: the text before, between and after blanks: one more than there are blanks.
        piece_ids: the token ids of each piece; the first begins with the beginning-of-sentence token, if there is one.
        lengths: the lengths, in tokens, that each blank may have.
        placeholder: the id that stands in blanks, which is never read.
    """

    pieces: list[str]
    piece_ids: list[list[int]]
    lengths: list[range]
    placeholder: int

    @classmethod
    def from_text(cls, tokenizer: PreTrainedTokenizerBase, text: str) -> "TextTemplate":
        """Reads a text.

        Raises:
            ValueError: for a blank of length 0, or of another form than `<blank>`, `<blank:n>` and `<blank:m-n>`.
        """
        lengths, pieces, end = [], [], 0
        for match in LIKE_A_BLANK.finditer(text):
            blank = BLANK.fullmatch(match[0])
            shortest = int(blank[1] or 1) if blank else 0
            longest = int(blank[2] or shortest) if blank else 0
            if not 1 <= shortest <= longest:
                raise ValueError(
                    "A blank of `text` must be written <blank>, <blank:n> or <blank:m-n> with m <= n, and be at least "
                    f"one token long, got {match[0]!r}."
                )
            if lengths and match.start() == end:
                # Blanks side by side are one: a character's bytes may be shared out between them.
                shortest, longest = shortest + lengths[-1][0], longest + lengths[-1][-1]
                lengths.pop()
            else:
                pieces.append(text[end : match.start()])
            lengths.append(range(shortest, longest + 1))
            end = match.end()
        pieces.append(text[end:])
        first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        piece_ids = [first + tokenizer.encode(pieces[0], add_special_tokens=False)]
        piece_ids += [_encode_behind_blank(tokenizer, piece) for piece in pieces[1:]]
        placeholder = 0 if tokenizer.mask_token_id is None else tokenizer.mask_token_id
        return cls(pieces, piece_ids, lengths, placeholder)

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
        ids = list(self.template.piece_ids[0])
        for filling, piece_ids in zip(self.fillings, self.template.piece_ids[1:], strict=True):
            ids += filling + piece_ids
        return ids

    def text(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The filled text: the pieces as they were written, and the fillings decoded."""
        text, last = self.template.pieces[0], self.template.piece_ids[0][-1:]
        for filling, piece, piece_ids in zip(
            self.fillings, self.template.pieces[1:], self.template.piece_ids[1:], strict=True
        ):
            # Decoded behind the token before it: some tokenizers drop a space at the start of what they decode.
            text += _decode_behind(tokenizer, last, filling, skip_special_tokens=True) + piece
            last = (last + filling + piece_ids)[-1:]
        return text


def _encode_behind_blank(tokenizer: PreTrainedTokenizerBase, piece: str) -> list[int]:
    """The ids of a piece of text that follows a blank, without a space that the tokenizer would put in front."""
    ids, before, both = (
        tokenizer.encode(text, add_special_tokens=False) for text in (piece, STAND_IN, STAND_IN + piece)
    )
    continuing = both[len(before) :]
    keeps_text = [_decode_behind(tokenizer, before, each) == piece for each in (ids, continuing)]
    return continuing if keeps_text == [False, True] and both == before + continuing else ids


def _decode_behind(
    tokenizer: PreTrainedTokenizerBase, before: list[int], ids: list[int], skip_special_tokens: bool = False
) -> str:
    """The text of `ids` where they follow `before`."""
    anchor, both = (
        tokenizer.decode(each, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
        for each in (before, before + ids)
    )
    return both[len(anchor) :]


__all__ = ["TextCanvas", "TextTemplate"]
