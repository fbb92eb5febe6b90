"""The compiled library: how it comes into being, that it keeps to its buffers, and what happens where it cannot be had."""

from __future__ import annotations

import ctypes
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels import native
from kernels.selection import logits_select
from tests.kernels.fenced import beside, same, search, selections
from tests.kernels.marks import needs_library
from tests.kernels.test_selection import assert_same, numbers
from tests.kernels.test_step import SHAPES, Case

ROOT = Path(__file__).parents[2]


X86_WITHOUT_512_BITS = "--target=x86_64-linux-gnu -mcpu=x86_64_v3"


def flags(target: str) -> tuple[str, ...]:
    """The library's own, for another processor."""
    return (*target.split(), *(flag for flag in native.FLAGS if flag != "-mcpu=native"))


@needs_library
@pytest.mark.parametrize("target", ["-mcpu=native", X86_WITHOUT_512_BITS, "--target=aarch64-linux-gnu"])
def test_the_sources_compile_without_a_warning(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LIBRARIES", tmp_path)
    monkeypatch.setattr(native, "FLAGS", (*flags(target), "-Werror"))
    assert native.compiled().stat().st_size > 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]  # and nothing of the compiler's own is left


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="another kind of machine")
def test_the_matrix_unit_is_used_where_the_kernel_offers_it() -> None:
    offered, instructions = ctypes.c_ulong(0), {"amx_bf16", "avx512_bf16"} <= {*native._processor().split()}
    answered = ctypes.CDLL(None).syscall(158, 0x1021, ctypes.byref(offered)) == 0  # arch_prctl(ARCH_GET_XCOMP_SUPP)
    assert native.matrix_unit() == (answered and instructions and bool(offered.value >> 18 & 1))


@pytest.fixture(scope="module")
def fenced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, str]]]:
    """The folder into which two processes compiled at once, and how each ended and what it said; see fenced.py."""
    folder = tmp_path_factory.mktemp("libraries")
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.kernels.fenced", str(folder)]
    running = {
        side: subprocess.Popen([*command, side], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for side in ("start", "end")
    }
    return folder, {side: (process.wait(300), process.stdout.read()) for side, process in running.items() if process.stdout}


@needs_library
def test_two_processes_that_compile_at_once_share_one_whole_library(fenced: tuple[Path, dict[str, tuple[int, str]]]) -> None:
    folder, ended = fenced
    (library,) = folder.iterdir()
    assert all(said.splitlines()[-1] == str(library) for _, said in ended.values()), ended


@needs_library
@pytest.mark.parametrize("side", ["start", "end"])
def test_nothing_beside_its_buffers_is_touched_and_nothing_is_read_that_was_not_written(
    side: str, fenced: tuple[Path, dict[str, tuple[int, str]]]
) -> None:
    code, said = fenced[1][side]
    assert code == 0, said


@needs_library
@pytest.mark.skipif("avx2" not in native._processor(), reason="a processor of another kind")
def test_a_processor_without_vectors_of_512_bits_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def results() -> list[Tensor]:
        lengths, found = torch.tensor([33, 0, 1], dtype=torch.int32), [part for select in selections() for part in select(as_it_is)]
        found += beside(as_it_is)
        for shape in SHAPES:
            found += search(Case(shape, 3, [1], 33, codes=100), lengths, torch.float32, as_it_is)
        return found

    native_results = results()
    monkeypatch.setattr(native, "LIBRARIES", tmp_path)
    monkeypatch.setattr(native, "FLAGS", flags(X86_WITHOUT_512_BITS))
    portable = native.load()
    monkeypatch.setattr(native, "library", lambda: portable)
    assert all(map(same, results(), native_results))


def as_it_is(what: object) -> object:
    return what


@pytest.fixture
def unknown() -> Iterator[None]:
    """Whether there is a library is not known yet, and is found out anew after the test."""
    native.library.cache_clear()
    yield
    native.library.cache_clear()


@needs_library
@pytest.mark.usefixtures("unknown")
@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("no compiler", "make setup"),
        ("a compiler that fails", "make setup"),
        ("no room", "may write there"),
        ("a broken file", "remove it"),
    ],
)
def test_without_a_library_one_line_says_what_to_do_and_selections_are_the_same(
    reason: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logits, cumulative = numbers("integers", 2, 8, 300, torch.Generator().manual_seed(0))
    monkeypatch.setattr(native, "LIBRARIES", tmp_path)
    if reason == "no compiler":
        monkeypatch.setattr(native, "find_spec", lambda _: None)
    elif reason == "a compiler that fails":
        monkeypatch.setattr(native, "FLAGS", ("--not-an-option",))
    elif reason == "no room":
        (tmp_path / "file").touch()
        monkeypatch.setattr(native, "LIBRARIES", tmp_path / "file" / "folder")
    else:
        native.compiled().write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        found = [logits_select(logits.flatten(0, 1), cumulative, 20) for _ in range(2)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    line = caplog.records[0].getMessage()
    assert remedy in line and "\n" not in line
    assert_same(*found)
    assert found[0][2][0, 0] == logits[0, int(found[0][1][0, 0])].argmax()


def test_a_call_that_fails_or_is_interrupted_ends_when_all_of_its_threads_have(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def call(first: int, _: int) -> None:
        if first == 0:
            raise KeyboardInterrupt
        time.sleep(0.05)
        ended.append(first)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with pytest.raises(KeyboardInterrupt):
        native.over_rows(call, 240, 8)
    assert sorted(ended) == [80, 160]
