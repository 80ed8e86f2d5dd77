# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Training of one cell: a trunk at a constant learning rate, from which branches decay.

A branch is what a training of that length ends in, so the branches say whether more training would change a comparison.
Batches are a function of the seed and the step: a branch sees what the trunk sees at its steps, all models of a seed
see the same sentences and orders, and a run that was killed goes on with the numbers of one that was not.
"""

import contextlib
import copy
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

from .predictions import draw_orders, draw_prefixes, predict, prefix_weights, token_nll
from .recipe import Cell


# Points of a learning curve.
CURVE_POINTS = 60


class OutOfTime(Exception):
    """The time that a call had is over; what was done is saved."""


class CellTraining:
    """Trains a cell's trunk and branches; [`run`] starts, or goes on from the saved state.

    Args:
        cell: what is trained.
        model: with the weights at the start, on its device.
        source: has `sample(batch, length, generator)`.
        state_path: where the state is kept while training.
        settings: what the state belongs to besides the cell, as JSON has it.
        compile: whether to compile the training step.
        bf16: whether it computes in bfloat16 (automatic mixed precision). On a CUDA device attention then has to be
            the flash kernel, where the model has no mask.
        deadline: `time.monotonic()` after which [`OutOfTime`] is raised, the state having been saved.
        save_seconds: seconds between savings.
        progress: show a progress bar.
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
        self.bf16, self.deadline, self.save_seconds = bf16, deadline, save_seconds
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=cell.learning_rate, betas=(0.9, 0.95), weight_decay=cell.weight_decay, fused=True
        )
        self.loss = torch.compile(self.losses, dynamic=False) if compile else self.losses
        self.step, self.curve, self.results = 0, [], {}
        # Of the clock, and of this process's work: they differ where others want the same cores.
        self.seconds = {"clock": 0.0, "process": 0.0}
        # What a branch left, while there is one.
        self.trunk = None
        self.progress = progress
        self.last_saved = time.monotonic()

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Sentences, orders and, for models that read prefixes, numbers of observed symbols."""
        cell, device = self.cell, self.model.device
        generator = torch.Generator(device).manual_seed(cell.seed * 10_000_000 + step)
        tokens = self.source.sample(cell.batch, cell.length, generator)
        order = draw_orders(cell.order, cell.batch, cell.length, generator)
        observed = draw_prefixes(cell.batch, cell.length, generator) if cell.reads_prefixes else None
        return tokens, order, observed

    def losses(
        self, tokens: torch.Tensor, order: torch.Tensor, observed: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is minimised, and an unbiased estimate of the negative log-likelihood; nats per symbol."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16):
            logits = predict(self.model, tokens, order, observed)
        nll = token_nll(logits, tokens, order)
        if observed is None:
            return nll.mean(), nll.mean().detach()
        all_masked = self.cell.order == "uniform"
        weighted, estimate = (
            (nll * prefix_weights(observed, self.cell.length, all_masked, weighting)).mean()
            for weighting in (self.cell.weighting, "elbo")
        )
        return weighted, estimate.detach()

    def train_step(self, learning_rate: float) -> float:
        """One step; nats per symbol of its batch, before the update."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with self._kernels():
            loss, nll = self.loss(*self.batch(self.step))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return float(nll)

    def _kernels(self) -> contextlib.AbstractContextManager:
        """Where the flash kernel has to run, others are forbidden: torch raises an error rather than be slow."""
        needs_flash = self.bf16 and self.model.device.type == "cuda" and self.cell.model != "bidirectional_content"
        return sdpa_kernel(SDPBackend.FLASH_ATTENTION) if needs_flash else contextlib.nullcontext()

    def run(self, measure: Callable[[float], dict]) -> tuple[list[dict[str, float]], dict[str, dict]]:
        """Trains all branches.

        Args:
            measure: called with a branch's share at its end, when the model has its weights.

        Returns:
            The learning curve of the trunk and of the last branch (`tokens`, and `nll` in nats per symbol, the mean
            over the steps since the point before, each before it learned from its batch), and what `measure` returned
            for each branch, by its share as a string. The model has the weights of the last branch.

        Raises:
            OutOfTime: at the deadline.
            ValueError: the saved state is of other settings.
        """
        self._load()
        shares = sorted(self.cell.branches)
        total = self.cell.branch_steps(shares[-1])[1]
        bar = tqdm(total=total, initial=self.step, desc=self.cell.key, disable=not self.progress, leave=False)
        with bar:
            for share in shares:
                if str(share) in self.results:
                    continue
                leaves, ends = self.cell.branch_steps(share)
                if self.trunk is None:
                    while self.step < leaves:
                        self._timed(self.cell.learning_rate * min(1, (self.step + 1) / self.cell.warmup_steps), bar)
                    self.trunk = self._snapshot()
                while self.step < ends:
                    # Falls linearly; the last step is still above 0.
                    self._timed(self.cell.learning_rate * (ends - self.step) / (ends - leaves), bar)
                self.results[str(share)] = measure(share)
                if share != shares[-1]:
                    self._restore(self.trunk)
                    bar.n = self.step
                self.trunk = None
                self._save()
        return self.curve, self.results

    def _timed(self, rate: float, bar: tqdm) -> None:
        clock, process = time.monotonic(), time.process_time()
        nll = self.train_step(rate)
        self.seconds["clock"] += time.monotonic() - clock
        self.seconds["process"] += time.process_time() - process
        every = max(1, self.cell.branch_steps(1.0)[1] // CURVE_POINTS)
        if not self.curve or self.curve[-1]["steps"] == every:
            self.curve.append({"tokens": 0, "nll": 0.0, "steps": 0})
        point = self.curve[-1]
        point["nll"] = (point["nll"] * point["steps"] + nll) / (point["steps"] + 1)
        point["steps"] += 1
        point["tokens"] = self.step * self.cell.tokens_per_step
        bar.update()
        bar.set_postfix(nll=f"{nll:.3f}", refresh=False)
        now = time.monotonic()
        if now > self.deadline:
            self._save()
            raise OutOfTime
        if now - self.last_saved > self.save_seconds:
            self._save()

    def _snapshot(self) -> dict:
        """The training as it is now."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "curve": self.curve}
        return copy.deepcopy(state) | {"step": self.step}

    def _restore(self, snapshot: dict) -> None:
        """Goes on from a snapshot, whose tensors then change."""
        self.model.load_state_dict(snapshot["model"])
        self.optimizer.load_state_dict(snapshot["optimizer"])
        self.step, self.curve = snapshot["step"], snapshot["curve"]

    def _save(self) -> None:
        state = {
            "settings": self.settings,
            "now": self._snapshot(),
            "trunk": self.trunk,
            "seconds": self.seconds,
            "results": self.results,
        }
        with replacing(self.state_path) as temporary:
            torch.save(state, temporary)
        self.last_saved = time.monotonic()

    def _load(self) -> None:
        if self.state_path.exists():
            state = torch.load(self.state_path, map_location=self.model.device, weights_only=True)
            if state["settings"] != self.settings:
                raise ValueError(
                    f"{self.state_path} must be of the settings {self.settings}, got {state['settings']}; remove the "
                    "file, or choose another folder."
                )
            self._restore(state["now"])
            self.trunk, self.seconds, self.results = state["trunk"], state["seconds"], state["results"]


def training_flops(cell: Cell, model: PreTrainedModel, vocab_size: int) -> float:
    """Floating-point operations of a training step per symbol, forward and backward.

    Counted by torch on one sentence, with attention that computes all pairs of rows: kernels that leave out what a
    causal mask hides need up to half as many for attention, in all variants alike.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (1, cell.length), generator=generator)
    order = draw_orders(cell.order, 1, cell.length, generator)
    observed = draw_prefixes(1, cell.length, generator) if cell.reads_prefixes else None
    arguments = [None if value is None else value.to(model.device) for value in (tokens, order, observed)]
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        token_nll(predict(model, *arguments), *arguments[:2]).mean().backward()
    model.zero_grad()
    return counter.get_total_flops() / cell.length
