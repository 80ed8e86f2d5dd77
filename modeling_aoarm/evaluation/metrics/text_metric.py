# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""What metrics of texts have in common.

Modules of metrics import this module, not the class: `evaluate.load` takes the first metric class that it finds in one.
"""

import datasets
import evaluate


class TextMetric(evaluate.Metric):
    """A metric whose predictions are texts: a list of strings."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description="predictions: list of strings.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def add_batch(self, *, predictions: list[str] | None = None, **kwargs) -> None:
        """Adds texts to those that `compute` is about.

        Raises:
            TypeError: `predictions` is a single string.
        """
        # A string would be taken for a list of its characters.
        if isinstance(predictions, str):
            raise TypeError("predictions must be a list of strings, got a single string; pass [text].")
        super().add_batch(predictions=predictions, **kwargs)
