# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Words of a text become blanks, and blanks become the words that stood there. No model and no page is needed."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from modeling_aoarm.blanks_aoarm import read_blanks, write_blanks


WORD = re.compile(r"\w+(?:['’.-]\w+)*")


@dataclass(frozen=True)
class BlankedText:
    """A text with blanks.

    Args:
        pieces: the text around the blanks, one piece more than there are blanks.
        blanks: the blanks as they are written, such as `<blank:3>`.
        words: what stood in each blank, `None` where nobody knows.
    """

    pieces: tuple[str, ...]
    blanks: tuple[str, ...]
    words: tuple[str | None, ...]

    @property
    def text(self) -> str:
        return write_blanks(self.pieces, self.blanks)


@dataclass(frozen=True)
class Item:
    """A part of a text, in reading order.

    Args:
        kind: `"word"`, `"blank"`, or `"between"` for what stands between them.
        text: the part as it is written.
        piece: the number of its piece, or of its blank.
        span: where it stands in its piece.
    """

    kind: str
    text: str
    piece: int
    span: tuple[int, int] = (0, 0)


def read_text(text: str, before: BlankedText | None = None) -> BlankedText:
    """Reads a text with blanks. The words of `before` are kept as long as it has the same blanks.

    Raises:
        ValueError: as in `read_blanks`.
    """
    pieces, _, blanks = read_blanks(text)
    same = before is not None and before.blanks == tuple(blanks)
    return BlankedText(tuple(pieces), tuple(blanks), before.words if same else (None,) * len(blanks))


def split_items(blanked: BlankedText) -> list[Item]:
    """Splits a text into words, blanks, and what stands between them."""
    items = []
    for number, piece in enumerate(blanked.pieces):
        end = 0
        for match in WORD.finditer(piece):
            items.append(Item("between", piece[end : match.start()], number, (end, match.start())))
            items.append(Item("word", match[0], number, match.span()))
            end = match.end()
        items.append(Item("between", piece[end:], number, (end, len(piece))))
        if number < len(blanked.blanks):
            items.append(Item("blank", blanked.blanks[number], number))
    return [item for item in items if item.text]


def toggle_item(blanked: BlankedText, item: Item, write_blank: Callable[[str], str]) -> BlankedText:
    """Makes a blank of a word, or of a blank the words that stood there.

    Words with only white space between them share a blank.

    Args:
        write_blank: writes the blank for words.
    """
    if item.kind == "word":
        return _add_blank(blanked, item, write_blank)
    if item.kind == "blank" and blanked.words[item.piece] is not None:
        return _remove_blank(blanked, item.piece)
    return blanked


def _add_blank(blanked: BlankedText, item: Item, write_blank: Callable[[str], str]) -> BlankedText:
    pieces, blanks, words = list(blanked.pieces), list(blanked.blanks), list(blanked.words)
    number, (start, stop) = item.piece, item.span
    pieces[number : number + 1] = [pieces[number][:start], pieces[number][stop:]]
    blanks.insert(number, write_blank(item.text))
    words.insert(number, item.text)
    # The gap behind the new blank first: joining the gap before it changes its number.
    for gap, left in ((number + 1, number), (number, number - 1)):
        if 0 <= left < len(blanks) - 1 and not pieces[gap].strip():
            _join_blanks(pieces, blanks, words, left, write_blank)
    return BlankedText(tuple(pieces), tuple(blanks), tuple(words))


def _join_blanks(pieces: list[str], blanks: list[str], words: list[str | None], left: int, write_blank) -> None:
    """Joins a blank with the next one, unless that would lose words or white space."""
    gap = pieces[left + 1]
    if None in words[left : left + 2]:
        if gap:
            return
        # Adjacent blanks are read as one.
        joined, form = None, blanks[left] + blanks[left + 1]
    else:
        joined = words[left] + gap + words[left + 1]
        form = write_blank(joined)
    words[left : left + 2], blanks[left : left + 2] = [joined], [form]
    del pieces[left + 1]


def _remove_blank(blanked: BlankedText, number: int) -> BlankedText:
    pieces, words = blanked.pieces, blanked.words
    joined = pieces[number] + words[number] + pieces[number + 1]
    return BlankedText(
        (*pieces[:number], joined, *pieces[number + 2 :]),
        (*blanked.blanks[:number], *blanked.blanks[number + 1 :]),
        (*words[:number], *words[number + 1 :]),
    )
