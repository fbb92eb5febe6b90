"""Next-item prediction: our GRM beside floors and a SASRec, all in one program.

    python -m benchmarks.sequences --data DIR --name Beauty --seeds 0,1,2 --report FILE

Protocol: the last item of a user is the test target, the one before it chooses everything that is chosen (epoch, whether seen items are
left out), all items are ranked, and the history has at most 20 items. Killed, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import provenance
from benchmarks.sequences import data, floors, grm, sasrec

PROTOCOL = (
    "last item = test, the one before = validation; all items are ranked, history <= 20, the test history has the validation item; "
    "hits are of items, not of SID strings: every item has a SID of its own"
)

Run = Callable[[], tuple[dict[str, dict[str, float]], dict[str, Any]]]


def work(found: data.Data, seeds: list[int], folder: Path) -> dict[str, Run]:
    """Every piece of work by its name, in an order in which each finds what it needs; a piece gives metrics of its methods, and facts."""
    pieces: dict[str, Run] = {}
    for name, floor in floors.FLOORS.items():

        def of_floor(
            name: str = name, floor: Callable[[data.Data], floors.Scores] = floor
        ) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
            return {name: floors.measure(floors.best(found, floor(found)), found.test())}, {}

        pieces[name] = of_floor
    for seed in seeds:

        def of_sasrec(seed: int = seed) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
            metrics, facts = sasrec.train(found, seed, sasrec.Settings(), folder / f"sasrec-{seed}", tqdm.write)
            return {"SASRec, full cross-entropy": metrics}, facts

        def of_grm(seed: int = seed) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
            return grm.train(found, seed, grm.Settings(), folder / f"grm-{seed}", tqdm.write)

        def of_refit(seed: int = seed) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
            chosen = json.loads(_part(folder, found.name, f"GRM, seed {seed}").read_text())[0]
            return grm.refit(found, seed, grm.Settings(), folder / f"grm-{seed}", chosen, tqdm.write)

        pieces[f"GRM, seed {seed}"] = of_grm
        pieces[f"GRM, refit, seed {seed}"] = of_refit
        pieces[f"SASRec, seed {seed}"] = of_sasrec
    return pieces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="benchmarks.sequences")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument(
        "--name", default="Beauty", help="NAME.txt, NAME_item2attributes.json (both plain or .gz) and, optionally, NAME.attr_svd64.npy"
    )
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--report", type=Path, required=True, help="where the table goes (JSON); what is done is kept beside it until then")
    given = parser.parse_args()
    try:
        seeds = [int(seed) for seed in given.seeds.split(",")]
        found = data.load(given.data, given.name)
    except (data.LayoutError, ValueError) as error:
        sys.exit(f"{error}")
    folder = given.report.with_suffix(".parts")
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    pieces = work(found, seeds, folder)
    for name, run in tqdm(pieces.items(), desc=given.name, unit="run", disable=None):
        part = _part(folder, given.name, name)
        if not part.exists():
            tqdm.write(name)
            began = time.perf_counter()
            metrics, facts = run()
            seed = int(name.rpartition(" ")[2]) if "seed" in name else None
            facts |= {
                "seconds": round(facts.pop("earlier", 0.0) + time.perf_counter() - began, 1),
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
            lines = [{"method": method, "seed": seed, **values, **facts} for method, values in metrics.items()]
            part.write_text(json.dumps(lines))
        rows += json.loads(part.read_text())
        # After every piece, so that a run that is stopped leaves the table of what was done.
        result = {
            "data": {"name": given.name, "users": len(found.sequences), "items": found.items, "protocol": PROTOCOL},
            "settings": {"grm": asdict(grm.Settings()), "sasrec": asdict(sasrec.Settings())},
            "complete": len(rows) > 0 and name == list(pieces)[-1],
            "rows": rows,
        }
        written = provenance.write("sequences", result, ("torch", "torchrec"), given.report)
    print(f"\n{given.name}: {len(found.sequences):,} users, {found.items:,} items\n")
    print(f"{'method':<44} {'seed':>4} {'R@5':>7} {'R@10':>7} {'N@5':>7} {'N@10':>7} {'seconds':>8}")
    for row in rows:
        of = "" if row["seed"] is None else row["seed"]
        print(f"{row['method']:<44} {of:>4} {row['r5']:7.4f} {row['r10']:7.4f} {row['n5']:7.4f} {row['n10']:7.4f} {row['seconds']:8.0f}")
    print(f"\nwritten: {written}")


def _part(folder: Path, data: str, piece: str) -> Path:
    return folder / f"{hashlib.sha256(f'{data} {piece}'.encode()).hexdigest()[:16]}.json"


if __name__ == "__main__":
    main()
