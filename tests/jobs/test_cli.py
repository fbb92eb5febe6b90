"""The command line: it teaches, and answers at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs import logs, status
from jobs.cli import SUBCOMMANDS, main
from jobs.process import write_json

HEAVY = {"torch", "feast", "pyflink", "confluent_kafka", "fastapi", "numpy", "pandas", "pyarrow"}


def test_help_lists_every_module_that_there_is_without_importing_one() -> None:
    code = "import sys, jobs.cli\ntry: jobs.cli.main(['--help'])\nexcept SystemExit: print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, _, modules = done.stdout.strip().rpartition("\n")
    assert not HEAVY & set(modules.split())
    for name, subcommand in SUBCOMMANDS.items():
        there = (Path(__file__).parents[2] / Path(*subcommand.module.split("."))).with_suffix(".py").exists()
        assert (f"\n  {name} " in said) == there, name


@pytest.mark.parametrize("name", ["up", "down", "status", "logs", "doctor"])
def test_a_command_of_the_supervisor_explains_itself(name: str) -> None:
    said = CliRunner().invoke(main, [name, "--help"])
    assert said.exit_code == 0
    assert SUBCOMMANDS[name].module
    assert "--help" in said.output


def test_an_unknown_command_is_named() -> None:
    said = CliRunner().invoke(main, ["upp"])
    assert said.exit_code == 2
    assert "No such command 'upp'" in said.output


def test_status_of_an_empty_home_says_how_to_start(home: Path) -> None:
    said = CliRunner().invoke(status.command, [])
    assert (said.exit_code, said.output) == (1, f"nothing runs in {home}\n`sidstream up` starts it\n")


def test_status_does_not_believe_a_dead_supervisor(home: Path) -> None:
    part = {"state": "healthy", "pid": 1, "restarts": 0, "reason": None}
    write_json(home / "run" / "status.json", {"supervisor": {"pid": 1, "started": 0}, "phase": "up", "parts": {"redis": part}})
    report = status.collect(home)
    assert (report["phase"], report["healthy"], report["parts"]["redis"]["state"]) == ("stopped", False, "stopped")


def test_logs_shows_the_last_lines_of_one_part(home: Path) -> None:
    (home / "logs").mkdir()
    (home / "logs" / "redis.log").write_text("one\ntwo\nthree\n")
    assert CliRunner().invoke(logs.command, ["redis", "-n", "2"]).output == "two\nthree\n"
    said = CliRunner().invoke(logs.command, ["reddis"])
    assert said.exit_code == 1
    assert "there are: redis" in said.output


def test_following_a_log_waits_for_whole_lines_and_survives_its_cap(tmp_path: Path) -> None:
    path, shown = tmp_path / "part.log", []
    path.write_text("old\nnew\nha")
    seen = logs.show_new(path, 4, lambda path, line: shown.append(line))
    path.write_text("old\nnew\nhalf\n")
    seen = logs.show_new(path, seen, lambda path, line: shown.append(line))
    path.write_text("after\n")
    logs.show_new(path, seen, lambda path, line: shown.append(line))
    assert shown == ["new", "half", "after"]
