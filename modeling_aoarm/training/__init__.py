# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Training with `Trainer`: callbacks and checkpoints."""

from .trainer import AnyOrderTrainer, EMACallback, OrderClockCallback


__all__ = ["AnyOrderTrainer", "EMACallback", "OrderClockCallback"]
