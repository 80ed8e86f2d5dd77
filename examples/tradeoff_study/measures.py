# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""What is measured of a trained cell: likelihoods by row and, where the source is known, what they lack to be exact."""

import torch
from transformers import PreTrainedModel

from .markov import MarkovMixture
from .predictions import draw_orders, predict, token_nll
from .recipe import Cell


# Of held-out sentences and their orders; the same for all models and seeds.
HELD_OUT_SEED = 2**40
ROWS_PER_PASS = 16384


class HeldOut:
    """Held-out sentences in orders, the same for all models, and exact conditionals where the source has them.

    Args:
        cell: says how many, how long, and in which order.
        tokens: int64 `[examples, length]`.
        exact: the source, if its conditionals are known.
    """

    def __init__(self, cell: Cell, tokens: torch.Tensor, exact: MarkovMixture | None = None):
        self.cell, self.tokens = cell, tokens
        generator = torch.Generator(tokens.device).manual_seed(HELD_OUT_SEED)
        self.order = draw_orders(cell.order, len(tokens), cell.length, generator)
        # [examples, length, symbols]
        self.exact = None if exact is None else exact.conditionals(tokens, self.order)

    def asked_rows(self) -> torch.Tensor:
        """Rows that models which read prefixes are asked about, int64 `[examples, prefixes]`, spread evenly."""
        examples, prefixes, length = len(self.tokens), min(self.cell.eval_prefixes, self.cell.length), self.cell.length
        generator = torch.Generator().manual_seed(HELD_OUT_SEED)
        offset = torch.rand(examples, prefixes, generator=generator)
        rows = ((torch.arange(prefixes) + offset) * length / prefixes).long().clamp(max=length - 1)
        return rows.to(self.tokens.device)

    @torch.no_grad()
    def measure(self, model: PreTrainedModel) -> dict:
        """Likelihoods of the sentences in their orders.

        Every row of an order is asked about; of models that read prefixes `eval_prefixes` rows of each order, one in
        each of so many equal parts, which estimates the same means without bias.

        Returns:
            `nll`, nats per symbol; `standard_error` over sentences; `nll_by_row` (a mean for each row, or part, in
            nats); `rows`, the mean number of observed symbols of each; `example_nll` of each sentence. With exact
            conditionals also `exact_nll`, the optimum for the rows asked about, and `excess`, `excess_standard_error`,
            `excess_by_row`, `example_excess`: the Kullback-Leibler divergence of the model's conditionals from the
            exact ones, nats per symbol, whose mean is that of the differences of likelihoods and whose noise is less.
        """
        model.eval()
        if self.cell.reads_prefixes:
            rows = self.asked_rows()
            nll, excess, exact = self._by_prefix(model, rows)
        else:
            rows = torch.arange(self.cell.length, device=self.tokens.device).expand_as(self.tokens)
            nll, excess, exact = self._by_order(model)
        found = {"rows": rows.double().mean(0).tolist()} | _summary("nll", nll)
        if excess is not None:
            found |= {"exact_nll": float(exact.mean())} | _summary("excess", excess)
        return found

    def _by_order(self, model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        found = []
        for part in self._parts(len(self.tokens)):
            tokens, order = self.tokens[part], self.order[part]
            exact = None if self.exact is None else self.exact[part]
            found.append(self._compare(predict(model, tokens, order), tokens, order, exact))
        return _joined(found)

    def _by_prefix(
        self, model: PreTrainedModel, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        examples, prefixes = rows.shape
        copies = torch.arange(examples, device=rows.device).repeat_interleave(prefixes)
        observed, found = rows.flatten(), []
        for part in self._parts(len(copies)):
            which, asked = copies[part], observed[part, None]
            tokens, order = self.tokens[which], self.order[which]
            logits = predict(model, tokens, order, observed[part]).take_along_dim(asked[..., None], dim=1)
            exact = None if self.exact is None else self.exact[which].take_along_dim(asked[..., None], dim=1)
            found.append(self._compare(logits, tokens, order.gather(1, asked), exact))
        return tuple(None if each is None else each.view(examples, prefixes) for each in _joined(found))

    def _parts(self, count: int) -> list[slice]:
        size = max(1, ROWS_PER_PASS // self.cell.length)
        return [slice(start, start + size) for start in range(0, count, size)]

    @staticmethod
    def _compare(
        logits: torch.Tensor, tokens: torch.Tensor, columns: torch.Tensor, exact: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Nats, excess nats and the optimum's nats of the symbols in `columns`, float64 `[batch, columns]`."""
        nll = token_nll(logits, tokens, columns).double()
        if exact is None:
            return nll, None, None
        log_probs = logits.double().log_softmax(-1)[..., : exact.shape[-1]]
        excess = (exact * (exact.log() - log_probs)).sum(-1)
        optimum = -exact.gather(-1, tokens.gather(1, columns)[..., None])[..., 0].log()
        return nll, excess, optimum


def _joined(parts: list[tuple[torch.Tensor | None, ...]]) -> tuple[torch.Tensor | None, ...]:
    return tuple(None if each[0] is None else torch.cat(each) for each in zip(*parts, strict=True))


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
