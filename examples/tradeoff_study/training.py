# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Training of one cell: a trunk at a constant learning rate, and branches whose rate decays.

The end of a branch is the result of a training of that length, so the branches show whether more training would change
a comparison. Batches are a function of the seed and the step. So a branch sees the trunk's batches of the same steps,
all models of a seed see the same sentences and orders, and a killed run goes on with the numbers of a whole one.
"""

import contextlib
import copy
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from modeling_aoarm.io import replacing

from .models import MASKED_CONTROLS
from .predictions import draw_orders, draw_prefixes, predict, prefix_weights, token_nll
from .recipe import Cell


# Points of a learning curve.
CURVE_POINTS = 60


class OutOfTime(Exception):
    """The deadline has passed and the state is saved."""


class CellTraining:
    """Trains a cell's trunk and branches. [`run`] starts, or goes on from the saved state.

    Args:
        cell: the cell.
        model: the model with its weights at the start, on its device.
        source: has `sample(batch, length, generator)`.
        state_path: file for the state during training.
        settings: other settings that the state belongs to, as JSON values.
        compile: whether to compile the training step.
        bf16: whether to train in mixed precision. On a CUDA device attention without a mask then needs flash kernels.
        deadline: value of `time.monotonic()` after which [`run`] saves the state and raises [`OutOfTime`].
        save_seconds: seconds between saves.
        progress: whether to show a progress bar.
    """

    def __init__(
        self,
        cell: Cell,
        model: PreTrainedModel,
        source,
        state_path: Path,
        settings: dict | None = None,
        compile: bool = False,
        bf16: bool = False,
        deadline: float = math.inf,
        save_seconds: float = 30,
        progress: bool = True,
    ):
        self.cell, self.model, self.source, self.state_path = cell, model, source, state_path
        self.settings = {"cell": cell.settings(), "bf16": bf16} | (settings or {})
        self.bf16, self.deadline, self.save_seconds, self.progress = bf16, deadline, save_seconds, progress
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=cell.learning_rate, betas=(0.9, 0.95), weight_decay=cell.weight_decay, fused=True
        )
        self.loss = torch.compile(self.compute_loss, dynamic=False) if compile else self.compute_loss
        self.batch = functools.lru_cache(maxsize=1)(self.draw_batch)
        self.step, self.curve, self.results = 0, [], {}
        # Time of the clock and time of this process. They differ if other work shares the cores.
        self.seconds = {"clock": 0.0, "process": 0.0}
        # The state at the start of the current branch.
        self.trunk = None
        self.last_saved = time.monotonic()

    def draw_batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Draws sentences, orders and, for models that read prefixes, numbers of observed symbols."""
        cell, device = self.cell, self.model.device
        generator = torch.Generator(device).manual_seed(cell.seed * 10_000_000 + step)
        tokens = self.source.sample(cell.batch, cell.length, generator)
        order = draw_orders(cell.order, cell.batch, cell.length, cell.seed, step * cell.batch, device)
        return tokens, order, draw_prefixes(cell.batch, cell.length, generator) if cell.reads_prefixes else None

    def compute_loss(self, tokens: torch.Tensor, order: torch.Tensor, observed: torch.Tensor | None) -> torch.Tensor:
        """Nats per symbol of a batch, or an unbiased estimate if prefixes are read."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16):
            logits = predict(self.model, tokens, order, observed)
        nll = token_nll(logits, tokens, order)
        if observed is not None:
            nll = nll * prefix_weights(observed, self.cell.length, all_masked=self.cell.order == "uniform")
        return nll.mean()

    def train_step(self, learning_rate: float) -> float:
        """Makes one step and returns the nats per symbol of its batch before the update."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        # If the flash kernel has to run, all others are forbidden: torch then raises an error instead of being slow.
        needs_flash = self.bf16 and self.model.device.type == "cuda" and self.cell.model not in MASKED_CONTROLS
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if needs_flash else contextlib.nullcontext():
            loss = self.loss(*self.batch(self.step))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        # The CPU draws the next batch while an accelerator still computes.
        self.batch(self.step)
        return float(loss.detach())

    def run(self, measure: Callable[[float], dict]) -> tuple[list[dict[str, float]], dict[str, dict]]:
        """Trains all branches.

        Args:
            measure: called with a branch's share at its end, when the model has its weights.

        Returns:
            The learning curve of the trunk and of the last branch, and the results of `measure` for each branch, by its
            share as a string. A point of the curve has `tokens`, the symbols seen, and `nll`, nats per symbol: the mean
            over the steps since the last point, each before the update by its batch. The model has the weights of the
            last branch.

        Raises:
            OutOfTime: at the deadline.
            ValueError: the saved state has other settings.
        """
        self._load()
        shares = sorted(self.cell.branches)
        total = self.cell.branch_steps(shares[-1])[1]
        with tqdm(total=total, initial=self.step, desc=self.cell.key, disable=not self.progress, leave=False) as bar:
            for share in shares:
                if str(share) in self.results:
                    continue
                leaves, ends = self.cell.branch_steps(share)
                if self.trunk is None:
                    while self.step < leaves:
                        self._train_step(
                            self.cell.learning_rate * min(1, (self.step + 1) / self.cell.warmup_steps), bar
                        )
                    self.trunk = self._snapshot()
                while self.step < ends:
                    # Falls linearly and is still above 0 in the last step.
                    self._train_step(self.cell.learning_rate * (ends - self.step) / (ends - leaves), bar)
                self.results[str(share)] = measure(share)
                if share != shares[-1]:
                    self._restore(self.trunk)
                    bar.n = self.step
                self.trunk = None
                self._save()
        return self.curve, self.results

    def _train_step(self, rate: float, bar: tqdm) -> None:
        """Makes one step, and keeps the time, the learning curve and the saved state."""
        clock, process = time.monotonic(), time.process_time()
        nll = self.train_step(rate)
        self.seconds["clock"] += time.monotonic() - clock
        self.seconds["process"] += time.process_time() - process
        steps_per_point = max(1, self.cell.branch_steps(1.0)[1] // CURVE_POINTS)
        if not self.curve or self.curve[-1]["steps"] == steps_per_point:
            self.curve.append({"tokens": 0, "nll": 0.0, "steps": 0})
        point = self.curve[-1]
        point["nll"] = (point["nll"] * point["steps"] + nll) / (point["steps"] + 1)
        point["steps"] += 1
        point["tokens"] = self.step * self.cell.tokens_per_step
        bar.update()
        bar.set_postfix(nll=f"{nll:.3f}", refresh=False)
        is_over = time.monotonic() > self.deadline
        if is_over or time.monotonic() - self.last_saved > self.save_seconds:
            self._save()
        if is_over:
            raise OutOfTime

    def _snapshot(self) -> dict:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "curve": self.curve}
        return copy.deepcopy(state) | {"step": self.step}

    def _restore(self, snapshot: dict) -> None:
        """Goes on from a snapshot. Training then changes the snapshot's tensors."""
        self.model.load_state_dict(snapshot["model"])
        self.optimizer.load_state_dict(snapshot["optimizer"])
        self.step, self.curve = snapshot["step"], snapshot["curve"]

    def _save(self) -> None:
        state = {"settings": self.settings, "now": self._snapshot(), "trunk": self.trunk}
        with replacing(self.state_path) as temporary:
            torch.save(state | {"seconds": self.seconds, "results": self.results}, temporary)
        self.last_saved = time.monotonic()

    def _load(self) -> None:
        if not self.state_path.exists():
            return
        state = torch.load(self.state_path, map_location=self.model.device, weights_only=True)
        if state["settings"] != self.settings:
            raise ValueError(
                f"{self.state_path} must have the settings {self.settings}, got {state['settings']}; remove the file, "
                "or choose another folder."
            )
        self._restore(state["now"])
        self.trunk, self.seconds, self.results = state["trunk"], state["seconds"], state["results"]


def training_flops(cell: Cell, model: PreTrainedModel, vocab_size: int) -> float:
    """Counts the floating-point operations of a training step per symbol, forward and backward.

    Torch counts them on one sentence, with attention that computes all pairs of rows. Kernels that skip the hidden half
    of a causal mask need up to half as many for attention, in all variants alike.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (1, cell.length), generator=generator)
    order = draw_orders(cell.order, 1, cell.length)
    observed = draw_prefixes(1, cell.length, generator) if cell.reads_prefixes else None
    arguments = [None if value is None else value.to(model.device) for value in (tokens, order, observed)]
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        token_nll(predict(model, *arguments), *arguments[:2]).mean().backward()
    model.zero_grad()
    return counter.get_total_flops() / cell.length
