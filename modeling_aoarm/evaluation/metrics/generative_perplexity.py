# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Perplexity of sampled text under a given left-to-right model."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_aoarm.evaluation.metrics import text_metric
from modeling_aoarm.evaluation.text_metrics import generative_perplexity


class GenerativePerplexityMetric(text_metric.TextMetric):
    """[`~modeling_aoarm.evaluation.text_metrics.generative_perplexity`] of texts.

    `compute` returns `generative_perplexity` (exp of the token-weighted mean), `sample_nlls` (nats summed over each
    sample's tokens) and `sample_tokens` (how many of the judge's tokens those are).

    Args:
        model: the judge, a causal language model.
        tokenizer: its tokenizer.
        batch_size: texts in a forward pass.
        **kwargs: those of `evaluate.Metric`.

    Raises:
        ValueError: from `compute`, as in [`~modeling_aoarm.evaluation.text_metrics.generative_perplexity`].
    """

    def __init__(
        self, *args, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16, **kwargs
    ):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        super().__init__(*args, **kwargs)

    def _compute(self, predictions: list[str]) -> dict[str, float | list]:
        judged = generative_perplexity(predictions, self.model, self.tokenizer, batch_size=self.batch_size)
        return {
            "generative_perplexity": judged.perplexity,
            "sample_nlls": judged.sample_nll.tolist(),
            "sample_tokens": judged.sample_tokens.tolist(),
        }
