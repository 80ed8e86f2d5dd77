# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Fills blanks in text: `"The <blank:3> sat on the <blank:1-4>."`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .blanks_aoarm import (
    BLANK,
    TextCanvas,
    cut_text,
    encode_behind_blank,
    make_canvases,
    read_blanks,
    read_vocabulary,
    with_bos,
    write_blanks,
)
from .canvas_aoarm import check_count, padded_rows
from .compat_aoarm import input_device


# Arguments of `generate` that `infill` sets itself: the only value that a call may give, and the way out.
RESERVED_ARGUMENTS = {
    "return_dict_in_generate": (False, "`return_candidates=True` returns more than text"),
    "num_return_sequences": (1, "repeat the text instead"),
    "max_new_tokens": (None, "write a blank at the end of `text` instead"),
    "token_sets": (None, "use `suppress_tokens`, or `generate`"),
    "column_sets": (None, "use `suppress_tokens`, or `generate`"),
}


@dataclass
class Candidate:
    """One way to fill a text's blanks.

    Args:
        text: the filled text.
        blank_lengths: how many tokens each blank had, shown or not.
        log_probability: of the filled text given its first token, in nats (see [`infill`]).
        fillings: the text in each blank.
    """

    text: str
    blank_lengths: tuple[int, ...]
    log_probability: float
    fillings: tuple[str, ...]


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

    **Unknown lengths.** Words often have several tokens: `<blank:1-6>` is for a word or three. Every combination of a
    text's lengths is a candidate. `generate` fills each one, and the candidate with the highest log p(filled text | its
    first token) is returned. The log-probability is a sum, not an average per token, so longer candidates pay for more
    tokens. It is the probability that a text *begins* with these tokens, so a blank at the very end nearly always gets
    its shortest length. `score_end=True` compares whole texts: it also scores an end-of-sentence token behind the text.
    Use it with models that saw ends in training (`pad_with_eos` of `DataCollatorForAnyOrderLM`); for others it adds
    noise. Special tokens in blanks, and all tokens behind an end of sentence in a blank, are neither shown nor scored.

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
    is_one = isinstance(text, str) or not isinstance(text, Sequence)
    infillings = fill_texts(
        model,
        tokenizer,
        [text] if is_one else text,
        return_candidates=return_candidates,
        candidate_order=candidate_order,
        score_end=score_end,
        max_candidates=max_candidates,
        batch_size=batch_size,
        **generate_kwargs,
    )
    results = infillings if return_candidates else [each.text for each in infillings]
    return results[0] if is_one else results


def fill_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    return_candidates: bool = False,
    candidate_order: str = "left_to_right",
    score_end: bool = False,
    max_candidates: int = 64,
    batch_size: int = 64,
    **generate_kwargs,
) -> list[Infilling]:
    """Fills the blanks of texts: [`infill`], which has the same arguments, for a batch.

    Returns:
        An [`Infilling`] for each text. Without `return_candidates` it has the best candidate alone, and where there was
        only one its `log_probability` is 0, because nothing was scored.

    Raises:
        TypeError, ValueError: as in [`infill`].
    """
    for each in texts:
        if not isinstance(each, str):
            raise TypeError(f"`text` must be a string or a sequence of strings, got {type(each).__name__}.")
    for name, (only, way_out) in RESERVED_ARGUMENTS.items():
        value = generate_kwargs.pop(name, only)
        if value is not only and value != only:
            raise ValueError(f"`{name}` must be {only} in `infill`: {way_out}. Got {cut_text(repr(value))}.")
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
        fill_canvases(model, tokenizer, to_fill[batch], **generate_kwargs, **entries)
    to_score = [canvas for own in (canvases if return_candidates else with_choice) for canvas in own]
    # A text of one token has log-probability 0.
    to_score = [canvas for canvas in to_score if len(canvas.join_ids()[0] + end) > 1]
    for start in range(0, len(to_score), batch_size):
        _score(model, to_score[start : start + batch_size], end, ranks)

    results = []
    for own in canvases:
        own.sort(key=lambda canvas: -canvas.log_probability)
        shown = own if return_candidates else own[:1]
        candidates = [_make_candidate(tokenizer, canvas) for canvas in shown]
        results.append(Infilling(candidates[0].text, candidates[0].log_probability, candidates))
    return results


def _make_candidate(tokenizer: PreTrainedTokenizerBase, canvas: TextCanvas) -> Candidate:
    fillings = tuple(canvas.decode_fillings(tokenizer))
    return Candidate(canvas.write_text(fillings), canvas.blank_lengths, canvas.log_probability, fillings)


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
    vocabulary, vocab_size = read_vocabulary(tokenizer), model.config.vocab_size
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
            ids = vocabulary.ids if key is None else vocabulary.find_spaced(*key) - vocabulary.special_ids
            token_sets[number, [index for index in ids if index < vocab_size]] = True
        inputs |= {"token_sets": token_sets, "column_sets": column_sets}
    return {name: value.to(input_device(model)) for name, value in inputs.items()}


def fill_canvases(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, canvases: list[TextCanvas], **generate_kwargs
) -> None:
    """Sets the `fillings` of a batch of canvases to the tokens that are shown. `generate_kwargs` go to `generate`."""
    inputs, special = make_generate_inputs(model, tokenizer, canvases), read_vocabulary(tokenizer).special_ids
    output = model.generate(**inputs, **generate_kwargs, return_dict_in_generate=True, num_return_sequences=1)
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


__all__ = [
    "BLANK",
    "Candidate",
    "Infilling",
    "encode_behind_blank",
    "fill_canvases",
    "fill_texts",
    "infill",
    "make_canvases",
    "make_generate_inputs",
    "read_blanks",
    "read_vocabulary",
    "with_bos",
    "write_blanks",
]
