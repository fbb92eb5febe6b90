"""Quality against publish interval on KuaiRand, prequentially: every impression is predicted before it is learned, by everybody.

    python -m benchmarks.prequential --dir DIR --report FILE

One learner goes once through the log, in its order, by the streaming path's own code. `streaming` is that learner, at most five minutes
behind what is ready; the other rows are its copies as they were published: hourly, every 6 hours, daily, every 3 days, and once, after the
first two days (`frozen`). So `daily` means a model that is trained on incrementally and published once a day, at no delay; it is not
trained from scratch. The first two days are warm-up: nothing of them is reported, and what the floors need chosen is chosen on the second.

Recall is of the next positively watched video (a long view: 18 s or to the end, and not hated) among all videos of the catalogue, item by
item: where several videos share an SID they come in random order. Nobody is recommended a video of the history. AUC and calibration are of
the long view of everything that was shown. Intervals are of a bootstrap over users, differences are paired. Killed, the same command goes
on from its last checkpoint, at most six hours of the log before.
"""

from __future__ import annotations

import argparse
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from benchmarks import provenance
from benchmarks.prequential import report
from benchmarks.prequential.floors import Floors, Rates
from benchmarks.prequential.run import WARM_UP_H, Pass, Plan, hours_of, identity_of
from benchmarks.prequential.snapshots import BEAM, HOUR_MS, Catalogue
from benchmarks.prequential.stream import earlier, samples
from jobs.sids import kuairand_input
from model.grm import Grm, Vocabulary, preset
from model.online.checkpoint import CheckpointError, Checkpoints
from model.online.step import LearnerConfig, OnlineLearner
from model.sid import bundle, encoder
from streaming.sources.kuairand import SourceError
from streaming.sources.kuairand_events import exposures


def floors_of(catalogue: pa.Table) -> Floors:
    columns = [catalogue[name].fill_null(-1).to_numpy() for name in ("item_id", "author_id", "tag")]
    return Floors(*columns)


def measure(folder: Path, parts: Path, limit: int | None, share: float, name: str, seed: int) -> dict[str, Any]:
    """Run or continue the pass; returns the result without its provenance."""
    rows = exposures(folder)
    start = rows.first_ms - rows.first_ms % HOUR_MS
    hours = hours_of(start, int(rows.columns["time_ms"][-1]))
    if hours <= WARM_UP_H:
        raise SourceError(f"{folder}: the log has {hours} hours, the first {WARM_UP_H} are warm-up: nothing is left to predict")
    plan = Plan(start, min(hours, limit or hours), share, seed)
    catalogue, together = kuairand_input(folder, plan.evaluated_from)
    built = bundle.build(catalogue, together, seed=seed)
    model = Grm(preset(name, built.code_counts, seed=seed))
    learner = OnlineLearner(model, Vocabulary.of_bundle(built), LearnerConfig(recall_share=0.0))
    before = earlier(folder, rows.first_ms)
    run = Pass(plan, learner, Catalogue(built.item_ids, built.sids, built.code_counts), floors_of(catalogue), Rates(before))
    inside = int(np.searchsorted(rows.columns["time_ms"], plan.start_ms + plan.hours * HOUR_MS))
    # Without a terminal the bar is one line a minute.
    slow = {} if sys.stderr.isatty() else {"mininterval": 60, "ascii": True, "ncols": 100}
    with tqdm(total=inside, desc="log", unit=" impressions", **slow) as bar:
        run.run(
            samples(rows, before), Checkpoints(parts), identity_of(plan, learner, built.version), lambda count: bar.update(count) and None
        )
    dense = sum(parameter.numel() for _, parameter in model.dense_parameters())
    facts = {
        "data": {
            "impressions": inside,
            "hours": plan.hours,
            "users_with_earlier_history": len(before),
            "videos": len(built.item_ids),
            "videos_sharing_an_sid": len(built.sids) - len(np.unique(built.sids, axis=0)),
        },
        "settings": {"preset": name, "beam": BEAM, "plan": asdict(plan), "learner": learner.config.to_json()},
        "floors_half_life_h": run.floors.half_life_h,
        "counters": vars(learner.counters),
        "dense_parameters": dense,
        "table_numbers": sum(table.numel() for table in model.tables().values()),
        "seconds": round(run.seconds, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    return facts | report.summary(run.records, plan)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="benchmarks.prequential"
    )
    parser.add_argument("--dir", type=Path, required=True, help="folder of the KuaiRand files")
    parser.add_argument(
        "--report", type=Path, required=True, help="result (JSON); checkpoints are kept beside it, in FILE without suffix + .parts"
    )
    parser.add_argument("--hours", type=int, help=f"only so many hours of the log, {WARM_UP_H} of warm-up among them; default all")
    parser.add_argument("--share", type=float, default=0.1, help="of the impressions after the warm-up that are predicted")
    parser.add_argument("--preset", choices=("laptop", "reference"), default="laptop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.hours is not None and given.hours <= WARM_UP_H:
        parser.error(f"--hours is {given.hours}: expected more than the {WARM_UP_H} of warm-up")
    if not 0 < given.share <= 1:
        parser.error(f"--share is {given.share}: expected more than 0 and at most 1")
    torch.set_num_threads(given.threads)
    try:
        result = measure(given.dir, given.report.with_suffix(".parts"), given.hours, given.share, given.preset, given.seed)
    except (SourceError, encoder.CatalogueError, CheckpointError) as error:
        sys.exit(str(error))
    print(report.table(result))
    print(f"\nwritten: {provenance.write('prequential', result, ('torch', 'torchrec'), given.report)}")
    drawn = report.plot(result, given.report.with_suffix(".svg"))
    print(f"drawn: {drawn}" if drawn else "not drawn: matplotlib is not installed")


if __name__ == "__main__":
    main()
