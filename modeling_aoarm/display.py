# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""What the terminal and the pictures share: the text of each token of a canvas, and the colours of fillings."""

import functools
from collections.abc import Sequence
from os.path import commonprefix

from transformers import PreTrainedTokenizerBase


# What decoders write for bytes that are not a whole character (yet).
REPLACEMENT = "\ufffd"
# From this age on, in forward passes, all fillings look alike.
OLD = 16
NEWEST, OLDEST = (255, 135, 0), (95, 120, 155)
UNSURE, HALF_SURE, SURE = (209, 36, 47), (191, 135, 0), (26, 127, 55)

COLOURS = ("age", "confidence")


class TokenTexts:
    """The text of each token of a canvas, also where blanks interrupt it.

    Tokens are decoded behind the token before them, so leading spaces stay. The bytes of one character may be several
    tokens: the character is the text of the last of them, the others have none.

    Args:
        tokenizer: decodes the tokens.
        **decode_kwargs: passed to `tokenizer.decode`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, **decode_kwargs):
        decode_kwargs = {"clean_up_tokenization_spaces": False, **decode_kwargs}

        # From one frame to the next nearly all tokens and their neighbours are the same.
        @functools.lru_cache(maxsize=1 << 14)
        def decode(ids: tuple[int, ...]) -> str:
            return tokenizer.decode(list(ids), **decode_kwargs) if ids else ""

        self._decode = decode

    def __call__(self, ids: Sequence[int], known: Sequence[bool] | None = None) -> list[str | None]:
        """Texts of `ids`, with None where `known` is False. The texts of a run of known tokens join to its own text."""
        texts: list[str | None] = [None] * len(ids)
        start = 0
        while start < len(ids):
            stop = start
            while stop < len(ids) and (known is None or known[stop]):
                stop += 1
            # Behind a blank no token is there to decode behind. The run's first token stands in for it, but not a
            # part of a character, which would spoil the next one; no space is in front of it anyway.
            anchor = tuple(ids[start : start + 1]) if start else ()
            if REPLACEMENT in self._decode(anchor):
                anchor = ()
            texts[start:stop] = self._run(tuple(ids[start:stop]), anchor)
            start = stop + 1
        return texts

    def _run(self, ids: tuple[int, ...], anchor: tuple[int, ...]) -> list[str]:
        texts, start = [], 0
        while start < len(ids):
            # One token, or as many as it takes to end with a whole character.
            decoded = []
            for stop in range(start + 1, len(ids) + 1):
                decoded.append(self._decode(anchor + ids[start:stop]))
                if not decoded[-1].endswith(REPLACEMENT):
                    break
            if not decoded[-1].startswith(self._decode(anchor)):
                # With byte-fallback tokenizers, bytes that are no character spoil a character of bytes before them.
                anchor = ()
                decoded = [self._decode(ids[start:end]) for end in range(start + 1, stop + 1)]
            whole, done = decoded[-1], len(self._decode(anchor))
            for prefix in decoded[:-1]:
                # A token owns what later tokens do not change any more.
                settled = max(done, len(commonprefix([prefix, whole])))
                texts.append(whole[done:settled])
                done = settled
            texts.append(whole[done:])
            anchor, start = ids[start:stop], stop
        return texts


def visible(text: str, encoding: str = "utf-8") -> str:
    """`text` without characters that would steer a terminal or that `encoding` lacks; line breaks and tabs stay."""
    shown = "".join(_picture(character) if _is_control(character) else character for character in text)
    return shown.encode(encoding, "replace").decode(encoding)


def _is_control(character: str) -> bool:
    return (character < " " and character not in "\n\t") or "\x7f" <= character <= "\x9f"


def _picture(character: str) -> str:
    """The Unicode picture of a control character: U+2400 and on, U+2421 for delete."""
    if character < " ":
        return chr(0x2400 + ord(character))
    return "\u2421" if character == "\x7f" else REPLACEMENT


def label(text: str) -> str:
    """A token's text in a picture: line breaks and tabs have signs, part of a character is a dot."""
    return visible(text).replace("\n", "↵").replace("\t", "⇥") or "·"


def age_colour(age: int) -> str:
    """`#rrggbb` for a token filled `age` forward passes ago: bright orange for the newest, fading to slate."""
    return _mix(OLDEST, NEWEST, 1 / (1 + min(age, OLD) / 3))


def confidence_colour(probability: float) -> str:
    """`#rrggbb` for the probability (0 to 1) of a filled token: red, amber, green."""
    probability = min(max(probability, 0.0), 1.0)
    if probability < 0.5:
        return _mix(UNSURE, HALF_SURE, 2 * probability)
    return _mix(HALF_SURE, SURE, 2 * probability - 1)


def _mix(first: tuple[int, ...], second: tuple[int, ...], share: float) -> str:
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(first, second, strict=True))


def legend(colour_by: str) -> list[tuple[str, str | None]]:
    """What the colours mean, as words with their colours (None: the colour of text that says little)."""
    if colour_by == "age":
        ages = [(f" {age}", age_colour(age)) for age in (1, 2, 4, 8)]
        return [("filled ", None), ("now", age_colour(0)), *ages, (f" {OLD}+", age_colour(OLD)), (" passes ago", None)]
    percents = [(f" {percent}%", confidence_colour(percent / 100)) for percent in (0, 25, 50, 75, 100)]
    return [("probability", None), *percents]


def check_colour_by(colour_by: str) -> None:
    """Raises a ValueError for anything but a name in `COLOURS`."""
    if colour_by not in COLOURS:
        raise ValueError(f"`colour_by` must be one of {', '.join(map(repr, COLOURS))}, got {colour_by!r}.")


__all__ = ["COLOURS", "TokenTexts", "age_colour", "check_colour_by", "confidence_colour", "label", "legend", "visible"]
