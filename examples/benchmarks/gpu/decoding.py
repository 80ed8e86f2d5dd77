# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""A decoding cell: tokens per second of one way of decoding, at one batch size."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from .kernels import attention_priority, count_host_waits, profile_call, read_peak_bytes, time_call
from .models import LLAMA, make_model


# Arguments of `generate`, by the name of the way of decoding.
FILLING = {
    "one by one": {"decoding_order": "random"},
    "one by one, static": {"decoding_order": "random", "cache_implementation": "static"},
    "4 a pass": {"decoding_order": "random", "tokens_per_step": 4},
    "4 drafts": {"decoding_order": "random", "draft_length": 4},
    "4 drafts, static": {"decoding_order": "random", "draft_length": 4, "cache_implementation": "static"},
    "confidence": {"decoding_order": "confidence"},
}
LLAMA_WAYS = {
    f"{LLAMA}, generate": {},
    f"{LLAMA}, generate, static": {"cache_implementation": "static"},
    f"{LLAMA}, bare loop": None,
}
UNCACHED = "bidirectional, uncached"
SAMPLING = {"do_sample": True, "top_k": 0, "eos_token_id": None, "pad_token_id": 0}
BOS = 1


def list_ways(variants: list[str]) -> list[str]:
    """Lists the names of all ways, with the references first."""
    return [UNCACHED, *LLAMA_WAYS, *(f"{variant}, {way}" for way in FILLING for variant in variants)]


def draw_canvas(
    batch: int, columns: int, blanks: int, vocab_size: int, device: torch.device, scattered: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws canvases whose first token is given, int64 `[batch, columns]`, and their blanks, bool.

    Args:
        blanks: the number of blank columns. The others hold random tokens.
        scattered: whether blanks are anywhere after the first column. Otherwise they are on the right.
    """
    canvas = torch.randint(vocab_size - 1, (batch, columns), device=device)
    canvas[:, 0] = BOS
    keys = torch.arange(columns, device=device).flip(0).float().expand(batch, -1).clone()
    if scattered:
        keys = torch.rand(batch, columns, device=device)
    keys[:, 0] = torch.inf
    chosen = keys.argsort(dim=1)[:, :blanks]
    return canvas, torch.zeros_like(canvas, dtype=torch.bool).scatter(1, chosen, True)


@torch.no_grad()
def decode_in_bare_loop(model: PreTrainedModel, tokens: torch.Tensor, new_tokens: int) -> int:
    """Decodes greedily from left to right, with little around the model. Returns the number of passes."""
    cache = DynamicCache(config=model.config)
    for _ in range(new_tokens):
        logits = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        tokens = logits[:, -1].argmax(-1, keepdim=True)
    return new_tokens


def make_filler(way: str, model: PreTrainedModel, batch: int, columns: int) -> Callable[[int], int]:
    """Makes a function that fills a number of blanks in a new batch of canvases, and returns the number of passes."""
    device, vocab_size = model.device, model.config.vocab_size

    def fill(blanks: int) -> int:
        is_llama = way in LLAMA_WAYS
        canvas, mask = draw_canvas(batch, columns, blanks, vocab_size, device, scattered=not is_llama)
        if is_llama:
            # Prompt and new tokens are as long as a canvas, so a static cache has one size.
            prompt = canvas[:, : columns - blanks]
            if LLAMA_WAYS[way] is None:
                return decode_in_bare_loop(model, prompt, blanks)
            options = SAMPLING | LLAMA_WAYS[way] | {"attention_mask": torch.ones_like(prompt)}
            return model.generate(prompt, max_new_tokens=blanks, **options).shape[1] - prompt.shape[1]
        options = {"decoding_order": "random"} if way == UNCACHED else FILLING[way.partition(", ")[2]]
        output = model.generate(canvas, generation_mask=mask, return_dict_in_generate=True, **SAMPLING, **options)
        return output.forward_passes

    return fill


def measure_decoding(way: str, batch: int, arguments: Any, sizes: dict, device: torch.device) -> dict[str, Any]:
    """Measures one way at one batch size, with bf16 weights.

    Every pass without a cache reads the whole canvas and costs the same. Only `uncached_passes` of them are measured,
    on canvases with as many blanks, and the rest is extrapolated. All other ways fill all columns after the first one.
    No repetition starts after the cell has taken `cell_seconds`.

    Returns:
        `seconds` and `forward_passes`, lists over repetitions, and derived numbers for filling all blanks;
        `warm_up_seconds` of a call with few blanks, which compiles the model if it is compiled; and the results of
        [`count_host_waits`] and [`profile_call`] for calls with few blanks.
    """
    started = time.perf_counter()
    columns, few, all_blanks = arguments.canvas, arguments.few_blanks, arguments.canvas - 1
    blanks = min(arguments.uncached_passes, all_blanks) if way == UNCACHED else all_blanks
    with attention_priority(arguments.attention_priority), torch.no_grad():
        model = make_model(way.partition(", ")[0], arguments.seed, columns, sizes, device).to(torch.bfloat16)
        fill = make_filler(way, model, batch, columns)
        warm_up_seconds, _ = time_call(device, lambda: fill(few))
        seconds, passes = [], []
        while not seconds or (
            len(seconds) < arguments.repetitions and time.perf_counter() - started < arguments.cell_seconds
        ):
            elapsed, made = time_call(device, lambda: fill(blanks))
            seconds.append(elapsed)
            passes.append(made)
        return {
            "part": "decoding",
            "way": way,
            "batch": batch,
            "canvas": columns,
            "blanks": all_blanks,
            "measured_blanks": blanks,
            "extrapolated": blanks < all_blanks,
            "seconds": seconds,
            "forward_passes": passes,
            "tokens_per_second": batch * blanks / median(seconds),
            "milliseconds_per_pass": 1000 * median(each / made for each, made in zip(seconds, passes, strict=True)),
            "tokens_per_pass": blanks / median(passes),
            "warm_up_seconds": warm_up_seconds,
            "peak_memory_bytes": read_peak_bytes(device),
            "host_waits": count_host_waits(device, fill, few),
            **profile_call(device, lambda: fill(few)),
        }
