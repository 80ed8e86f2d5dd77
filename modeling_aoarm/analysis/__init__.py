# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Attention by distance, and the loss without some of it."""

from .attention import AttentionMass, Specialisation, attention_mass, specialisation_score
from .interventions import Difference, HiddenRowLosses, hidden_row_losses
from .plots import plot_attention_mass, plot_hidden_rows


__all__ = [
    "AttentionMass",
    "Difference",
    "HiddenRowLosses",
    "Specialisation",
    "attention_mass",
    "hidden_row_losses",
    "plot_attention_mass",
    "plot_hidden_rows",
    "specialisation_score",
]
