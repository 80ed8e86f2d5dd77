# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""One training cell: tokens per second and useful operations of compiled training steps of one model."""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from .kernels import attention_priority, forget, peak_bytes, profiled, takes_flash, timed
from .models import LLAMA, LLAMA_WITHOUT_MASK, new_model, useful_flops


TRAINED = (
    *("two_stream", LLAMA_WITHOUT_MASK, "decoupled_rope", "causal", "bidirectional", LLAMA),
    *("double_position", "adaptive_norm"),
)


def draw_batch(name: str, vocab_size: int, examples: int, rows: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Random tokens, and orders in which row 0 comes first, drawn on the device: the arguments of a training call."""
    # The last id is the mask of `bidirectional`, which is no token.
    tokens = torch.randint(vocab_size - 1, (examples, rows), device=device)
    if name in (LLAMA, LLAMA_WITHOUT_MASK, "causal"):
        return {"input_ids": tokens, "labels": tokens}
    keys = torch.rand(examples, rows, device=device)
    if name == "bidirectional":
        # A share of each example that is uniform, as in masked diffusion; one at least.
        is_blank = keys <= torch.rand(examples, 1, device=device).maximum(keys.amin(1, keepdim=True))
        inputs = {"input_ids": tokens.masked_fill(is_blank, vocab_size - 1)}
        return inputs | {"labels": tokens.masked_fill(~is_blank, -100)}
    keys[:, 0] = -1
    order = keys.argsort(dim=1)
    targets = torch.cat([order[:, 1:], order[:, -1:] + 1], dim=1)
    return {"input_ids": tokens, "position_ids": order, "target_position_ids": targets, "labels": tokens}


def largest_that_fits(total: int, attempt: Callable[[int], Any], device: torch.device) -> tuple[int, Any]:
    """The largest of `total`, `total / 2`, `total / 4`, ... examples that memory suffices for.

    Args:
        total: a power of two.
        attempt: makes what is needed for so many examples, and uses it once.

    Returns:
        How many examples, and what `attempt` returned.

    Raises:
        torch.OutOfMemoryError: not even one example fits.
    """
    examples = total
    while True:
        try:
            return examples, attempt(examples)
        except torch.OutOfMemoryError:
            if examples == 1:
                raise
        # Behind the clause: while it lasts, its traceback holds the tensors.
        forget(device)
        examples //= 2


class TrainingSteps:
    """A model in training: float32 weights, bf16 autocast, `torch.compile`, fused AdamW.

    Args:
        name: of the model.
        examples: how many go through the model at once.
        accumulation: how often they do in a step.
    """

    def __init__(
        self, name: str, rows: int, examples: int, accumulation: int, arguments: Any, sizes: dict, device: torch.device
    ):
        self.name, self.rows, self.examples, self.accumulation, self.device = name, rows, examples, accumulation, device
        self.model: PreTrainedModel = new_model(name, arguments.seed, rows, sizes, device).train()
        self.compiled = torch.compile(self.model, backend=arguments.compile_backend, fullgraph=True, dynamic=False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def forward_backward(self, model: Callable, examples: int) -> torch.Tensor:
        batch = draw_batch(self.name, self.model.config.vocab_size, examples, self.rows, self.device)
        options = {} if self.name == "bidirectional" else {"use_cache": False}
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = model(**batch, **options).loss
        (loss / self.accumulation).backward()
        return loss.detach()

    def run(self, steps: int) -> torch.Tensor:
        """Makes so many steps; returns the last loss."""
        for _ in range(steps):
            for _ in range(self.accumulation):
                loss = self.forward_backward(self.compiled, self.examples)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss

    def takes_flash(self) -> bool:
        """Whether a pass that is not compiled finds flash kernels where nothing else is allowed."""
        found = takes_flash(lambda: self.forward_backward(self.model, 1))
        self.optimizer.zero_grad(set_to_none=True)
        return found


def measure_training(name: str, rows: int, arguments: Any, sizes: dict, device: torch.device) -> dict[str, Any]:
    """Measures one model at one length.

    Each step takes `tokens_per_step` tokens, in as few parts as fit into memory. Steps are timed in blocks, so that the
    host may run ahead as it does in training; the device has finished when a block ends.

    Returns:
        `milliseconds_per_step`, a list over blocks, and what they follow from; `warm_up_seconds`, in which the model is
        compiled; what [`profiled`] tells of one step; `takes_flash` of a pass that is not compiled.
    """
    with attention_priority(arguments.attention_priority):
        total = arguments.tokens_per_step // rows

        def attempt(examples: int) -> tuple[TrainingSteps, float]:
            steps = TrainingSteps(name, rows, examples, total // examples, arguments, sizes, device)
            # Three: the optimiser's states are made in the first.
            seconds, _ = timed(device, lambda: steps.run(3))
            return steps, seconds

        examples, (steps, warm_up_seconds) = largest_that_fits(total, attempt, device)
        seconds = []
        for _ in range(arguments.repetitions):
            elapsed, loss = timed(device, lambda: steps.run(arguments.steps))
            seconds.append(elapsed / arguments.steps)
        flops = useful_flops(steps.model.config, total, rows)
        return {
            "part": "training",
            "model": name,
            "rows": rows,
            "parameters": steps.model.num_parameters(),
            "tokens_per_step": total * rows,
            "examples": examples,
            "accumulation": total // examples,
            "milliseconds_per_step": [1000 * each for each in seconds],
            "tokens_per_second": total * rows / median(seconds),
            "useful_flops_per_step": flops,
            "useful_tflops_per_second": sum(flops.values()) / median(seconds) / 1e12,
            "warm_up_seconds": warm_up_seconds,
            "loss": loss.item(),
            "peak_memory_bytes": peak_bytes(device),
            **profiled(device, lambda: steps.run(1)),
            "takes_flash": steps.takes_flash(),
        }
