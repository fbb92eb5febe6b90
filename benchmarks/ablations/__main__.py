"""What each choice is worth, one at a time, on KuaiRand and on Beauty, within a small budget that is the same for all.

    python -m benchmarks.ablations --dir KUAIRAND --data BEAUTY --report FILE

Decoders and semantic IDs: a model of the laptop preset learns the same targets once, in the same order, and is tested on the same later
ones: recall@10 and @50 among all videos, item by item, by beam search over the SIDs that exist, and the loss of a target's whole SID (of
decoders on the same SIDs: across SIDs it also counts what is given to SIDs that no video has). The full decoder has its own keys and values
of the context for every layer and head; beside it stands a lazy one whose feed-forward is so much wider that a target takes as many
operations. Every other row changes one thing from the first. These budgets are far from convergence: they compare, and none of them is a
result.

Positions of the context, on KuaiRand: clusters of older videos and authors beside the 32 newest videos, and as many positions more of
single videos. What a lazy trunk is taught of clusters of codes stands beside what it is taught of random ones; thinking tokens that are
taught clusters and a goal beside those that are not, and beside a decoder that costs as much without them. With up to 8,874 targets and
tests together, all of them are of KuaiRand's first 48 hours, which the prequential table leaves out.

Delayed feedback: simulated conversions with known rates, see `benchmarks.ablations.delays`.

The report is written after every row and says how many are missing: killed, the same command goes on with the next one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import resource
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import provenance
from benchmarks.ablations import delays, models, problems
from benchmarks.sequences.data import LayoutError
from streaming.sources.kuairand import SourceError

Row = dict[str, Any]


def work(given: argparse.Namespace, seeds: list[int]) -> list[tuple[Row, Callable[[], Row]]]:
    """Every row's name and how it is made, cheap ones first."""
    pieces: list[tuple[Row, Callable[[], Row]]] = []
    for pipeline in delays.PIPELINES:
        for seed in seeds:
            key = {"on": "simulated delays", "variant": pipeline, "seed": seed, "impressions": given.impressions}
            pieces.append((key, partial(delays.measure, pipeline, given.impressions, seed)))
    loaders = {"KuaiRand": cache(partial(problems.kuairand, given.dir)), "Beauty": cache(partial(problems.beauty, given.data))}
    for seed in seeds:
        for variant in models.VARIANTS:
            for name in variant.on:
                load = loaders[name]

                def of_model(load: Callable[..., problems.Problem] = load, variant: models.Variant = variant, seed: int = seed) -> Row:
                    return models.measure(load(given.targets, given.tested, seed), variant, seed)

                pieces.append(
                    ({"on": name, "variant": variant.name, "seed": seed, "targets": given.targets, "tested": given.tested}, of_model)
                )
    return [(key, run) for key, run in pieces if re.search(given.only, f"{key['on']}: {key['variant']}")]


def table(rows: list[Row]) -> str:
    """The rows as text for a terminal."""
    lines = [f"{'':<18} {'':<52} {'seed':>4} {'recall@10':>9} {'recall@50':>9} {'SID loss':>9} {'Mops':>6} {'seconds':>8}"]
    for row in rows:
        name = f"{row['on']:<18} {row['variant']:<52} {row['seed']:>4}"
        if "recall_at_10" in row:
            figures = f"{row['recall_at_10']:9.4f} {row['recall_at_50']:9.4f} {row['loss']:9.3f} {row['operations_a_target'] / 1e6:6.1f}"
        else:
            figures = f"divergence {row['divergence']:.4f}, calibration {row['calibration']:.3f}".rjust(36)
        lines.append(f"{name} {figures} {row['seconds']:8.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="benchmarks.ablations")
    parser.add_argument("--dir", type=Path, required=True, help="folder of the KuaiRand files")
    parser.add_argument("--data", type=Path, required=True, help="folder of the Beauty files")
    parser.add_argument("--report", type=Path, required=True, help="where the table goes (JSON); rows that are done are kept beside it")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--only", default="", help="rows whose `data: variant` this regular expression is found in")
    parser.add_argument("--targets", type=int, default=20_000, help="that every model learns")
    parser.add_argument("--tested", type=int, default=2_000, help="targets that every model is tested on")
    parser.add_argument("--impressions", type=int, default=20_000, help="of a simulation of delays")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = given.report.with_suffix(".parts")
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    slow: dict[str, Any] = {} if sys.stderr.isatty() else {"mininterval": 60, "ascii": True, "ncols": 100}
    try:
        pieces = work(given, [int(seed) for seed in given.seeds.split(",")])
        for key, run in tqdm(pieces, desc="rows", unit="row", **slow):
            part = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
            if not part.exists():
                began = time.perf_counter()
                row = key | run()
                row |= {
                    "seconds": round(time.perf_counter() - began, 1),
                    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                }
                part.write_text(json.dumps(row))
            rows.append(json.loads(part.read_text()))
            provenance.write("ablations", {"rows_missing": len(pieces) - len(rows), "rows": rows}, ("torch", "torchrec"), given.report)
    except (SourceError, LayoutError, ValueError) as error:
        sys.exit(str(error))
    print(table(rows))
    print(f"\nwritten: {given.report}")


if __name__ == "__main__":
    main()
