# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Share of the long words of sampled text that are words of the training text."""

from collections.abc import Collection

from modeling_aoarm.evaluation.metrics import text_metric
from modeling_aoarm.evaluation.text_metrics import check_vocabulary, coherence


class Coherence(text_metric.TextMetric):
    """[`~modeling_aoarm.evaluation.text_metrics.coherence`] of texts as `{"coherence": share}`.

    NaN where no word is long enough.

    Args:
        vocabulary: words in lower case, see [`~modeling_aoarm.evaluation.text_metrics.vocabulary_of`].
        min_letters: shorter words are not counted.
        **kwargs: those of `evaluate.Metric`.

    Raises:
        TypeError, ValueError: as in [`~modeling_aoarm.evaluation.text_metrics.coherence`].
    """

    def __init__(self, *args, vocabulary: Collection[str], min_letters: int = 4, **kwargs):
        self.vocabulary = check_vocabulary(vocabulary, min_letters)
        self.min_letters = min_letters
        super().__init__(*args, **kwargs)

    def _compute(self, predictions: list[str]) -> dict[str, float]:
        return {"coherence": coherence(predictions, self.vocabulary, self.min_letters)}
