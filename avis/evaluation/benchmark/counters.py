"""Seconds, peak memory and operators of a call::

seconds = median_seconds(lambda: model.prefill(**inputs), "cpu")
counts = count_operators(lambda: model.prefill(**inputs))  # {"calls": .., "bytes": ..}
"""

import ctypes
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def read_clock(device: str) -> float:
    """Return seconds on a clock, after the device has done all that it was asked to do."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def time_call(call: Callable, device: str) -> float:
    """Return the seconds that one call takes."""
    start = read_clock(device)
    call()
    return read_clock(device) - start


def median_seconds(call: Callable, device: str, times: int = 3) -> float:
    """Return the median seconds of some calls after a first one that warms up."""
    call()
    return statistics.median(time_call(call, device) for _ in range(times))


class PeakMemory:
    """The highest memory use, in bytes, of the process (on CUDA: of its tensors) since this object was made.

    Attributes:
        start: bytes in use at the beginning; None where the system does not report them.
    """

    def __init__(self, device: str):
        self._device: str | None = device
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        else:
            try:
                # Give freed memory back. Never do so before something timed, which would pay for fresh pages.
                ctypes.CDLL(None).malloc_trim(0)
                Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to the present use
            except (OSError, AttributeError):  # not Linux, another C library, or not allowed
                self._device = None
        self.start = self.read()

    def read(self) -> int | None:
        """Return the peak so far; None where the system does not report it."""
        if self._device is None:
            return None
        if self._device != "cpu":
            return torch.cuda.max_memory_allocated()
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        return None if found is None else 1024 * int(found[1])


class OperatorCounter(TorchDispatchMode):
    """Counts operator calls, and the bytes read and written by operators that are no matrix product.

    Views are no calls. The bytes of a sort are not counted, because its time is measured.

    Attributes:
        calls: operators called so far.
        bytes: bytes read and written so far.
    """

    _MATRIX = re.compile(r"mm$|bmm$|^addmv$|^mv$|convolution|scaled_dot_product|_linear_pointwise|flash_attn")

    def __init__(self):
        super().__init__()
        self.calls, self.bytes = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        aliases = [value.alias_info for value in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if name.startswith("empty") or name == "_unsafe_view" or is_view:
            return result
        self.calls += 1
        if not self._MATRIX.search(name) and name != "sort":
            self.bytes += _bytes_moved(name, args, result, is_in_place=any(aliases))
        return result


def _bytes_moved(name: str, args, result, is_in_place: bool) -> int:
    """Return the bytes that an operator reads and writes; an output in place is an argument already."""
    written = 0 if is_in_place else _bytes_of(result)
    if name == "embedding":  # reads as much of its table as it writes
        return _bytes_of(args[1]) + 2 * written
    if name == "index_copy_":  # changes as much of its target as it reads of the source
        return _bytes_of([args[2], args[3], args[3]]) + written
    return _bytes_of(args) + written


def _bytes_of(values: Any) -> int:
    """Return the bytes of all tensors in nested lists and tuples; an expanded tensor counts as it is stored."""
    if isinstance(values, torch.Tensor):
        return min(values.numel() * values.element_size(), values.untyped_storage().nbytes())
    return sum(map(_bytes_of, values)) if isinstance(values, (list, tuple)) else 0


def count_operators(call: Callable) -> dict[str, int]:
    """Return the "calls" and "bytes" that `OperatorCounter` counts in a call."""
    with OperatorCounter() as counter:
        call()
    return {"calls": counter.calls, "bytes": counter.bytes}
