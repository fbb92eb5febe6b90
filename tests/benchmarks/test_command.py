"""The command in a result file."""

from __future__ import annotations

import sys

import pytest

from benchmarks.command import command


def test_a_command_tells_no_folder_of_the_machine_that_ran_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--dir", "/here/only/kuairand", "--report", "results/r.json", "--share", "0.08"])
    assert command("prequential") == "python -m benchmarks.prequential --dir kuairand --report results/r.json --share 0.08"
