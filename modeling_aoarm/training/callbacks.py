# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Callbacks for `transformers.Trainer`: the collator's clock and averaged weights."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from ..data.collators import DataCollatorWithOrders


EMA_FILE = "ema.safetensors"


class OrderClockCallback(TrainerCallback):
    """Tells a [`~modeling_aoarm.DataCollatorWithOrders`] the epoch and the optimiser step.

    `AnyOrderTrainer` adds it. With a plain `Trainer`, pass it in `callbacks`, with the same collator.

    Args:
        collator: the training collator.
    """

    def __init__(self, collator: DataCollatorWithOrders):
        self.collator = collator
        self.batches_seen = None

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        # A resumed run starts within an epoch. It skips earlier batches without collating them. In a stream it makes
        # them again and drops them.
        epoch = int(state.epoch or 0)
        first_step = state.global_step
        is_stream = isinstance(getattr(train_dataloader, "dataset", None), IterableDataset)
        if is_stream and not args.ignore_data_skip:
            # Trainer takes `max_steps` as the length of a pass over a stream.
            first_step -= round(((state.epoch or 0) - epoch) * state.max_steps)
        self.collator.start_epoch(
            epoch,
            first_step=first_step,
            total_steps=state.max_steps,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
        )

    def on_step_end(self, args, state, control, **kwargs):
        self.batches_seen = self.collator.batches_seen

    def on_evaluate(self, args, state, control, **kwargs):
        # An evaluation with the training collator has moved its counter.
        if self.batches_seen is not None:
            self.collator.batches_seen = self.batches_seen


class EMACallback(TrainerCallback):
    """Exponential moving average (EMA) of the trainable weights, in float32.

    After optimiser step t the average moves towards the weights by 1 - min(decay, (1 + t) / (10 + t)), so the
    initialisation does not dominate short runs. `AnyOrderTrainer` evaluates with the average. It saves the average in
    every checkpoint (`ema.safetensors`), beside the unaveraged weights that a resumed run needs. After the training the
    model has the averaged weights, so the final save has them too.

    Args:
        decay: weight of the old average, in (0, 1).

    Raises:
        ValueError: `decay` is outside (0, 1); training is sharded (FSDP, DeepSpeed); `load_best_model_at_end` is set,
            which would load unaveraged weights; a resumed checkpoint has no average.
    """

    def __init__(self, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie in (0, 1), got {decay}.")
        self.decay = decay
        self.average: dict[str, torch.Tensor] | None = None
        # Set by `AnyOrderTrainer.train`, because callbacks are not told where a resumed run comes from.
        self.checkpoint: str | None = None

    def on_init_end(self, args, state, control, **kwargs):
        if args.fsdp or args.deepspeed:
            raise ValueError("EMACallback needs whole weights in every process: FSDP and DeepSpeed must be off.")
        if args.load_best_model_at_end:
            raise ValueError("EMACallback cannot be combined with load_best_model_at_end=True: set it to False.")

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        # Trainer does not call `on_init_end` of callbacks that are added later.
        self.on_init_end(args, state, control)
        self.average = {name: weight.detach().clone().float() for name, weight in _trainable(model).items()}
        if self.checkpoint is not None:
            for name, weight in load_file(Path(self.checkpoint) / EMA_FILE).items():
                self.average[name].copy_(weight)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        step = state.global_step
        update = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        update(list(self.average.values()), [weight.detach().float() for weight in _trainable(model).values()], None)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        _copy_into(model, self.average)
        self.average = None

    def save(self, checkpoint: Path) -> None:
        """Adds the average to a checkpoint that is being written."""
        save_file(self.average, checkpoint / EMA_FILE)

    @contextlib.contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Puts the average into the model within the block. Does nothing outside of training."""
        if self.average is None:
            yield
            return
        weights = {name: weight.detach().clone() for name, weight in _trainable(model).items()}
        _copy_into(model, self.average)
        try:
            yield
        finally:
            _copy_into(model, weights)


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters with gradients, tied ones once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


@torch.no_grad()
def _copy_into(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    for name, weight in _trainable(model).items():
        weight.copy_(weights[name])
