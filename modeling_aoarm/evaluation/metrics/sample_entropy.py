# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Entropy of the tokens within each sample."""

import datasets
import evaluate

from modeling_aoarm.evaluation.text_metrics import sample_entropy


class SampleEntropy(evaluate.Metric):
    """[`~modeling_aoarm.evaluation.text_metrics.sample_entropy`] of token ids, nats.

    `compute` returns `sample_entropy`, the mean over samples, and `sample_entropies`, one for each. Samples without
    tokens have NaN, and so has then the mean.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=sample_entropy.__doc__,
            citation="",
            inputs_description="predictions: list of lists of token ids, one list for each sample.",
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("int64"))}),
        )

    def _compute(self, predictions: list[list[int]]) -> dict[str, float | list[float]]:
        entropies = sample_entropy(predictions)
        return {"sample_entropy": sum(entropies) / len(entropies), "sample_entropies": entropies}
