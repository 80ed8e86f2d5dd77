# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Builds tokenizers: one token per character, one per byte, or byte-level BPE.

All three are ordinary `PreTrainedTokenizerFast` objects with the special tokens `<s>` (beginning of sentence), `</s>`
(end), `<pad>` and `<mask>`. The character tokenizer also has `<unk>`. Encoding adds no special tokens:
`DataCollatorForAnyOrderLM` puts `<s>` in front. `decode(encode(text)) == text` holds exactly for every text without
unknown characters that spells no special token.
"""

from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
UNKNOWN_TOKEN = {"unk_token": "<unk>"}


def character_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Builds a tokenizer with one token per Unicode character of `texts`, in code point order after the special tokens.

    Args:
        texts: strings whose characters become the vocabulary. Any other character becomes `<unk>`.

    Raises:
        TypeError: `texts` is a single string, or holds something that is not a string.
        ValueError: `texts` holds no character.
    """
    characters = set()
    for text in checked_texts(texts):
        characters.update(text)
    if not characters:
        raise ValueError("texts must contain at least one character, got none.")
    special_tokens = {**SPECIAL_TOKENS, **UNKNOWN_TOKEN}
    vocabulary = {token: index for index, token in enumerate([*special_tokens.values(), *sorted(characters)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN_TOKEN["unk_token"]))
    # "." would not match line breaks.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return _wrap(tokenizer, special_tokens)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Builds a tokenizer with one token per UTF-8 byte, in a fixed order after the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS.values(), *alphabet])}
    return _wrap(_byte_level(models.BPE(vocabulary, [])), SPECIAL_TOKENS)


def train_bpe_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains byte-pair encoding (1508.07909) of UTF-8 bytes, as in GPT-2. The tokenizer encodes every text.

    Args:
        texts: strings to learn the merges from.
        vocab_size: size of the vocabulary with special tokens and the 256 bytes. Little text can give fewer tokens.

    Raises:
        TypeError: `texts` is a single string, or holds something that is not a string.
        ValueError: `vocab_size` leaves no room for the bytes and the special tokens.
    """
    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest} (bytes and special tokens), got {vocab_size}.")
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(checked_texts(texts), trainer)
    return _wrap(tokenizer, SPECIAL_TOKENS)


def _byte_level(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _wrap(tokenizer: Tokenizer, special_tokens: dict[str, str]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, padding_side="right", **special_tokens
    )


def checked_texts(texts: Iterable[str]) -> Iterator[str]:
    """Yields the texts. Raises a TypeError for a single string or an item that is not a string."""
    if isinstance(texts, str):
        raise TypeError("texts must be an iterable of strings, got a single string; pass [text].")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"texts must hold strings, got {type(text).__name__}.")
        yield text
