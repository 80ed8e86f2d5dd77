# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Filling blanks in text: `"The <blank:3> sat on the <blank>."`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


BLANK = re.compile(r"<blank(?::(\d+))?>")
LIKE_A_BLANK = re.compile(r"<\s*blank[^<>]*>", re.IGNORECASE)


def infill(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str | Sequence[str],
    **generate_kwargs,
) -> str | list[str]:
    """Fills the blanks of a text, or of a batch of texts with any numbers of blanks.

    A blank is written `<blank:n>`, n tokens long, or `<blank>`, one token. The text around blanks comes back as it was.
    Where the tokenizer has a beginning-of-sentence token, it is put in front. Each piece of text between blanks is
    tokenised by itself: with tokenizers that mark the beginnings of words, put blanks between words.

    Args:
        model: a model with `generate(..., generation_mask=...)`.
        tokenizer: its tokenizer.
        text: one text or several.
        **generate_kwargs: passed to `generate`: `decoding_order`, `do_sample`, `temperature`, ...

    Returns:
        The filled text, or a list of them. A text without blanks comes back unchanged.

    Raises:
        TypeError: if `text` is neither a string nor a sequence of strings.
        ValueError: for a blank of length 0 or of another form (`<blank:-1>`, `<Blank>`), a text of blanks only with a
            tokenizer without a beginning-of-sentence token, `return_dict_in_generate` or `num_return_sequences` among
            the arguments, and as in `generate`.
    """
    texts = [text] if isinstance(text, str) else text
    for each in texts if isinstance(texts, Sequence) else [texts]:
        if not isinstance(each, str):
            raise TypeError(f"`text` must be a string or a sequence of strings, got {type(each).__name__}.")
    for name, only in (("return_dict_in_generate", False), ("num_return_sequences", 1)):
        value = generate_kwargs.pop(name, only)
        if value != only:
            raise ValueError(f"`{name}` must be {only} in `infill`, which returns one text for each; got {value}.")

    canvases = [_Canvas.from_text(tokenizer, each) for each in texts]
    with_blanks = [canvas for canvas in canvases if canvas.blanks]
    width = max((len(canvas.ids) for canvas in with_blanks), default=0)
    # What stands in padding is never read; any id of the vocabulary will do.
    input_ids = torch.zeros(len(with_blanks), width, dtype=torch.int64)
    generation_mask = torch.zeros(len(with_blanks), width, dtype=torch.bool)
    attention_mask = torch.zeros(len(with_blanks), width, dtype=torch.int64)
    for row, canvas in enumerate(with_blanks):
        input_ids[row, : len(canvas.ids)] = torch.tensor(canvas.ids)
        attention_mask[row, : len(canvas.ids)] = 1
        for start, length in canvas.blanks:
            generation_mask[row, start : start + length] = True
    if with_blanks:
        filled = model.generate(
            input_ids.to(model.device),
            generation_mask=generation_mask.to(model.device),
            attention_mask=attention_mask.to(model.device),
            return_dict_in_generate=False,
            num_return_sequences=1,
            **generate_kwargs,
        )
        for canvas, ids in zip(with_blanks, filled.tolist(), strict=True):
            canvas.ids = ids
    results = [canvas.to_text(tokenizer) for canvas in canvases]
    return results[0] if isinstance(text, str) else results


@dataclass
class _Canvas:
    """A text as token ids with `blanks`, (start, length) of each; `pieces` are the texts before, between and after."""

    ids: list[int]
    blanks: list[tuple[int, int]]
    pieces: list[str]

    @classmethod
    def from_text(cls, tokenizer: PreTrainedTokenizerBase, text: str) -> "_Canvas":
        ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        placeholder = 0 if tokenizer.mask_token_id is None else tokenizer.mask_token_id
        blanks, pieces, end = [], [], 0
        for match in LIKE_A_BLANK.finditer(text):
            blank = BLANK.fullmatch(match[0])
            length = int(blank[1] or 1) if blank else 0
            if length == 0:
                raise ValueError(
                    "A blank of `text` must be written <blank> or <blank:n> and be at least one token long, got "
                    f"{match[0]!r}."
                )
            if blanks and match.start() == end:
                # Blanks side by side are one: a character's bytes may be shared out between them.
                blanks[-1] = (blanks[-1][0], blanks[-1][1] + length)
            else:
                pieces.append(text[end : match.start()])
                ids += tokenizer.encode(pieces[-1], add_special_tokens=False)
                blanks.append((len(ids), length))
            ids += [placeholder] * length
            end = match.end()
        pieces.append(text[end:])
        return cls(ids + tokenizer.encode(pieces[-1], add_special_tokens=False), blanks, pieces)

    def to_text(self, tokenizer: PreTrainedTokenizerBase) -> str:
        text = self.pieces[0]
        for (start, length), piece in zip(self.blanks, self.pieces[1:], strict=True):
            # Decoded behind the token before it: some tokenizers drop a space at the start of what they decode.
            before = self.ids[max(start - 1, 0) : start]
            anchor, both = (
                tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                for ids in (before, before + self.ids[start : start + length])
            )
            text += both[len(anchor) :] + piece
        return text


__all__ = ["infill"]
