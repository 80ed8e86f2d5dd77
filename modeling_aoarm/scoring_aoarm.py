# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Log-probabilities of filled canvases: exact in any order, and for masked models also estimates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.generation import GenerationConfig, LogitsProcessorList
from transformers.utils import ModelOutput

from .canvas_aoarm import (
    CanvasRows,
    RowSpan,
    check_canvas,
    check_count,
    check_generators,
    draw_keys,
    is_named,
    resolve_context_order,
    resolve_order,
    scatter_to_columns,
)
from .decoding_aoarm import ADAPTIVE_ORDERS, check_way, decoding_orders, default_context_order, way_of_decoding
from .decoding_loop_aoarm import CanvasFilling, TokenSampler, valid_ends
from .runner_aoarm import COLUMNS_PER_CALL


@dataclass
class AOARMScoreOutput(ModelOutput):
    """The output of `score`.

    Args:
        token_log_probs: float32 `[orders, batch, columns]`, nats: each blank's log-probability given the context and
            the blanks before it in its order; 0 in other columns.
        log_likelihood: float32 `[orders, batch]`, nats per example: their sum, log p(blanks | context) in that order.
        mean_log_likelihood: float32 `[batch]`, nats: the mean over the orders drawn. It estimates the expected
            log-probability over all orders, which is the training objective.
        log_mean_likelihood: float32 `[batch]`, nats: the log of the mean probability over the orders drawn. It
            estimates the likelihood under the mixture of all orders, from below if there are few.
        decoding_order: int64 `[orders, batch, blanks]`, the orders, -1 on the right.
        token_is_likeliest: bool `[orders, batch, columns]`, whether greedy decoding in that order, with the same tokens
            before it, would fill in each blank's token; False in other columns.
    """

    token_log_probs: torch.FloatTensor | None = None
    log_likelihood: torch.FloatTensor | None = None
    mean_log_likelihood: torch.FloatTensor | None = None
    log_mean_likelihood: torch.FloatTensor | None = None
    decoding_order: torch.LongTensor | None = None
    token_is_likeliest: torch.BoolTensor | None = None


class AOARMScoringMixin:
    """`score` for models whose rows come in generation order."""

    @torch.no_grad()
    def score(
        self,
        input_ids: torch.LongTensor,
        generation_mask: torch.Tensor | None = None,
        observed_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoding_order: str | torch.Tensor = "random",
        num_orders: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        context_order: str | torch.Tensor | None = None,
    ) -> AOARMScoreOutput:
        """Computes log p(blanks | rest) of filled canvases, exact in each order.

        It takes one forward pass for each order. An adaptive order takes a pass for each blank: the model chooses the
        next blank as in `generate`, from the tokens before it, and then gets the canvas's own token there. That is the
        log-probability that the text has under this way of decoding (DUEL, 2603.01367), and sums to one over all texts.

        Args:
            input_ids: int64 `[batch, columns]`, filled canvases in sentence order.
            generation_mask: bool `[batch, columns]`, True for the blanks, whose tokens are scored. Default: every
                column but an example's first.
            observed_mask: bool `[batch, columns]`, False for columns that are neither scored nor seen, which gives
                marginals. Positions stay as they are. Default: everything is observed.
            attention_mask: `[batch, columns]`, 0 for padding on either side. It defines the positions.
            decoding_order: `"random"`, `"left_to_right"`; `"confidence"`, `"entropy"` or `"margin"`; or int64 `[batch,
                blanks]` or `[orders, batch, blanks]`, blank columns, -1 on the right. The context comes before all
                blanks.
            num_orders: how many orders to draw; 1 where the order is not drawn.
            generator: random numbers for `"random"`: one generator, one for each example, or the global ones.
            context_order: the order of the context's rows, on which the result depends: `"left_to_right"`,
                `"suffix_first"` (see `generate`), or int64 `[batch, given]`, observed columns that are not blank, -1 on
                the right. Default: that of the model's generation config, else from left to right.

        Raises:
            ValueError: for malformed canvases, masks and orders, a `num_orders` below 1 or above 1 for an order that is
                not drawn, and orders that `causal` does not know.
        """
        masks = generation_mask, observed_mask, attention_mask
        canvas, blanks, real, context = self._check_canvas(input_ids, *masks, context_order)
        orders = self._list_orders(decoding_order, blanks, num_orders, generator)
        if is_named(decoding_order, *ADAPTIVE_ORDERS):
            return self._score_adaptively(canvas, real, context, orders[0], decoding_order)
        scored = [self._score_order(canvas, real, context, order) for order in orders]
        return _make_output(*map(torch.stack, zip(*scored, strict=True)), orders)

    def _check_canvas(
        self,
        input_ids: torch.LongTensor,
        generation_mask: torch.Tensor | None,
        observed_mask: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        context_order: str | torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Checks arguments of `score`.

        Returns:
            The tokens, int64 `[batch, columns]`; which columns are blank and which are not padding, bool of the same
            shape; and the context's columns in their order, int64 `[batch, given]`.
        """
        if generation_mask is None and isinstance(input_ids, torch.Tensor) and input_ids.ndim == 2:
            is_mask = isinstance(attention_mask, torch.Tensor) and attention_mask.shape == input_ids.shape
            columns = attention_mask.bool() if is_mask else torch.ones_like(input_ids, dtype=torch.bool)
            generation_mask = columns & (columns.long().cumsum(1) > 1)
        limits = self.config.vocab_size, self.config.max_position_embeddings
        real = check_canvas(input_ids, generation_mask, attention_mask, *limits, reads_blanks=True)
        given = real & ~generation_mask
        if observed_mask is not None:
            shape = list(input_ids.shape)
            if not isinstance(observed_mask, torch.Tensor) or observed_mask.dtype != torch.bool:
                got = getattr(observed_mask, "dtype", type(observed_mask).__name__)
                raise ValueError(f"`observed_mask` must be a bool tensor, got {got}.")
            if list(observed_mask.shape) != shape:
                got = list(observed_mask.shape)
                raise ValueError(f"`observed_mask` must have the shape of `input_ids`, {shape}; got {got}.")
            if (generation_mask & ~observed_mask).any():
                raise ValueError("`observed_mask` must be True in the blanks of `generation_mask`, got False in some.")
            given &= observed_mask
            if not given.any(1).all():
                raise ValueError(
                    "`observed_mask` must leave at least one given token in each example, got none in some."
                )
        if context_order is None:
            context_order = default_context_order(self.generation_config)
        context = resolve_context_order(context_order, given, generation_mask, real)
        return input_ids.long(), generation_mask, real, context

    @staticmethod
    def _list_orders(
        decoding_order: str | torch.Tensor,
        blanks: torch.Tensor,
        num_orders: int,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> torch.Tensor:
        """Checks or draws the orders of blanks, bool `[batch, columns]`. Returns int64 `[orders, batch, blanks]`."""
        check_generators(generator, len(blanks))
        is_drawn = is_named(decoding_order, "random")
        if check_count("num_orders", num_orders) > 1 and not is_drawn:
            order = decoding_order if isinstance(decoding_order, str) else "a tensor"
            raise ValueError(
                f"`num_orders` must be 1 for orders that are not drawn, got {num_orders} with decoding_order={order!r}."
            )
        if isinstance(decoding_order, torch.Tensor) and decoding_order.ndim == 3:
            if len(decoding_order) == 0:
                raise ValueError("`decoding_order` must have at least one order, got shape [0, batch, blanks].")
            return torch.stack([resolve_order("decoding_order", order, blanks) for order in decoding_order])
        arguments = "decoding_order", decoding_order, blanks, generator, decoding_orders()
        return torch.stack([resolve_order(*arguments) for _ in range(num_orders)])

    def _score_order(
        self, canvas: torch.Tensor, real: torch.Tensor, context: torch.Tensor, order: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores each blank in one order. Returns `token_log_probs` and `token_is_likeliest`, `[batch, columns]`."""
        blanks = order.shape[1]
        if blanks == 0:
            return torch.zeros_like(canvas, dtype=torch.float32), torch.zeros_like(canvas, dtype=torch.bool)
        rows = CanvasRows.lay_out(canvas, real, context, order)
        rows.check_order(self.config.attention_variant)
        # The blanks of all examples end together. The last row's token predicts nothing.
        width = context.shape[1] + blanks - 1
        num_context = (context >= 0).sum(1)
        span = RowSpan(torch.zeros_like(num_context), rows.totals, num_context + blanks - 1, width, longest=width)
        tokens = canvas.gather(1, order.clamp(min=0))
        scored = self.runner_class(self).ask(rows, span, asking=blanks, scored_ids=tokens)
        return tuple(scatter_to_columns(each, order, torch.zeros_like(canvas, dtype=each.dtype)) for each in scored)

    def _score_adaptively(
        self, canvas: torch.Tensor, real: torch.Tensor, context: torch.Tensor, order: torch.Tensor, rule: str
    ) -> AOARMScoreOutput:
        """Scores the blanks, int64 `[batch, blanks]`, in the order in which the model would fill them by a rule."""
        rows, num_context = CanvasRows.lay_out(canvas, real, context, order), (context >= 0).sum(1)
        way = way_of_decoding(rule, None, None, (order >= 0).sum(1).tolist())
        check_way(way, rows, self.config.attention_variant, decoding_order=rule)
        runner, cached = self.runner_class.for_generation(self, GenerationConfig(), rows, way, None, 1)
        runner.sync_processes(None)
        # As `generate` does, the order leaves ends of sentences out where they may not stand.
        ends = self.generation_config.eos_token_id
        ends = torch.tensor(ends if isinstance(ends, list) else [-1 if ends is None else ends], device=canvas.device)
        ends = valid_ends(ends, self.config.vocab_size)
        sampler = TokenSampler(LogitsProcessorList(), False, ends, None, way.draws())
        filling = CanvasFilling(
            runner, rows, num_context, way, sampler, background=canvas, cached=cached, holds_answers=True
        )
        filling.run()
        scored = (
            filling.all_rows.to_columns(values, torch.zeros_like(canvas, dtype=values.dtype))[None]
            for values in (filling.results["logprobs"], filling.results["is_likeliest"])
        )
        return _make_output(*scored, filling.realised_order()[None])


class MaskedScoringMixin(AOARMScoringMixin):
    """`score` for models that read canvases with mask tokens."""

    @torch.no_grad()
    def score(
        self,
        input_ids: torch.LongTensor,
        generation_mask: torch.Tensor | None = None,
        observed_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoding_order: str | torch.Tensor = "random",
        num_orders: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        context_order: str | torch.Tensor | None = None,
        method: str = "exact",
        num_samples: int | None = None,
    ) -> AOARMScoreOutput:
        """Computes log p(blanks | rest) of filled canvases in each order, or estimates its average over all orders.

        The other arguments are those of [`AOARMScoringMixin.score`]. The order of the context changes nothing. A blank
        that holds the mask token scores minus infinity.

        Args:
            method: `"exact"` makes one forward pass for each blank and order (several in one call of the model, if the
                order does not depend on the tokens). Each
                sample of `"elbo"` masks k of an example's N blanks in one pass, k uniform on 1 ... N and the blanks at
                random. N / k times the sum of their log-probabilities is an unbiased estimate of the log-likelihood
                averaged over all orders (ARDM, arXiv:2110.02037).
            num_samples: for `"elbo"`: how many samples of each example (1 when `None`). Their k are spread evenly.

        Returns:
            [`AOARMScoreOutput`]. With `"elbo"`, `log_likelihood` is `[samples, batch]`, one estimate for each sample;
            `mean_log_likelihood` is their mean; `token_log_probs` sum to them, so they are weighted by N / k;
            `log_mean_likelihood` and `decoding_order` are `None`.

        Raises:
            ValueError: as in [`AOARMScoringMixin.score`]; for another `method`, and for arguments of the other one.
        """
        arguments = input_ids, generation_mask, observed_mask, attention_mask
        if method == "exact":
            if num_samples is not None:
                raise ValueError(f"`num_samples` belongs to method='elbo', got {num_samples} with method='exact'.")
            return super().score(*arguments, decoding_order, num_orders, generator, context_order)
        if method != "elbo":
            raise ValueError(f"`method` must be 'exact' or 'elbo', got {method!r}.")
        if num_orders != 1 or not is_named(decoding_order, "random"):
            order = decoding_order if isinstance(decoding_order, str) else "a tensor"
            raise ValueError(
                "method='elbo' averages over all orders, so it takes `num_samples` and no orders; got "
                f"decoding_order={order!r} and num_orders={num_orders}."
            )
        samples = check_count("num_samples", 1 if num_samples is None else num_samples)
        canvas, blanks, real, context = self._check_canvas(*arguments, context_order)
        orders = self._list_orders("random", blanks, samples, generator)
        counts = _draw_counts(blanks.sum(1), samples, generator)
        per_call = max(1, COLUMNS_PER_CALL // canvas.numel())
        scored = [
            self._score_samples(canvas, real, context, *part)
            for part in zip(orders.split(per_call), counts.split(per_call), strict=True)
        ]
        return _make_output(*map(torch.cat, zip(*scored, strict=True)))

    def _score_samples(
        self,
        canvas: torch.Tensor,
        real: torch.Tensor,
        context: torch.Tensor,
        orders: torch.Tensor,
        counts: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks and scores the last `counts`, int64 `[samples, batch]`, blanks of each order, all in one pass.

        Returns weighted `token_log_probs` and `token_is_likeliest`, `[samples, batch, columns]` each.
        """
        shape, most = counts.shape, int(counts.max())
        canvas, real, context = (each.repeat(shape[0], 1) for each in (canvas, real, context))
        if most == 0:
            empty = torch.zeros_like(canvas).unflatten(0, shape)
            return empty.float(), empty.bool()
        rows, counts = CanvasRows.lay_out(canvas, real, context, orders.flatten(0, 1)), counts.flatten()
        known, targets = rows.totals - counts, torch.arange(most, device=canvas.device)
        # Rows behind an example's last blank are padding, without a column.
        masked = (known[:, None] + targets).clamp(max=rows.columns.shape[1] - 1)
        tokens, columns = rows.tokens.gather(1, masked), rows.columns.gather(1, masked)
        log_probs, is_likeliest = self.runner_class(self).predict(rows, known[:, None], most, tokens[:, None])
        weights = (rows.totals - (context >= 0).sum(1)).float() / counts.clamp(min=1)
        scored = log_probs[:, 0] * weights[:, None], is_likeliest[:, 0]
        return tuple(
            scatter_to_columns(each, columns, torch.zeros_like(canvas, dtype=each.dtype)).unflatten(0, shape)
            for each in scored
        )


def _make_output(
    token_log_probs: torch.Tensor, token_is_likeliest: torch.Tensor, orders: torch.Tensor | None = None
) -> AOARMScoreOutput:
    """Sums up the scores of blanks, `[orders or samples, batch, columns]` each."""
    log_likelihood = token_log_probs.sum(-1)
    return AOARMScoreOutput(
        token_log_probs=token_log_probs,
        log_likelihood=log_likelihood,
        mean_log_likelihood=log_likelihood.mean(0),
        log_mean_likelihood=None if orders is None else log_likelihood.logsumexp(0) - math.log(len(orders)),
        decoding_order=orders,
        token_is_likeliest=token_is_likeliest,
    )


def _draw_counts(
    blanks: torch.Tensor, samples: int, generator: torch.Generator | Sequence[torch.Generator] | None
) -> torch.Tensor:
    """Draws how many blanks each sample masks: uniform on 1 ... blanks, and spread evenly over an example's samples.

    Maps numbers of blanks, int64 `[batch]`, to int64 `[samples, batch]`; 0 where there are no blanks.
    """
    start = draw_keys(torch.ones_like(blanks, dtype=torch.bool)[:, None], generator)[:, 0]
    steps = torch.arange(samples, dtype=torch.float32, device=blanks.device) / samples
    shares = (start + steps[:, None]) % 1
    return torch.minimum((shares * blanks).long() + 1, blanks)


__all__ = ["AOARMScoreOutput", "AOARMScoringMixin", "MaskedScoringMixin"]
