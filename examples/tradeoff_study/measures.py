# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Measures of a trained cell: likelihoods by row and, if the source is known, divergences from the exact ones."""

import torch
from transformers import PreTrainedModel

from .markov import MarkovMixture
from .predictions import draw_orders, predict, token_nll
from .recipe import Cell


# Seed of held-out sentences and their orders, which are the same for all models and seeds.
HELD_OUT_SEED = 2**40
ROWS_PER_PASS = 16384


class HeldOut:
    """Held-out sentences in orders, the same for all models, and exact conditionals if the source has them.

    Args:
        cell: says how many sentences there are, their length, and their orders.
        tokens: int64 `[examples, length]`.
        exact: the source, if its conditionals are known.
    """

    def __init__(self, cell: Cell, tokens: torch.Tensor, exact: MarkovMixture | None = None):
        self.cell, self.tokens = cell, tokens
        self.order = draw_orders(cell.order, len(tokens), cell.length, HELD_OUT_SEED, device=tokens.device)
        # [examples, length, symbols]
        self.exact = None if exact is None else exact.conditionals(tokens, self.order)

    def measured_rows(self) -> torch.Tensor:
        """The rows measured in models that read prefixes, int64 `[examples, prefixes]`, spread evenly."""
        examples, prefixes, length = len(self.tokens), min(self.cell.eval_prefixes, self.cell.length), self.cell.length
        generator = torch.Generator().manual_seed(HELD_OUT_SEED)
        offset = torch.rand(examples, prefixes, generator=generator)
        rows = ((torch.arange(prefixes) + offset) * length / prefixes).long().clamp(max=length - 1)
        return rows.to(self.tokens.device)

    @torch.no_grad()
    def measure(self, model: PreTrainedModel) -> dict:
        """Measures likelihoods of the sentences in their orders.

        Every row of an order is measured. In models that read prefixes, `eval_prefixes` rows of each order are, one in
        each of as many equal parts, which estimates the same means without bias.

        Returns:
            `nll`, nats per symbol; `standard_error` over sentences; `nll_by_row` (a mean for each row, or part, in
            nats); `rows`, the mean number of observed symbols of each; `example_nll` of each sentence. With exact
            conditionals also `exact_nll`, the optimum for the measured rows, and `excess`, `excess_standard_error`,
            `excess_by_row`, `example_excess`: the Kullback-Leibler divergence of the model's conditionals from the
            exact ones, nats per symbol. Its mean is that of the differences of likelihoods, with less noise.
        """
        model.eval()
        if self.cell.reads_prefixes:
            rows = self.measured_rows()
            # One pass reads one prefix of a sentence.
            examples = torch.arange(len(rows), device=rows.device).repeat_interleave(rows.shape[1])
            passes = list(zip(self._parts(examples), self._parts(rows.flatten()[:, None]), strict=True))
        else:
            rows = torch.arange(self.cell.length, device=self.tokens.device).expand_as(self.tokens)
            passes = [(part, None) for part in self._parts(torch.arange(len(rows), device=rows.device))]
        found = [self._measure_pass(model, examples, observed) for examples, observed in passes]
        values = {name: torch.cat([each[name] for each in found]).view(rows.shape) for name in found[0]}
        result = {"rows": rows.double().mean(0).tolist()} | _summary("nll", values["nll"])
        if self.exact is not None:
            result |= {"exact_nll": float(values["optimum"].mean())} | _summary("excess", values["excess"])
        return result

    def _parts(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return values.split(max(1, ROWS_PER_PASS // self.cell.length))

    def _measure_pass(
        self, model: PreTrainedModel, examples: torch.Tensor, observed: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Nats, excess nats and the optimum's nats of each example's rows, or of row `observed`, as float64."""
        tokens, columns = self.tokens[examples], self.order[examples]
        logits = predict(model, tokens, columns, None if observed is None else observed[:, 0])
        exact = None if self.exact is None else self.exact[examples]
        if observed is not None:
            logits, columns = logits.take_along_dim(observed[..., None], dim=1), columns.gather(1, observed)
            exact = None if exact is None else exact.take_along_dim(observed[..., None], dim=1)
        found = {"nll": token_nll(logits, tokens, columns).double()}
        if exact is not None:
            log_probs = logits.double().log_softmax(-1)[..., : exact.shape[-1]]
            found["excess"] = (exact * (exact.log() - log_probs)).sum(-1)
            found["optimum"] = -exact.gather(-1, tokens.gather(1, columns)[..., None])[..., 0].log()
        return found


def _summary(name: str, values: torch.Tensor) -> dict:
    """Means of `[examples, rows]` over all, by row and by example."""
    by_example = values.mean(1)
    error = "standard_error" if name == "nll" else f"{name}_standard_error"
    return {
        name: float(by_example.mean()),
        error: float(by_example.std(correction=1) / len(by_example) ** 0.5) if len(by_example) > 1 else None,
        f"{name}_by_row": [round(value, 6) for value in values.mean(0).tolist()],
        f"example_{name}": [round(value, 6) for value in by_example.tolist()],
    }
