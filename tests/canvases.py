# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Canvases for tests of generation, and what every filling has to obey."""

import torch
from scipy.stats import chisquare
from variants import ANY_ORDER, tiny_model


LENGTHS = (9, 6, 8, 7)
# Different numbers of blanks, one canvas without any, blanks at both ends, and one with all but the last column blank.
BLANKS = ((2, 3, 4, 8), (), (0, 7, 1), (0, 1, 2, 3, 4, 5))

# Ways of decoding, and whether each token sees all that were filled before it.
ONE_BY_ONE = [
    *({"decoding_order": order} for order in ("left_to_right", "random", "confidence", "entropy", "margin")),
    *({"decoding_order": order, "draft_length": n} for order in ("left_to_right", "random") for n in (1, 2, 9, "auto")),
]
IN_GROUPS = [
    {"decoding_order": order, "tokens_per_step": size}
    for order in ("random", "margin")
    for size in (2, 3, 100, "linear(3)", "cosine(3)")
]
# How many blanks a pass fills is up to the model: of these small ones it fills one, some or all.
UP_TO_THE_MODEL = [
    {"decoding_order": "confidence", "tokens_per_step": "threshold(0.1)"},
    {"decoding_order": "entropy", "tokens_per_step": "entropy(3.5)"},
    {"decoding_order": "margin", "tokens_per_step": "threshold(0.09)"},
    {"decoding_order": "margin", "tokens_per_step": "entropy(3.5)"},
]
IN_GROUPS += UP_TO_THE_MODEL
WAYS = [*ONE_BY_ONE, *IN_GROUPS]
CACHES = [{}, {"cache_implementation": "static"}, {"use_cache": False}]


FILLING_VARIANTS = [*ANY_ORDER, "bidirectional"]


def model_of_three_symbols(variant):
    return tiny_model(
        variant, **({"vocab_size": 4, "mask_token_id": 3} if variant == "bidirectional" else {"vocab_size": 3})
    )


def caches_for(way, caches=CACHES):
    """Static caches take no number of drafts that changes."""
    return [each for each in caches if "cache_implementation" not in each or way.get("draft_length") != "auto"]


def filling_cases(ways=WAYS, caches=CACHES):
    """Variants, ways and kinds of cache for `parametrize`. `bidirectional` has neither drafts nor a cache."""
    pairs = [(way, cache) for way in ways for cache in caches_for(way, caches)]
    cases = [(variant, *pair) for variant in ANY_ORDER for pair in pairs]
    masked = [("bidirectional", way, {}) for way in ways if "draft_length" not in way]
    return ("variant", "way", "cache"), [*cases, *masked]


def ragged_canvases(side="left", seed=0):
    """A batch of canvases padded on one side: input ids, generation mask and attention mask, `[4, 9]` each."""
    generator = torch.Generator().manual_seed(seed)
    # Without the mask token of `bidirectional`.
    canvas = torch.randint(3, 22, (4, 9), generator=generator)
    generation_mask = torch.zeros(4, 9, dtype=torch.bool)
    attention_mask = torch.zeros(4, 9, dtype=torch.int64)
    for row, (length, blanks) in enumerate(zip(LENGTHS, BLANKS, strict=True)):
        start = 9 - length if side == "left" else 0
        attention_mask[row, start : start + length] = 1
        generation_mask[row, [start + column for column in blanks]] = True
    return {"input_ids": canvas, "generation_mask": generation_mask, "attention_mask": attention_mask}


def canvases_in_step():
    """Canvases `[4, 8]` with equally many given tokens and different numbers of blanks."""
    canvas = torch.randint(0, 22, (4, 8), generator=torch.Generator().manual_seed(1))
    blanks = torch.zeros(4, 8, dtype=torch.bool)
    for row, columns in enumerate(([1, 2, 4, 6], [1, 3, 5, 7], [0, 2, 4], [3])):
        blanks[row, columns] = True
    attention_mask = torch.ones(4, 8, dtype=torch.int64)
    attention_mask[2, 7], attention_mask[3, 5:] = 0, 0
    return {"input_ids": canvas, "generation_mask": blanks, "attention_mask": attention_mask}


def example_of(canvases, row):
    """One canvas by itself, without its padding."""
    real = canvases["attention_mask"][row].bool()
    return {name: value[row : row + 1, real] for name, value in canvases.items()}


def conditional(model, tokens, positions, target):
    """The log-probabilities `[vocab]` of what stands at `target` after rows `[rows]`, from an uncached pass."""
    targets = torch.cat([positions[1:], torch.tensor([target])])
    with torch.no_grad():
        logits = model(
            tokens[None], position_ids=positions[None], target_position_ids=targets[None], use_cache=False
        ).logits
    return logits[0, -1].log_softmax(-1)


def conditional_of_column(model, tokens, real, known, column):
    """[`conditional`] by columns: what stands in `column` of a canvas `[columns]`, after the `known` ones."""
    if model.config.attention_variant == "bidirectional":
        rows = real.nonzero().flatten()
        read = tokens[rows].masked_fill(~torch.isin(rows, known), model.config.mask_token_id)
        with torch.no_grad():
            return model(read[None]).logits[0, int((rows < column).sum())].log_softmax(-1)
    positions = real.long().cumsum(0) - 1
    return conditional(model, tokens[known], positions[known], positions[column])


def replay(model, canvases, output, in_groups=False):
    """Log-probabilities of the realised order from uncached passes, one token at a time: `[batch, blanks]`.

    With `in_groups` a token sees those that were filled in earlier passes, and not those of its own pass.
    """
    logprobs = torch.zeros_like(output.logprobs)
    for row, order in enumerate(output.decoding_order):
        real = canvases["attention_mask"][row].bool()
        given = (real & ~canvases["generation_mask"][row]).nonzero().flatten()
        blanks, steps = order[order >= 0], output.decoding_steps[row]
        for index, column in enumerate(blanks):
            before = blanks[:index]
            if in_groups:
                before = before[steps[:index] < steps[index]]
            answer = conditional_of_column(model, output.sequences[row], real, torch.cat([given, before]), column)
            logprobs[row, index] = answer[output.sequences[row, column]]
    return logprobs


def check_filling(canvases, output):
    """Given tokens are what they were, and the realised order names each blank once."""
    given = ~canvases["generation_mask"]
    assert torch.equal(output.sequences[given], canvases["input_ids"][given])
    for row, order in enumerate(output.decoding_order):
        blanks = canvases["generation_mask"][row].nonzero().flatten()
        assert sorted(order[order >= 0].tolist()) == blanks.tolist()
        assert (order[len(blanks) :] == -1).all()
        steps = output.decoding_steps[row, : len(blanks)]
        assert (steps.diff() >= 0).all() and (output.decoding_steps[row, len(blanks) :] == -1).all()
        assert (steps >= 0).all() and (steps < output.forward_passes).all()
        passes = int(steps[-1]) + 1 if len(blanks) else 1
        torch.testing.assert_close(output.tokens_per_forward[row], torch.tensor(len(blanks) / passes))


def enumerated(model, canvas, order, temperature=1.0, top_p=1.0, end=None):
    """The probability of every filled canvas, by asking for one blank at a time in every branch: a dictionary.

    Probabilities are those of a temperature, and of the nucleus of `top_p` of them. With `end`, that token is not
    written to the left of another one, and closes the blanks to its right.
    """
    given = [column for column in range(len(canvas)) if column not in order]
    results, everywhere = {}, torch.ones_like(canvas, dtype=torch.bool)

    def branch(canvas, rows, left, probability):
        if not left:
            results[tuple(canvas.tolist())] = results.get(tuple(canvas.tolist()), 0.0) + probability
            return
        column, *later = left
        log_probs = conditional_of_column(model, canvas, everywhere, torch.tensor(rows), column).double() / temperature
        if end is not None and column < max(rows):
            log_probs[end] = -torch.inf
        likely, tokens = log_probs.softmax(-1).sort(descending=True)
        # A token is in the nucleus when those that are likelier have less than its share.
        log_probs[tokens[likely.cumsum(0) - likely >= top_p]] = -torch.inf
        for token, share in enumerate(log_probs.softmax(-1).tolist()):
            filled = canvas.clone()
            filled[column] = token
            if token == end:
                filled[[other for other in later if other > column]] = 0
                branch(filled, [*rows, column], [other for other in later if other < column], probability * share)
            elif share > 0:
                branch(filled, [*rows, column], later, probability * share)

    branch(canvas, given, list(order), 1.0)
    return results


def fits(samples, expected):
    """The p-value of int64 samples `[samples, columns]` under a dictionary of probabilities. Rare ones are pooled."""
    counts = dict.fromkeys(expected, 0)
    for canvas, count in zip(*(each.tolist() for each in samples.unique(dim=0, return_counts=True)), strict=True):
        if tuple(canvas) not in counts:
            return 0.0
        counts[tuple(canvas)] = count
    strings = sorted(expected, key=expected.get)
    observed, wanted = [0], [0.0]
    for string in strings:
        if wanted[-1] >= 10:
            observed.append(0)
            wanted.append(0.0)
        observed[-1] += counts[string]
        wanted[-1] += expected[string] * len(samples)
    return chisquare(observed, torch.tensor(wanted, dtype=torch.float64) * sum(observed) / sum(wanted)).pvalue
