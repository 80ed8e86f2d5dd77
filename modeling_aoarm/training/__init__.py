# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Training with `Trainer`: the trainer, its callbacks, and checkpoints."""

from .callbacks import EMACallback, OrderClockCallback
from .trainer import AnyOrderTrainer


__all__ = ["AnyOrderTrainer", "EMACallback", "OrderClockCallback"]
