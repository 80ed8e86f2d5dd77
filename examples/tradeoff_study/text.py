# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Running text of 27 symbols, a to z and space, as a source of sentences of equal length."""

import functools
import hashlib
import re
import unicodedata

import torch


ALPHABET = " abcdefghijklmnopqrstuvwxyz"


def as_letters(text: str) -> str:
    """Writes text in the 27 symbols: drops accents, and replaces everything else between letters by one space."""
    plain = unicodedata.normalize("NFKD", text).lower()
    return re.sub("[^a-z]+", " ", "".join(each for each in plain if not unicodedata.combining(each))).strip()


class TextSource:
    """A text, as a source of windows that start at random.

    Args:
        text: text of the 27 symbols.

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
        """A hash of the text."""
        return hashlib.blake2b(self.text.encode("ascii"), digest_size=8).hexdigest()

    def to(self, device: torch.device | str) -> "TextSource":
        """Moves the text to a device, and later windows with it."""
        self.codes = self.codes.to(device)
        return self

    def sample(self, batch: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """Draws windows, int64 `[batch, length]`, on the text's device.

        Raises:
            ValueError: the text is shorter than a window.
        """
        starts = self._last_start(length) + 1
        return self._cut(torch.randint(starts, (batch,), generator=generator, device=self.codes.device), length)

    def windows(self, count: int, length: int) -> torch.Tensor:
        """Cuts windows spread evenly over the text, int64 `[count, length]`.

        Raises:
            ValueError: the text is shorter than a window.
        """
        starts = torch.linspace(0, self._last_start(length), count, dtype=torch.float64).long()
        return self._cut(starts.to(self.codes.device), length)

    def _last_start(self, length: int) -> int:
        if length > len(self.codes):
            raise ValueError(f"`length` must be at most that of the text, {len(self.codes)}, got {length}.")
        return len(self.codes) - length

    def _cut(self, starts: torch.Tensor, length: int) -> torch.Tensor:
        return self.codes[starts[:, None] + torch.arange(length, device=starts.device)].long()

    def unigram_entropy(self) -> float:
        """Entropy of a symbol's marginal distribution, nats."""
        shares = self.codes.long().bincount().double() / len(self.codes)
        shares = shares[shares > 0]
        return -float((shares * shares.log()).sum())

    @staticmethod
    def spell(tokens: torch.Tensor) -> list[str]:
        """Writes int64 `[batch, length]` as texts."""
        return ["".join(ALPHABET[token] for token in sentence) for sentence in tokens.tolist()]
