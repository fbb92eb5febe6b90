"""From predictions to the table, its intervals, and the curve of quality against publish interval."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.prequential import statistics
from benchmarks.prequential.run import STEP_MS, Plan
from benchmarks.prequential.snapshots import DEPTHS, HOUR_MS, INTERVALS
from model.online.metrics import auc, calibration, normalised_entropy

STREAMING = INTERVALS[0].name


def summary(records: Sequence[Mapping[str, Any]], plan: Plan) -> dict[str, Any]:
    """All figures with their intervals, the paired differences to `streaming`, and recall by day."""
    _, owner = np.unique([record["user"] for record in records], return_inverse=True)
    users = int(owner.max(initial=-1)) + 1
    positives = [place for place, record in enumerate(records) if record["hits"]]
    result: dict[str, Any] = {
        "predicted": {"impressions": len(records), "users": users, "positively_watched": len(positives)},
        "publish_interval_h": {
            interval.name: STEP_MS / HOUR_MS if interval.hours == 0 else interval.hours if math.isfinite(interval.hours) else None
            for interval in INTERVALS
        },
    }
    if not positives:
        return result
    day = np.array([(record["ts"] - plan.start_ms) // (24 * HOUR_MS) + 1 for record in records])
    methods = list(records[positives[0]]["hits"])
    by_day: dict[str, dict[str, dict[str, float]]] = {}
    for column, depth in enumerate(DEPTHS):
        hits = {name: np.array([records[place]["hits"][name][column] for place in positives]) for name in methods}
        rounds = {name: statistics.mean_rounds(of, owner[positives], users) for name, of in hits.items()}
        means = {name: float(of.mean()) for name, of in hits.items()}
        result[f"recall_at_{depth}"] = statistics.compared(means, rounds, STREAMING)
        by_day[f"recall_at_{depth}"] = {
            name: {str(one): round(float(of[day[positives] == one].mean()), 6) for one in np.unique(day[positives])}
            for name, of in hits.items()
        }
    result["by_day"] = by_day
    outcome = np.array([record["long_view"] for record in records], np.float64)
    predicted = {name: np.array([record["probability"][name] for record in records]) for name in records[0]["probability"]}
    areas = {name: auc(of, outcome.astype(np.int64)) for name, of in predicted.items()}
    ratios = {name: calibration(of, outcome.astype(np.int64)) for name, of in predicted.items()}
    area_rounds = {name: statistics.auc_rounds(of, outcome, owner, users) for name, of in predicted.items()}
    ratio_rounds = {name: statistics.ratio_rounds(of, outcome, owner, users) for name, of in predicted.items()}
    result["long_view_auc"] = statistics.compared({name: value or math.nan for name, value in areas.items()}, area_rounds, STREAMING)
    result["long_view_calibration"] = {
        name: {
            "predicted_over_observed": round(ratios[name] or math.nan, 6),
            "interval": statistics.interval(ratio_rounds[name]),
            "expected_calibration_error": round(statistics.calibration_error(of, outcome), 6),
            "normalised_entropy": round(normalised_entropy(of, outcome.astype(np.int64)) or math.nan, 6),
        }
        for name, of in predicted.items()
    }
    return result


def table(result: Mapping[str, Any]) -> str:
    """The rows as text for a terminal."""
    asked = result["predicted"]
    lines = [
        f"{asked['impressions']:,} impressions of {asked['users']:,} users predicted, {asked['positively_watched']:,} positively watched; "
        f"{result['seconds']:,.0f} s, {result['peak_bytes'] / 2**30:.1f} GiB",
        "",
        f"{'':<20} {'recall@10':>24} {'recall@50':>24} {'long-view AUC':>24} {'calibration':>12}",
    ]
    if "recall_at_10" not in result:
        return "\n".join([*lines, "nothing was watched positively"])
    measured = [f"recall_at_{depth}" for depth in DEPTHS] + ["long_view_auc"]
    names = list(dict.fromkeys([interval.name for interval in INTERVALS] + list(result["recall_at_10"]) + list(result["long_view_auc"])))
    for name in names:
        cells = [_cell(result[metric].get(name)) for metric in measured]
        ratio = result["long_view_calibration"].get(name)
        lines.append(
            f"{name:<20} {cells[0]} {cells[1]} {cells[2]} {'–' if ratio is None else format(ratio['predicted_over_observed'], '.3f'):>12}"
        )
    lines += ["", "paired difference to streaming"]
    for name in names:
        if name != STREAMING:
            cells = [_cell(result[metric].get(name), "difference") for metric in measured]
            lines.append(f"{name:<20} {cells[0]} {cells[1]} {cells[2]}")
    return "\n".join(lines)


def _cell(found: Mapping[str, Any] | None, of: str = "value") -> str:
    if found is None:
        return f"{'–':>24}"
    low, high = found["interval" if of == "value" else "difference_interval"]
    sign = "" if of == "value" else "+"
    return f"{found[of]:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]".rjust(24)


def _short(hours: float | None) -> str:
    if hours is None:
        return "frozen"
    return f"{hours:.0f} h" if hours >= 1 else f"{hours * 60:.0f} min"


def plot(result: Mapping[str, Any], path: Path) -> Path | None:
    """Draw recall and AUC against the publish interval, with intervals; None where matplotlib is not installed or nothing was measured."""
    if importlib.util.find_spec("matplotlib") is None or "recall_at_10" not in result:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    hours = result["publish_interval_h"]
    names = [interval.name for interval in INTERVALS]
    place = range(len(names))
    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for panel, (metric, title) in zip(
        panels, (("recall_at_10", "recall@10"), ("recall_at_50", "recall@50"), ("long_view_auc", "long-view AUC")), strict=True
    ):
        values = [result[metric][name]["value"] for name in names]
        bounds = np.array([result[metric][name]["interval"] for name in names]).T
        panel.errorbar(place, values, yerr=np.abs(bounds - values), marker="o", capsize=3, color="black")
        for name, style in (("popularity", ":"), ("last author", "--"), ("last tag", "-."), ("user and item rates", ":")):
            if name in result[metric]:
                panel.axhline(result[metric][name]["value"], linestyle=style, color="grey", label=name)
        panel.set_xticks(place, [_short(hours[name]) for name in names])
        panel.set_title(title)
        panel.set_xlabel("publish interval")
        panel.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    return path
