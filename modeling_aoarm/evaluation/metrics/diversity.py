# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Unique-word ratio of sampled text."""

from modeling_aoarm.evaluation.metrics import text_metric
from modeling_aoarm.evaluation.text_metrics import diversity


class Diversity(text_metric.TextMetric):
    """[`~modeling_aoarm.evaluation.text_metrics.diversity`] of texts as `{"diversity": ratio}`.

    NaN where there is no word.

    Args:
        num_words: take exactly the first `num_words` words, so that figures can be compared. Default: all there are.
        **kwargs: those of `evaluate.Metric`.

    Raises:
        TypeError, ValueError: from `compute`, as in [`~modeling_aoarm.evaluation.text_metrics.diversity`].
    """

    def __init__(self, *args, num_words: int | None = None, **kwargs):
        self.num_words = num_words
        super().__init__(*args, **kwargs)

    def _compute(self, predictions: list[str]) -> dict[str, float]:
        return {"diversity": diversity(predictions, self.num_words)}
