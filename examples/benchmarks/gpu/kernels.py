# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""What a device does behind a call: seconds, memory, attention kernels, and how often the host waits for it."""

import contextlib
import gc
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile


# Parts of names of kernels (on a GPU) and of operators (on a CPU), the more specific ones first.
ATTENTION_KERNELS = {
    "cudnn": ("cudnn_generated", "cudnn_attention"),
    "efficient": ("fmha_cutlass", "efficient_attention"),
    "flash": ("flash_fwd", "flash_bwd", "flash_attention"),
}
PRIORITIES = {
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
    "cudnn": [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ],
}


def accelerator() -> torch.device:
    """The accelerator of this machine, or its CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def timed(device: torch.device, run: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of a call (seconds), everything that it started included, and what it returned."""
    synchronize(device)
    started = time.perf_counter()
    result = run()
    synchronize(device)
    return time.perf_counter() - started, result


def forget(device: torch.device) -> None:
    """Gives back the memory of everything that is not in use, compiled code and its graphs included."""
    torch._dynamo.reset()
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.empty_cache()
        torch.accelerator.reset_peak_memory_stats()


def peak_bytes(device: torch.device) -> int | None:
    """The most memory that tensors took since the last `forget`; `None` on a CPU."""
    return None if device.type == "cpu" else torch.accelerator.max_memory_allocated()


@contextlib.contextmanager
def attention_priority(name: str) -> Iterator[None]:
    """Which of SDPA's kernels are tried first: `"flash"`, torch's own choice, or `"cudnn"`."""
    with sdpa_kernel(PRIORITIES[name], set_priority=True):
        yield


def takes_flash(run: Callable[[], Any]) -> bool:
    """Whether a call finds a flash kernel for all its attention, no other being allowed."""
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION), warnings.catch_warnings():
            # Torch warns why each kernel was refused.
            warnings.simplefilter("ignore")
            run()
    except RuntimeError as error:
        if "No available kernel" in str(error) or "No viable backend" in str(error):
            return False
        raise
    return True


def kind_of(name: str) -> str | None:
    """Which attention a kernel or operator belongs to, `None` for anything else."""
    for kind, parts in ATTENTION_KERNELS.items():
        if any(part in name.lower() for part in parts):
            return kind
    return None


def profiled(device: torch.device, run: Callable[[], Any], most: int = 12) -> dict[str, Any]:
    """What a call spends its time on.

    Returns:
        `attention_kernels`: how often each attention kernel ran, by kind (`flash`, `efficient`, `cudnn`) and name;
        `flash_share`: the share of flash kernels (cuDNN's included) among them, `None` without any; `top`: the kernels
        that took most time, with calls, milliseconds and share. On a CPU operators stand for kernels.
    """
    on_device = device.type != "cpu"
    activities = [ProfilerActivity.CPU]
    if on_device:
        # CUDA or XPU; Apple's devices have none.
        activities += [each for name, each in ProfilerActivity.__members__.items() if name == device.type.upper()]
    with profile(activities=activities) as profiler:
        timed(device, run)
    spent = []
    for event in profiler.key_averages():
        # Annotations of ranges are shown on the device too.
        if on_device and event.device_type != DeviceType.CPU and not event.is_user_annotation:
            spent.append((event.key, event.count, event.self_device_time_total))
        elif not on_device:
            spent.append((event.key, event.count, event.self_cpu_time_total))
    counts: dict[str, dict[str, int]] = {}
    for name, count, _ in spent:
        if kind := kind_of(name):
            counts.setdefault(kind, {})[name[:160]] = count
    calls = {kind: sum(by_name.values()) for kind, by_name in counts.items()}
    total = sum(microseconds for *_, microseconds in spent)
    spent.sort(key=lambda each: each[2], reverse=True)
    return {
        "attention_kernels": counts,
        "flash_share": (calls.get("flash", 0) + calls.get("cudnn", 0)) / sum(calls.values()) if calls else None,
        "top": [
            {"name": name[:160], "calls": count, "milliseconds": spent_here / 1000, "share": spent_here / total}
            for name, count, spent_here in spent[:most]
        ],
    }


def host_waits(device: torch.device, run: Callable[[int], int], size: int) -> dict[str, Any] | None:
    """How often the host waits for a CUDA device in each pass of a call; `None` on other devices.

    Counted in a call of `size` and in one of twice that, so that what happens once in a call cancels.

    Args:
        run: a call of some size; returns how many passes it made.

    Returns:
        `per_pass`, and `places`: the waits per pass by file and line.
    """
    if device.type != "cuda":
        return None
    mode = torch.cuda.get_sync_debug_mode()
    passes, counted = [], []
    for each in (size, 2 * size):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                passes.append(run(each))
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        waits = (warning for warning in caught if "synchronizing" in str(warning.message))
        counted.append(Counter(f"{Path(warning.filename).name}:{warning.lineno}" for warning in waits))
    more = max(passes[1] - passes[0], 1)
    places = {place: (count - counted[0][place]) / more for place, count in sorted(counted[1].items())}
    return {"per_pass": sum(places.values()), "places": {place: waits for place, waits in places.items() if waits}}
