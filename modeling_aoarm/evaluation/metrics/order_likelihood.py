# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""How likely texts are to an any-order model, in orders drawn from one distribution."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_aoarm.evaluation.likelihoods import exact_order_nll
from modeling_aoarm.evaluation.metrics import text_metric


class OrderLikelihood(text_metric.TextMetric):
    """[`~modeling_aoarm.evaluation.likelihoods.exact_order_nll`] of whole texts: nats per token, over several orders.

    `compute` returns `order_nll` with its `order_nll_standard_error` over the orders (None for one draw), and
    `example_nlls`: nats of each text, the mean over the orders.

    Args:
        model: a model with `score`.
        tokenizer: its tokenizer. Texts are encoded without special tokens and get its BOS in front.
        order: as in [`~modeling_aoarm.data.orders.sample_orders`].
        draws: how many orders each text is scored in; 1 for orders that are not random.
        seed: of the orders.
        batch_size: texts in a call.
        **kwargs: those of `evaluate.Metric`.

    Raises:
        ValueError: from `compute`, as in [`~modeling_aoarm.evaluation.likelihoods.exact_order_nll`].
    """

    def __init__(
        self,
        *args,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        order: str = "uniform",
        draws: int = 4,
        seed: int = 0,
        batch_size: int = 32,
        **kwargs,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.options = {"order": order, "draws": draws, "seed": seed, "batch_size": batch_size}
        super().__init__(*args, **kwargs)

    def _compute(self, predictions: list[str]) -> dict[str, float | None | list[float]]:
        encoded = self.tokenizer(predictions, add_special_tokens=False, split_special_tokens=True, verbose=False)
        rows = [{"input_ids": ids} for ids in encoded.input_ids]
        result = exact_order_nll(self.model, rows, self.tokenizer, progress=False, **self.options)
        return {
            "order_nll": result.nll,
            "order_nll_standard_error": result.standard_error,
            "example_nlls": result.example_nll.mean(0).tolist(),
        }
