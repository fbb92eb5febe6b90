"""What PyTorch's operations cannot do fast on a CPU, in C: compiled once for the processor that it runs on, by the pinned compiler.

A search of one request makes hundreds of short calls of PyTorch; here a level is two. Without the compiler, or on a processor without fused
multiply-add, there is no library: one line of the log says so, and PyTorch computes the same.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
LIBRARIES = Path(sys.prefix) / "share" / "sidstream"
"""Where they are kept: in the virtual environment, so that they go when that goes."""

FLAGS = ("-O3", "-mcpu=native", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC", "-nostdlib", "-Wall", "-Wextra")


class Unavailable(RuntimeError):
    """There is no compiled library here; the message says why."""


@cache
def library() -> Library | None:
    """The compiled functions; None where they cannot be had, which is logged once."""
    try:
        return load()
    except Unavailable as absent:
        log.warning("beam search on this CPU runs on PyTorch alone, which takes longer: %s", absent)
        return None


class Library:
    """The compiled functions. Short ones keep the interpreter: giving it away and waiting for it again takes longer than they do."""

    def __init__(self, path: Path) -> None:
        long, pointer = ctypes.c_long, ctypes.c_void_p
        busy, short = ctypes.CDLL(str(path)), ctypes.PyDLL(str(path))

        def of(dll: ctypes.CDLL, name: str, result: type | None, *arguments: type) -> Any:
            function = getattr(dll, name)
            function.restype, function.argtypes = result, arguments
            return function

        self.pack_weight = of(busy, "pack_weight", None, long, long, pointer, long, pointer)
        self.pack_context = of(busy, "pack_context", None, *[pointer] * 7)
        self.level_rows = of(busy, "level_rows", None, pointer, long, long, pointer)
        self.scan = of(busy, "scan", None, pointer, long, long)
        self.prior_rows = of(busy, "prior_rows", None, pointer, long, long, pointer)
        self.nearest_rows = of(busy, "nearest_rows", None, pointer, long, long, pointer)
        self.nearest_scratch = of(short, "nearest_scratch", long, pointer)
        self.avoid = of(short, "avoid", None, pointer)
        self.prior_scratch = of(short, "prior_scratch", long, pointer)
        self.level_choose = of(short, "level_choose", None, pointer, pointer)
        self.level_advance = of(short, "level_advance", None, pointer, long)
        self.finish = of(short, "finish", None, pointer, long, pointer)
        self.step_scratch = of(short, "step_scratch", long, pointer)
        self.key_size = of(short, "key_size", long, pointer)
        self.value_size = of(short, "value_size", long, pointer)
        self.selection_keys = of(short, "selection_keys", long, pointer)
        self.weight_bytes = of(short, "weight_bytes", long, long, long, long)
        self.permit_matrix_unit = of(short, "permit_matrix_unit", long)


def load() -> Library:
    """The functions of the sources beside this file, compiled if they are not yet.

    Raises:
        Unavailable: no compiler, it failed, or there is no room for its output.
    """
    path = compiled()
    try:
        return Library(path)
    except OSError as wrong:
        raise Unavailable(f"{path} cannot be loaded; remove it, and it is compiled again: {wrong}") from wrong


@cache
def matrix_unit() -> bool:
    """Whether the processor multiplies bfloat16 matrices in hardware (AMX), and this process may ask it to."""
    found = library()
    return found is not None and bool(found.permit_matrix_unit())


def compiled() -> Path:
    """The shared library for this processor and these sources.

    Raises:
        Unavailable: see `load`.
    """
    compiler = find_spec("ziglang")
    if compiler is None or compiler.origin is None:
        raise Unavailable("the compiler is not installed; run `make setup`, or install ziglang as pinned in requirements/runtime.txt")
    sources = sorted(FOLDER.glob("*.c"))
    told = [metadata.version("ziglang"), *FLAGS, _processor(), *(path.read_text() for path in sorted(FOLDER.glob("*.[ch]")))]
    digest = hashlib.sha256("\0".join(told).encode()).hexdigest()[:16]
    target = LIBRARIES / f"native-{digest}.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            made = Path(scratch) / target.name
            command = [str(Path(compiler.origin).with_name("zig")), "cc", *FLAGS, "-o", str(made), *map(str, sources)]
            caches = {"ZIG_LOCAL_CACHE_DIR": scratch, "ZIG_GLOBAL_CACHE_DIR": scratch}
            done = subprocess.run(command, env=os.environ | caches, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode:
                raise Unavailable(f"the compiler failed (`make setup` installs the one that is known to work): {_first_error(done.stderr)}")
            made.replace(target)  # whole or not there, also when two processes compile at once
    except subprocess.TimeoutExpired as slow:
        raise Unavailable(f"the compiler took more than {slow.timeout:.0f} s; a restart tries again") from slow
    except OSError as wrong:
        raise Unavailable(f"nothing can be compiled into {target.parent}; start once as a user who may write there: {wrong}") from wrong
    return target


def _first_error(output: str) -> str:
    lines = output.strip().splitlines() or ["it said nothing"]
    return next((line for line in lines if "error" in line), lines[-1])


def _processor() -> str:
    """What the instructions that may be used depend on."""
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((line for line in told.splitlines() if line.startswith(("flags", "Features"))), platform.processor())


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def floats(*shape: int) -> torch.Tensor:
    """Memory for float32, whatever type and device this thread's tensors have by default."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


_of_thread = threading.local()


def scratch(size: int) -> int:
    """Address of so many bytes for the calling thread, until it asks again: new memory for every call would be slow to touch first."""
    kept: torch.Tensor | None = getattr(_of_thread, "scratch", None)
    if kept is None or len(kept) < size:
        kept = _of_thread.scratch = torch.empty(size, dtype=torch.uint8)
    return kept.data_ptr()


def over_rows(call: Callable[[int, int], object], rows: int, least: int) -> None:
    """`call(first, last)` for all rows, in as many parts as PyTorch has threads, none shorter than `least`."""
    parts = min(torch.get_num_threads(), max(rows // least, 1))
    if parts == 1:
        call(0, rows)
        return
    ends = [rows * part // parts // ROW_TILE * ROW_TILE for part in range(parts)] + [rows]
    waiting = [_pool(parts - 1).submit(call, *ends[part : part + 2]) for part in range(1, parts)]
    try:
        call(*ends[:2])
        for one in waiting:
            one.result()
    except BaseException:
        wait(waiting)  # the others still write to memory that is gone when this has been left
        raise


ROW_TILE = 8
"""Rows of one tile of a product."""


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="native")
