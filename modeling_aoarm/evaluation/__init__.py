# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Evaluation: likelihoods, infilling and metrics of sampled text.

The modules `metrics` (for the library `evaluate`), `lm_eval` (for the LM Evaluation Harness) and `plots` need optional
libraries, so they are imported by their own names.
"""

from .infilling import (
    Blank,
    InfillingResult,
    count_right_tokens,
    evaluate_context_orders,
    evaluate_infilling,
    place_blanks,
    place_middles,
)
from .likelihood import AveragedNLL, OrderNLL, bound_likelihood, evaluate_likelihood
from .stats import Estimate, estimate_ratio
from .text_metrics import (
    GenerativePerplexity,
    collect_vocabulary,
    count_coherent_words,
    measure_coherence,
    measure_diversity,
    measure_generative_perplexity,
    measure_sample_entropy,
    split_words,
)


__all__ = [
    "AveragedNLL",
    "Blank",
    "Estimate",
    "GenerativePerplexity",
    "InfillingResult",
    "OrderNLL",
    "bound_likelihood",
    "collect_vocabulary",
    "count_coherent_words",
    "count_right_tokens",
    "estimate_ratio",
    "evaluate_context_orders",
    "evaluate_infilling",
    "evaluate_likelihood",
    "measure_coherence",
    "measure_diversity",
    "measure_generative_perplexity",
    "measure_sample_entropy",
    "place_blanks",
    "place_middles",
    "split_words",
]
