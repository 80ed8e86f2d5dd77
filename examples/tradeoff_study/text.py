# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Running text of 27 symbols, a to z and space, as a source of sentences of equal length."""

import functools
import hashlib
import re
import unicodedata

import torch


ALPHABET = " abcdefghijklmnopqrstuvwxyz"


def as_letters(text: str) -> str:
    """Text in the 27 symbols: accents are dropped, everything else between letters becomes one space."""
    plain = unicodedata.normalize("NFKD", text).lower()
    return re.sub("[^a-z]+", " ", "".join(each for each in plain if not unicodedata.combining(each))).strip()


class TextSource:
    """Windows of a text, from places drawn at random.

    Args:
        text: of the 27 symbols.

    Raises:
        ValueError: `text` is empty or has other symbols.
    """

    vocab_size = len(ALPHABET)

    def __init__(self, text: str):
        if not text:
            raise ValueError("`text` must have symbols, got an empty one.")
        if other := set(text) - set(ALPHABET):
            raise ValueError(
                f"`text` must be of the symbols {ALPHABET!r}, got {''.join(sorted(other))[:40]!r} as well."
            )
        codes = torch.frombuffer(bytearray(text.encode("ascii")), dtype=torch.uint8)
        self.text, self.codes = text, torch.where(codes == ord(" "), 0, codes - ord("a") + 1)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Different texts have different ones."""
        return hashlib.blake2b(self.text.encode("ascii"), digest_size=8).hexdigest()

    def to(self, device: torch.device | str) -> "TextSource":
        """Moves the text to a device, where windows are then cut."""
        self.codes = self.codes.to(device)
        return self

    def sample(self, batch: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """Windows, int64 `[batch, length]`, on the text's device.

        Raises:
            ValueError: the text is shorter than a window.
        """
        self._check(length)
        last = len(self.codes) - length
        starts = torch.randint(last + 1, (batch, 1), generator=generator, device=self.codes.device)
        return self.codes[starts + torch.arange(length, device=self.codes.device)].long()

    def windows(self, count: int, length: int) -> torch.Tensor:
        """So many windows that are spread evenly over the text, int64 `[count, length]`.

        Raises:
            ValueError: the text is shorter than a window.
        """
        self._check(length)
        starts = torch.linspace(0, len(self.codes) - length, count, dtype=torch.float64).long()[:, None]
        return self.codes[starts.to(self.codes.device) + torch.arange(length, device=self.codes.device)].long()

    def _check(self, length: int) -> None:
        if length > len(self.codes):
            raise ValueError(f"`length` must be at most that of the text, {len(self.codes)}, got {length}.")

    def unigram_entropy(self) -> float:
        """Entropy of one symbol without any other, nats."""
        shares = self.codes.long().bincount().double() / len(self.codes)
        shares = shares[shares > 0]
        return -float((shares * shares.log()).sum())

    @staticmethod
    def spell(tokens: torch.Tensor) -> list[str]:
        """The texts of int64 `[batch, length]`."""
        return ["".join(ALPHABET[token] for token in sentence) for sentence in tokens.tolist()]
