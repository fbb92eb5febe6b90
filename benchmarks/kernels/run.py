"""All figures of `kernels/` and of the whole beam search, beside what else can be run, in one go.

    python -m benchmarks.kernels.run --all --out DIR          every part, within --minutes (25), on a GPU
    python -m benchmarks.kernels.run --report --out DIR       predictions, kill rules and outcomes from DIR's results
    python -m benchmarks.kernels.run --all --out DIR --device cpu --preset laptop --quick

Needs torch, triton on a GPU, and transformers for the comparison with its `generate`. Each part runs in a process of its own, so that one
that hangs or breaks the GPU's state does not take the others along, and writes DIR/<part>.csv as it goes: the same command again does only
what is left. DIR/kernels.csv has all rows. What was not measured has a row that says why.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.kernels import ceilings, machine, report
from benchmarks.kernels.floors import Ceilings
from benchmarks.kernels.grid import GRIDS, PARTS, Grid, points, quick
from benchmarks.kernels.parts import Bench
from benchmarks.kernels.progress import Progress
from benchmarks.kernels.table import AGAIN, Table, read, write
from model.grm.presets import PRESETS

LEAST_SECONDS, MOST_SECONDS = 0.05, 6.0
"""Timing of one point."""
GRACE_S = 30.0
"""How long a part may take to come to its end after its time is up."""
MOST_RESTARTS = 5
ALL = "kernels.csv"
"""The rows of all parts, in one file to keep."""
OUT_OF_TIME = AGAIN + "out of time"


def main(arguments: list[str] | None = None) -> int:
    """0; 1 where a result was wrong; 2 where nothing could be run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--all", action="store_true", help="every part, then the report")
    what.add_argument("--part", choices=PARTS, help="one part, in this process")
    what.add_argument("--report", action="store_true", help="only print what the results say")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: the GPU")
    parser.add_argument("--preset", choices=GRIDS, default="reference", help="size of the decoder and of the grid")
    parser.add_argument("--quick", action="store_true", help="one shape of each")
    parser.add_argument("--minutes", type=float, default=25.0, help="time for what is asked for")
    parser.add_argument("--fresh", action="store_true", help="measure again what DIR has")
    given = parser.parse_args(arguments)
    if not given.report:
        try:
            _all(given) if given.all else _part(given)
        except (RuntimeError, ValueError) as error:
            print(error, file=sys.stderr)
            return 2
    rows = [row for part in PARTS for row in read(given.out / f"{part}.csv")]
    if not given.part:
        if rows:
            write(given.out / ALL, rows)
        print(report.text(rows))
    return 1 if any(row["status"] == "wrong" for row in rows) else 0


def _grid(given: argparse.Namespace) -> Grid:
    return quick(GRIDS[given.preset]) if given.quick else GRIDS[given.preset]


def _table(given: argparse.Namespace, part: str) -> Table:
    on = machine.device(given.device)
    if given.fresh:
        (given.out / f"{part}.csv").unlink(missing_ok=True)
    return Table(given.out, part, machine.facts(on, given.preset, _dtype(on)))


def _dtype(on: torch.device) -> torch.dtype:
    return torch.bfloat16 if on.type == "cuda" else torch.float32


def _all(given: argparse.Namespace) -> None:
    """Run the parts one after the other, each in a process of its own and with its share of the time that is left."""
    ends = time.monotonic() + 60 * given.minutes
    for part in PARTS:
        table = _table(given, part)
        shares = list(PARTS.values())[list(PARTS).index(part) :]
        restarts = 0
        while left := [point for point in points(part, _grid(given)) if not table.finished(point)]:
            minutes = (ends - time.monotonic()) / 60 * shares[0] / sum(shares)
            code = _process(given, part, minutes) if minutes > 0 else None
            table = Table(given.out, part, table.facts)
            if code == 0:
                break
            if code == 2:
                raise RuntimeError(f"part {part} cannot run here")
            left = [point for point in left if not table.finished(point)]
            if code is None or restarts == MOST_RESTARTS:
                for point in left:
                    table.put(point, [{"variant": "all", "status": "skipped", "note": OUT_OF_TIME if code is None else AGAIN + "gave up"}])
                break
            if left:
                table.put(left[0], [{"variant": "all", "status": "skipped", "note": f"its process ended with {code}"}])
            restarts += 1


def _process(given: argparse.Namespace, part: str, minutes: float) -> int | None:
    """Exit code of a part; None where it had to be ended."""
    command = [sys.executable, "-m", "benchmarks.kernels.run", "--part", part, "--out", str(given.out), "--minutes", f"{minutes:.2f}"]
    command += ["--preset", given.preset, *(["--quick"] if given.quick else []), *(["--device", given.device] if given.device else [])]
    process = subprocess.Popen(command)
    try:
        code = process.wait(60 * minutes + GRACE_S)
        # 1 says that a result is wrong, which is a result.
        return 0 if code == 1 else code
    except subprocess.TimeoutExpired:
        return None
    finally:
        process.kill()
        process.wait()


def _part(given: argparse.Namespace) -> None:
    """Measure what is left of one part."""
    torch.set_grad_enabled(False)
    on, grid, table = machine.device(given.device), _grid(given), _table(given, given.part)
    bench = Bench(PRESETS[given.preset], grid, on, _dtype(on), None if given.part == "ceilings" else _ceilings(given.out))
    left = [point for point in points(given.part, grid) if not table.finished(point)]
    ends = time.monotonic() + 60 * given.minutes
    progress = Progress(given.part, len(left), ends)
    for done, point in enumerate(left):
        seconds = ends - time.monotonic()
        # Without ceilings nothing else has a floor, and they take seconds.
        if seconds <= 0 and given.part != "ceilings":
            table.put(point, [{"variant": "all", "status": "skipped", "note": OUT_OF_TIME}])
            continue
        progress.show(done, f"{point.case}, batch {point.batch}, width {point.width}, context {point.context}")
        # Half of a point's share is for building and checking.
        table.put(point, bench.measure(point, max(LEAST_SECONDS, min(MOST_SECONDS, 0.5 * seconds / (len(left) - done)))))
        if on.type == "cuda":
            torch.cuda.empty_cache()
    progress.end()


def _ceilings(folder: Path) -> Ceilings:
    """As the part of that name measured them. Raises RuntimeError where it was not run."""
    rates = {row["case"]: float(row["note"].split()[0]) for row in read(folder / "ceilings.csv") if row["status"] == "ok"}
    try:
        return ceilings.of(rates)
    except KeyError as error:
        raise RuntimeError(f"no ceilings in {folder}: run --part ceilings first") from error


if __name__ == "__main__":
    sys.exit(main())
