# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Measurements of a device during a call: seconds, memory, attention kernels, and waits of the host."""

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


# Parts of the names of kernels (on a GPU) and operators (on a CPU). More specific kinds come first.
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


def find_accelerator() -> torch.device:
    """Finds the accelerator of this machine, or its CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished all work."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def time_call(device: torch.device, run: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the wall time of a call in seconds, including all work that it started, and its result."""
    synchronize(device)
    started = time.perf_counter()
    result = run()
    synchronize(device)
    return time.perf_counter() - started, result


def free_memory(device: torch.device) -> None:
    """Frees all unused memory, including compiled code and its graphs."""
    torch._dynamo.reset()
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.empty_cache()
        torch.accelerator.reset_peak_memory_stats()


def read_peak_bytes(device: torch.device) -> int | None:
    """Reads the peak memory of tensors in bytes since the last [`free_memory`]; `None` on a CPU."""
    return None if device.type == "cpu" else torch.accelerator.max_memory_allocated()


@contextlib.contextmanager
def attention_priority(name: str) -> Iterator[None]:
    """Sets which of SDPA's kernels are tried first: `"flash"`, torch's own choice, or `"cudnn"`."""
    with sdpa_kernel(PRIORITIES[name], set_priority=True):
        yield


def finds_flash(run: Callable[[], Any]) -> bool:
    """Returns whether a call finds a flash kernel for all its attention when no other is allowed."""
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION), warnings.catch_warnings():
            # Torch warns why it refused each kernel.
            warnings.simplefilter("ignore")
            run()
    except RuntimeError as error:
        if "No available kernel" in str(error) or "No viable backend" in str(error):
            return False
        raise
    return True


def find_kind(name: str) -> str | None:
    """Finds the kind of attention of a kernel or operator; `None` for all others."""
    for kind, parts in ATTENTION_KERNELS.items():
        if any(part in name.lower() for part in parts):
            return kind
    return None


def profile_call(device: torch.device, run: Callable[[], Any], most: int = 12) -> dict[str, Any]:
    """Profiles a call.

    Returns:
        `attention_kernels`: the calls of each attention kernel, by kind (`flash`, `efficient`, `cudnn`) and name.
        `flash_share`: the share of flash kernels (including cuDNN's) among them, `None` if there are none. `top`: the
        kernels that took most time, with calls, milliseconds and share. On a CPU, operators take the place of kernels.
    """
    on_device = device.type != "cpu"
    activities = [ProfilerActivity.CPU]
    if on_device:
        # There are activities for CUDA and XPU, and none for Apple's devices.
        activities += [each for name, each in ProfilerActivity.__members__.items() if name == device.type.upper()]
    with profile(activities=activities) as profiler:
        time_call(device, run)
    spent = []
    for event in profiler.key_averages():
        # Annotations of ranges appear on the device too.
        if on_device and event.device_type != DeviceType.CPU and not event.is_user_annotation:
            spent.append((event.key, event.count, event.self_device_time_total))
        elif not on_device:
            spent.append((event.key, event.count, event.self_cpu_time_total))
    counts: dict[str, dict[str, int]] = {}
    for name, count, _ in spent:
        if kind := find_kind(name):
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


def count_host_waits(device: torch.device, run: Callable[[int], int], size: int) -> dict[str, Any] | None:
    """Counts how often the host waits for a CUDA device in each pass of a call; `None` on other devices.

    Two calls are counted, of `size` and of twice that. In the difference, waits that happen once per call cancel.

    Args:
        run: makes a call of a given size, and returns the number of its passes.

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
