# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""How often filled blanks hold what stood there."""

import datasets
import evaluate


class InfillingAccuracy(evaluate.Metric):
    """Share of the blanks that are right as a whole (`infilling_accuracy`), and of their tokens (`token_accuracy`).

    Predictions and references are the token ids of each blank, of equal lengths.

    Raises:
        ValueError: from `compute`: a blank was filled with another number of tokens, or has none.
    """

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description="Accuracy of infilling, by blank and by token.",
            citation="",
            inputs_description="predictions, references: lists of lists of token ids, one list for each blank.",
            features=datasets.Features({"predictions": ids, "references": ids}),
        )

    def _compute(self, predictions: list[list[int]], references: list[list[int]]) -> dict[str, float]:
        for number, (filled, blank) in enumerate(zip(predictions, references, strict=True)):
            if len(filled) != len(blank) or len(blank) == 0:
                raise ValueError(
                    f"predictions must have as many tokens as references, at least one; got {len(filled)} for "
                    f"{len(blank)} in blank {number}."
                )
        right = [[a == b for a, b in zip(*pair, strict=True)] for pair in zip(predictions, references, strict=True)]
        return {
            "infilling_accuracy": sum(map(all, right)) / len(right),
            "token_accuracy": sum(map(sum, right)) / sum(map(len, right)),
        }
