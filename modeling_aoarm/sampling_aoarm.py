# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""From logits to tokens: the library's processors where order does not matter to them, and the random numbers."""

from collections.abc import Sequence

import torch
from transformers import generation as library
from transformers.generation import LogitsProcessorList

from .compat_aoarm import require


# Processors whose meaning does not depend on where tokens stand. Others read the rows before as the text to the left.
ORDER_FREE_PROCESSORS = (
    library.EpsilonLogitsWarper,
    library.EtaLogitsWarper,
    library.InfNanRemoveLogitsProcessor,
    library.LogitNormalization,
    library.MinPLogitsWarper,
    library.RepetitionPenaltyLogitsProcessor,
    library.SuppressTokensLogitsProcessor,
    library.TemperatureLogitsWarper,
    library.TopHLogitsWarper,
    library.TopKLogitsWarper,
    library.TopPLogitsWarper,
    library.TypicalLogitsWarper,
)


def check_order_free(processors: LogitsProcessorList, custom: LogitsProcessorList | None) -> None:
    """Raises a ValueError naming a processor that needs left-to-right order, unless the caller brought it himself."""
    own = [] if custom is None else custom
    for processor in processors:
        if not isinstance(processor, ORDER_FREE_PROCESSORS) and all(processor is not each for each in own):
            raise ValueError(
                f"{type(processor).__name__}, set by the generation config, cannot be combined with "
                "`generation_mask`: it may read the tokens so far as the text to the left. Got "
                f"{processor.__dict__}."
            )


NO_TOKEN = (
    "`generate` must be left at least one token with a finite logit for each blank: the model's logits are NaN, or "
    "logits processors, `temperature`, `token_sets` and `eos_token_id` leave no token."
)


class TokenSampler:
    """Turns logits into distributions over tokens, and uniform numbers into tokens.

    Args:
        processors: applied to the logits; they are given the rows so far in generation order.
        do_sample: whether tokens are drawn; the likeliest is taken otherwise.
        eos_token_ids: int64 `[ends]`, or `None` where no token ends a sentence.
        generator: `None` for the global random numbers, one generator for the batch, or one for each example.
        draws: how many random numbers each example of the whole batch takes in each pass.
    """

    def __init__(
        self,
        processors: LogitsProcessorList,
        do_sample: bool,
        eos_token_ids: torch.Tensor | None,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        draws: list[int],
    ):
        self.processors, self.do_sample, self.eos_token_ids = processors, do_sample, eos_token_ids
        self.generator, self.draws = generator, draws

    def uniforms(self, examples: torch.Tensor, active: list[int | None]) -> torch.Tensor:
        """One pass's uniform numbers in [0, 1), float64 `[examples, most draws]`; 0 where nothing is to be drawn.

        From one generator they are drawn for the whole batch, so that what an example gets does not depend on which
        others are done; examples that are done take none from generators of their own.

        Args:
            examples: int64 `[examples]`, numbers in the whole batch.
            active: the same numbers as the host knows them, `None` for examples that are done.
        """
        device = examples.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        most = max(self.draws)
        if not self.do_sample:
            return torch.zeros(len(examples), most, dtype=dtype, device=device)
        if self.generator is None or isinstance(self.generator, torch.Generator):
            source = device if self.generator is None else self.generator.device
            drawn = torch.rand(len(self.draws), most, generator=self.generator, dtype=dtype, device=source)
            return drawn.to(device, non_blocking=True)[examples]
        # All examples' numbers move to the device together.
        drawn = torch.zeros(len(active), most, dtype=dtype, device=self.generator[0].device)
        for row, example in enumerate(active):
            if example is not None:
                own, count = self.generator[example], self.draws[example]
                drawn[row, :count].uniform_(generator=own)
        return drawn.to(device, non_blocking=True)

    def forbid_end(self, logits: torch.Tensor, is_forbidden: torch.Tensor) -> torch.Tensor:
        """`logits` `[..., vocab]` without the tokens that end a sentence where `is_forbidden` `[...]`."""
        if self.eos_token_ids is None:
            return logits
        scores = logits.clone()
        ends = scores[..., self.eos_token_ids].masked_fill(is_forbidden[..., None], -torch.inf)
        scores[..., self.eos_token_ids] = ends
        return scores

    def process(self, scores: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """Processed scores.

        Args:
            scores: float32 `[examples, places, vocab]`.
            rows: int64 `[examples, places, rows]`, the tokens before each place; `None` if there are no processors.
        """
        if self.processors:
            scores = self.processors(rows.flatten(0, 1), scores.flatten(0, 1)).view(scores.shape)
        require(scores.amax(-1).isfinite().all(), NO_TOKEN, waits=scores.device.type == "cpu")
        return scores

    def draw(self, scores: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """Tokens int64 `[...]` from processed scores `[..., vocab]` and uniform numbers `[...]`."""
        return draw_from(scores.softmax(-1), uniforms) if self.do_sample else scores.argmax(-1)

    def draw_from(self, distribution: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """Tokens int64 `[...]` from what `distribution` returns, or from other weights `[..., vocab]`."""
        return draw_from(distribution, uniforms) if self.do_sample else distribution.argmax(-1)

    def distribution(self, scores: torch.Tensor) -> torch.Tensor:
        """The probabilities that `draw` draws from, `[..., vocab]`; greedy choice has a single one."""
        if self.do_sample:
            return scores.softmax(-1)
        return torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)


def draw_from(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Tokens drawn in proportion to non-negative `weights` `[..., vocab]` by inversion, in the uniforms' precision.

    Uniform numbers are multiples of half the precision's epsilon below 1, so no threshold is rounded up to the total,
    behind which there is no token.
    """
    cumulated = weights.to(uniforms.dtype).cumsum(-1)
    return torch.searchsorted(cumulated, uniforms[..., None] * cumulated[..., -1:], right=True)[..., 0]


def log_probs_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The log-probabilities (nats) of `tokens` `[...]` under `logits` `[..., vocab]`."""
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


__all__ = ["TokenSampler", "check_order_free", "draw_from", "log_probs_of"]
