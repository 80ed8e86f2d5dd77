# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""A training cell: tokens per second and useful operations of compiled training steps of one model."""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from .kernels import attention_priority, finds_flash, free_memory, profile_call, read_peak_bytes, time_call
from .models import LLAMA, LLAMA_WITHOUT_MASK, count_useful_flops, make_model


TRAINED = (
    *("two_stream", LLAMA_WITHOUT_MASK, "decoupled_rope", "causal", "bidirectional", LLAMA),
    *("double_position", "adaptive_norm"),
)


def draw_batch(name: str, vocab_size: int, examples: int, rows: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Draws the arguments of a training call on the device: random tokens, and orders in which column 0 comes first."""
    # The last id is the mask token of `bidirectional`.
    tokens = torch.randint(vocab_size - 1, (examples, rows), device=device)
    if name in (LLAMA, LLAMA_WITHOUT_MASK, "causal"):
        return {"input_ids": tokens, "labels": tokens}
    keys = torch.rand(examples, rows, device=device)
    if name == "bidirectional":
        # The share of blanks is uniform, as in masked diffusion, and at least one token is blank.
        is_blank = keys <= torch.rand(examples, 1, device=device).maximum(keys.amin(1, keepdim=True))
        inputs = {"input_ids": tokens.masked_fill(is_blank, vocab_size - 1)}
        return inputs | {"labels": tokens.masked_fill(~is_blank, -100)}
    keys[:, 0] = -1
    order = keys.argsort(dim=1)
    targets = torch.cat([order[:, 1:], order[:, -1:] + 1], dim=1)
    return {"input_ids": tokens, "position_ids": order, "target_position_ids": targets, "labels": tokens}


def find_largest_batch(total: int, attempt: Callable[[int], Any], device: torch.device) -> tuple[int, Any]:
    """Finds the largest of `total`, `total / 2`, `total / 4`, ... examples that fits into memory.

    Args:
        total: a power of two.
        attempt: a function that needs the memory for a number of examples.

    Returns:
        The number of examples, and the result of `attempt`.

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
        # Inside of the `except` clause, the traceback would keep the tensors.
        free_memory(device)
        examples //= 2


class TrainingSteps:
    """A model in training: float32 weights, bf16 autocast, `torch.compile`, fused AdamW.

    Args:
        name: name of the model.
        rows: the number of rows of an example.
        examples: the number of examples per pass.
        accumulation: the number of passes per step.
    """

    def __init__(
        self, name: str, rows: int, examples: int, accumulation: int, arguments: Any, sizes: dict, device: torch.device
    ):
        self.name, self.rows, self.examples, self.accumulation, self.device = name, rows, examples, accumulation, device
        self.model: PreTrainedModel = make_model(name, arguments.seed, rows, sizes, device).train()
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
        """Makes steps, and returns the last loss."""
        for _ in range(steps):
            for _ in range(self.accumulation):
                loss = self.forward_backward(self.compiled, self.examples)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss

    def finds_flash(self) -> bool:
        """Returns whether a pass that is not compiled finds flash kernels when no others are allowed."""
        found = finds_flash(lambda: self.forward_backward(self.model, 1))
        self.optimizer.zero_grad(set_to_none=True)
        return found


def measure_training(name: str, rows: int, arguments: Any, sizes: dict, device: torch.device) -> dict[str, Any]:
    """Measures one model at one length.

    Each step takes `tokens_per_step` tokens, in as few parts as fit into memory. Steps are timed in blocks, so that the
    host may run ahead as in training. A block ends when the device has finished.

    Returns:
        `milliseconds_per_step`, a list over blocks, and derived numbers; `warm_up_seconds`, which include compilation;
        the results of [`profile_call`] for one step; and `takes_flash` of a pass that is not compiled.
    """
    with attention_priority(arguments.attention_priority):
        total = arguments.tokens_per_step // rows

        def attempt(examples: int) -> tuple[TrainingSteps, float]:
            steps = TrainingSteps(name, rows, examples, total // examples, arguments, sizes, device)
            # The first step creates the optimiser's states.
            seconds, _ = time_call(device, lambda: steps.run(3))
            return steps, seconds

        examples, (steps, warm_up_seconds) = find_largest_batch(total, attempt, device)
        seconds = []
        for _ in range(arguments.repetitions):
            elapsed, loss = time_call(device, lambda: steps.run(arguments.steps))
            seconds.append(elapsed / arguments.steps)
        flops = count_useful_flops(steps.model.config, total, rows)
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
            "peak_memory_bytes": read_peak_bytes(device),
            **profile_call(device, lambda: steps.run(1)),
            "takes_flash": steps.finds_flash(),
        }
