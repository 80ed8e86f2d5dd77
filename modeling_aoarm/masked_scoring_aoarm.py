# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""`score` for masked models: exact in an order by one pass for each blank, or the average over orders by estimates."""

from collections.abc import Sequence

import torch

from .canvas import CanvasRows, check_count, check_generators, is_named
from .masked_reading_aoarm import COLUMNS_PER_PASS, MaskedReader
from .scoring_aoarm import AOARMScoreOutput, AOARMScoringMixin


class MaskedScoringMixin(AOARMScoringMixin):
    """`score` for models that read canvases with mask tokens."""

    def _scoring_reader(self) -> MaskedReader:
        return MaskedReader(self)

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
        """log p(blanks | rest) of filled canvases: exact in each order, or an estimate of its average over all orders.

        The arguments that are not named here are those of [`AOARMScoringMixin.score`]. The order of the context changes
        nothing. A blank that holds the mask token scores minus infinity.

        Args:
            method: `"exact"`, one forward pass for each blank and order (several in one call of the model), or
                `"elbo"`. A sample of the latter masks k of an example's N blanks in one pass, k uniform on 1 ... N and
                the blanks at random; N / k times the sum of their log-probabilities is an unbiased estimate of the
                log-likelihood averaged over all orders (ARDM, 2110.02037).
            num_samples: for `"elbo"`: how many samples of each example (1 when `None`). Their k are spread evenly.

        Returns:
            [`AOARMScoreOutput`]. Of `"elbo"`, `log_likelihood` is `[samples, batch]`, one estimate for each sample, and
            `mean_log_likelihood` `[batch]` their mean; `token_log_probs` sum to them, so they are weighted by N / k;
            `log_mean_likelihood` and `decoding_order` are `None`.

        Raises:
            ValueError: as in [`AOARMScoringMixin.score`]; for another `method`, and for arguments of the other one.
        """
        if method == "exact":
            if num_samples is not None:
                raise ValueError(f"`num_samples` belongs to method='elbo', got {num_samples} with method='exact'.")
            return super().score(
                input_ids,
                generation_mask,
                observed_mask,
                attention_mask,
                decoding_order,
                num_orders,
                generator,
                context_order,
            )
        if method != "elbo":
            raise ValueError(f"`method` must be 'exact' or 'elbo', got {method!r}.")
        if num_orders != 1 or not is_named(decoding_order, "random"):
            order = decoding_order if isinstance(decoding_order, str) else "a tensor"
            raise ValueError(
                "method='elbo' averages over all orders, so it takes `num_samples` and no orders; got "
                f"decoding_order={order!r} and num_orders={num_orders}."
            )
        samples = check_count("num_samples", 1 if num_samples is None else num_samples)
        canvas, generation_mask, real, given = self._scored_canvas(
            input_ids, generation_mask, observed_mask, attention_mask
        )
        check_generators(generator, len(canvas))
        context = self._context_to_score(context_order, given, generation_mask, real)
        orders = self._orders("random", generation_mask, samples, generator)
        masked = stratified_counts(generation_mask.sum(1), samples, generator)
        per_call = max(1, COLUMNS_PER_PASS // canvas.numel())
        scored = [
            self._score_masked(canvas, real, context, *part)
            for part in zip(orders.split(per_call), masked.split(per_call), strict=True)
        ]
        token_log_probs, token_is_likeliest = map(torch.cat, zip(*scored, strict=True))
        log_likelihood = token_log_probs.sum(-1)
        return AOARMScoreOutput(
            token_log_probs=token_log_probs,
            log_likelihood=log_likelihood,
            mean_log_likelihood=log_likelihood.mean(0),
            token_is_likeliest=token_is_likeliest,
        )

    def _score_masked(
        self,
        canvas: torch.Tensor,
        real: torch.Tensor,
        context: torch.Tensor,
        orders: torch.Tensor,
        masked: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted log-probabilities of the last `masked` `[samples, batch]` blanks of each order, all in one pass.

        Returns:
            float32 `[samples, batch, columns]`, and whether each masked token is the likeliest, bool of the same shape.
        """
        samples, batch, blanks = orders.shape
        canvas, real, context = (each.repeat(samples, 1) for each in (canvas, real, context))
        rows = CanvasRows.lay_out(real, context, orders.flatten(0, 1))
        total, masked = (rows.columns >= 0).sum(1), masked.flatten()
        targets = torch.arange(int(masked.max()), device=canvas.device)
        if len(targets) == 0:
            empty = torch.zeros_like(canvas).view(samples, batch, -1)
            return empty.float(), empty.bool()
        numbers = ((total - masked)[:, None] + targets).clamp(max=rows.columns.shape[1] - 1)
        columns = rows.columns.gather(1, numbers).clamp(min=0)
        is_masked = targets < masked[:, None]
        tokens = canvas.gather(1, columns)
        weights = (total - rows.given).float() / masked.clamp(min=1)
        scored = MaskedReader(self).look(canvas, rows, (total - masked)[:, None], len(targets), tokens[:, None])
        log_probs, is_likeliest = (each[:, 0] for each in scored)
        log_probs, is_likeliest = (
            torch.zeros_like(canvas, dtype=each.dtype).scatter_add(1, columns, each.masked_fill(~is_masked, 0))
            for each in (log_probs * weights[:, None], is_likeliest.long())
        )
        return log_probs.view(samples, batch, -1), is_likeliest.bool().view(samples, batch, -1)


def stratified_counts(
    blanks: torch.Tensor, samples: int, generator: torch.Generator | Sequence[torch.Generator] | None
) -> torch.Tensor:
    """How many blanks each sample masks: uniform on 1 ... blanks, and spread evenly over the samples.

    Args:
        blanks: int64 `[batch]`.
        samples: how many samples.
        generator: random numbers: the global ones, one generator, or one for each example.

    Returns:
        int64 `[samples, batch]`; 0 where there are no blanks.
    """
    if generator is None or isinstance(generator, torch.Generator):
        device = blanks.device if generator is None else generator.device
        start = torch.rand(len(blanks), generator=generator, dtype=torch.float32, device=device)
    else:
        drawn = (torch.rand(1, generator=each, dtype=torch.float32, device=each.device) for each in generator)
        start = torch.cat([each.cpu() for each in drawn])
    steps = torch.arange(samples, dtype=torch.float32, device=blanks.device) / samples
    shares = (start.to(blanks.device) + steps[:, None]) % 1
    return torch.minimum((shares * blanks).long() + 1, blanks)


__all__ = ["MaskedScoringMixin", "stratified_counts"]
