"""Timing side by side: variants take turns, so that a noisy neighbour or a clock that drops meets all of them.

On a GPU a small operation is recorded in a CUDA graph of several launches over rotating inputs and the graph is timed by events, which
leaves the launches of Python out for every side alike; what cannot be recorded, and whole searches, are timed by the clock, from call to
finished.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

Result = TypeVar("Result")

ROUNDS = 200
# Device time that one timed graph holds at least: above the resolution of events and the start of a replay.
GRAPH_US = 300.0
MOST_LAUNCHES = 40


@dataclass(frozen=True)
class Timing:
    """Microseconds per call; `method` is `graph` (device time of a replayed graph) or `clock` (call to finished)."""

    p50_us: float
    p99_us: float
    samples: int
    method: str
    memory_mib: float | None


@dataclass(frozen=True)
class Skip:
    """Why there is no time."""

    reason: str


@dataclass(frozen=True)
class _Sample:
    """One timed unit: `take()` gives the microseconds per call."""

    take: Callable[[], float]
    method: str
    memory_mib: float | None


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock_us(call: Callable[[], object], device: torch.device) -> float:
    """From call to finished."""
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return 1e6 * (time.perf_counter() - began)


def guarded(call: Callable[[], Result]) -> Result | Skip:
    """The result, or why there is none: out of memory, or whatever a library says to this shape.

    Raises:
        RuntimeError: the GPU is in no state to go on with.
    """
    try:
        return call()
    except torch.cuda.OutOfMemoryError:
        reason = "out of memory"
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    # Outside of the handler the exception's frames, and the tensors that they hold, are gone.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    return Skip(reason)


def peak_mib(call: Callable[[], Result], device: torch.device) -> tuple[Result, float | None]:
    """What a call gives, and the most memory that the GPU held meanwhile; None without one."""
    if device.type != "cuda":
        return call(), None
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    torch.cuda.synchronize(device)
    return result, torch.cuda.max_memory_allocated(device) / 2**20


def compare(
    variants: Mapping[str, Callable[[int], object]], inputs: int, device: torch.device, seconds: float, *, graphs: bool
) -> dict[str, Timing | Skip]:
    """Times of all variants, taken in turns for about `seconds`.

    Args:
        variants: each computes on input set i of `inputs`.
        graphs: time CUDA graphs where that is possible; for variants that do not wait for the device.

    Returns:
        A timing, or why there is none, per variant. A variant whose one call takes longer than its share of the seconds has few samples;
        the number is in the result.
    """
    samples: dict[str, _Sample] = {}
    found: dict[str, Timing | Skip] = {}
    for name, call in variants.items():
        made = guarded(lambda call=call: _sample(call, inputs, device, graphs))  # type: ignore[misc]
        if isinstance(made, Skip):
            found[name] = made
        else:
            samples[name] = made
    times: dict[str, list[float]] = {name: [] for name in samples}
    began = time.perf_counter()
    for turn in range(ROUNDS):
        if turn >= 3 and time.perf_counter() - began > seconds:
            break
        for name in list(samples):
            # A slow variant gets fewer turns rather than taking those of the others.
            if times[name] and sum(times[name]) / 1e6 > 2 * seconds / len(samples):
                continue
            taken = guarded(samples[name].take)
            if isinstance(taken, Skip):
                found[name] = taken
                del samples[name]
            else:
                times[name].append(taken)
    for name, sample in samples.items():
        ordered = sorted(times[name])
        p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        found[name] = Timing(statistics.median(ordered), p99, len(ordered), sample.method, sample.memory_mib)
    return {name: found[name] for name in variants}


def _sample(call: Callable[[int], object], inputs: int, device: torch.device, graphs: bool) -> _Sample:
    """Warm up, and decide how the variant is timed."""

    def warm() -> float:
        for index in range(inputs):
            call(index)
        return clock_us(lambda: call(0), device)

    once, memory = peak_mib(warm, device)
    if graphs and device.type == "cuda":
        launches = inputs * max(1, min(MOST_LAUNCHES // inputs, round(GRAPH_US / once)))
        graph = guarded(lambda: record(call, inputs, launches))
        if not isinstance(graph, Skip):
            return _Sample(lambda: _replay_us(graph) / launches, "graph", memory)
    turn = iter(range(1 << 30))
    return _Sample(lambda: clock_us(lambda: call(next(turn) % inputs), device), "clock", memory)


def record(call: Callable[[int], object], inputs: int, launches: int) -> torch.cuda.CUDAGraph:
    """A CUDA graph of `launches` calls over the input sets in turn."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call(0)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(launches):
            call(index % inputs)
    graph.replay()
    return graph


def _replay_us(graph: torch.cuda.CUDAGraph) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end)
