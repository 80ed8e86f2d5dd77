# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Metrics for the library `evaluate`. Nothing is downloaded.

The constructor of a metric takes the settings of its function, so that `evaluate.combine` can compute several metrics
of the same predictions. Predictions are texts unless a metric says otherwise.

    from modeling_aoarm.evaluation.metrics import Coherence, Diversity

    evaluate.combine([Coherence(vocabulary=words), Diversity()]).compute(predictions=texts)
"""

from typing import Any

import datasets
import evaluate

from .infilling import count_right_tokens
from .likelihood import evaluate_likelihood
from .text_metrics import measure_coherence, measure_diversity, measure_generative_perplexity, measure_sample_entropy


TOKEN_IDS = datasets.Sequence(datasets.Value("int64"))


class _Metric(evaluate.Metric):
    """A metric whose `compute` calls a function with these settings, and raises its errors."""

    FEATURES = {"predictions": datasets.Value("string")}

    def __init__(self, **settings):
        self.settings = settings
        super().__init__()

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(self.FEATURES)
        return evaluate.MetricInfo(type(self).__doc__, citation="", features=features, inputs_description=str(features))

    def add_batch(self, *, predictions: list | None = None, **kwargs) -> None:
        """Adds predictions. Raises a TypeError for a single string, which would be read as a list of characters."""
        if isinstance(predictions, str):
            raise TypeError("predictions must be a list of strings, got a single string; pass [text].")
        super().add_batch(predictions=predictions, **kwargs)


class Coherence(_Metric):
    """`coherence`, by [`measure_coherence`]; settings `vocabulary` and `min_letters`."""

    def _compute(self, predictions: list[str]) -> dict[str, float]:
        return {"coherence": measure_coherence(predictions, **self.settings)}


class Diversity(_Metric):
    """`diversity`, by [`measure_diversity`]; setting `num_words`."""

    def _compute(self, predictions: list[str]) -> dict[str, float]:
        return {"diversity": measure_diversity(predictions, **self.settings)}


class GenerativePerplexityMetric(_Metric):
    """`generative_perplexity`, `sample_nlls` (nats) and `sample_tokens`, by [`measure_generative_perplexity`].

    Settings: `model`, `tokenizer` and `batch_size`.
    """

    def _compute(self, predictions: list[str]) -> dict[str, Any]:
        result = measure_generative_perplexity(predictions, **self.settings)
        samples = {"sample_nlls": result.sample_nll.tolist(), "sample_tokens": result.sample_tokens.tolist()}
        return {"generative_perplexity": result.perplexity, **samples}


class OrderLikelihood(_Metric):
    """`order_nll` (nats per token), its standard error over orders, and `example_nlls` (nats, mean over orders).

    By [`evaluate_likelihood`] with `exact=True`; settings `model`, `tokenizer`, `order`, `draws`, `seed`, `batch_size`.
    Texts are encoded without special tokens.
    """

    def _compute(self, predictions: list[str]) -> dict[str, Any]:
        tokenizer = self.settings["tokenizer"]
        encoded = tokenizer(predictions, add_special_tokens=False, split_special_tokens=True, verbose=False)
        examples = [{"input_ids": ids} for ids in encoded.input_ids]
        result = evaluate_likelihood(dataset=examples, exact=True, progress=False, **self.settings)
        return {
            "order_nll": result.nll,
            "order_nll_standard_error": result.standard_error,
            "example_nlls": result.example_nll.mean(0).tolist(),
        }


class SampleEntropy(_Metric):
    """`sample_entropies` of token ids (nats) and their mean `sample_entropy`, by [`measure_sample_entropy`]."""

    FEATURES = {"predictions": TOKEN_IDS}

    def _compute(self, predictions: list[list[int]]) -> dict[str, Any]:
        entropies = measure_sample_entropy(predictions)
        return {"sample_entropy": sum(entropies) / len(entropies), "sample_entropies": entropies}


class InfillingAccuracy(_Metric):
    """Share of the blanks that are right as a whole, and of their tokens; predictions are the token ids of blanks.

    `infilling_accuracy` and `token_accuracy`, by [`count_right_tokens`].
    """

    FEATURES = {"predictions": TOKEN_IDS, "references": TOKEN_IDS}

    def _compute(self, predictions: list[list[int]], references: list[list[int]]) -> dict[str, float]:
        right, lengths = count_right_tokens(predictions, references), [len(ids) for ids in references]
        whole = [count == length for count, length in zip(right, lengths, strict=True)]
        return {"infilling_accuracy": sum(whole) / len(whole), "token_accuracy": sum(right) / sum(lengths)}


__all__ = [
    "Coherence",
    "Diversity",
    "GenerativePerplexityMetric",
    "InfillingAccuracy",
    "OrderLikelihood",
    "SampleEntropy",
]
