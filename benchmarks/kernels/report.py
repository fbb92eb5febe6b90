"""What the results say: predictions beside outcomes, and the rules by which an operation is replaced by the library's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.kernels import floors
from benchmarks.kernels.floors import Ceilings
from benchmarks.kernels.searches import RECORDED
from model.grm.presets import PRESETS

Rows = Sequence[dict[str, str]]
SEARCH, CATALOGUE = "whole search", "search in a catalogue"
BEST = ("eager naive", "eager smart", "torch.compile")
"""What counts as plain torch."""


@dataclass(frozen=True)
class Claim:
    """A figure with what was predicted of it before it was measured.

    Attributes:
        value: from the rows, None where they lack it.
        bound: it holds up to here (`most`) or from here on.
        otherwise: what follows where it does not hold.
    """

    what: str
    predicted: str
    value: Callable[[Rows], float | None]
    bound: float
    unit: str
    most: bool = True
    otherwise: str = "missed"


def time_us(rows: Rows, case: str, batch: int, variant: str = "ours", width: int = 512, context: int = 512) -> float | None:
    """Median microseconds of a variant; the fastest where several rows have it. A search of ours counts as a CUDA graph where it is one."""
    names = (variant, variant.replace("ours", RECORDED, 1))
    found = [
        float(row["p50_us"])
        for row in rows
        if (row["case"], row["batch"], row["width"], row["context"]) == (case, str(batch), str(width), str(context))
        and row["variant"] in names
        and row["status"] == "ok"
    ]
    return min(found, default=None)


def ratio(rows: Rows, case: str, batch: int, above: str, below: str = "ours", **shape: int) -> float | None:
    """Time of one variant over another's."""
    one, other = time_us(rows, case, batch, above, **shape), time_us(rows, case, batch, below, **shape)
    return None if one is None or other is None else one / other


def over_torch(rows: Rows, batch: int) -> float | None:
    """The best that plain torch does over this project's time in the same point, the least of all points."""
    cases = {row["case"] for row in rows if row["part"] in ("search", "compiled")}
    found = [ratio(rows, case, batch, variant) for case in cases for variant in BEST]
    return min((value for value in found if value is not None), default=None)


def over_floor(rows: Rows, batch: int) -> float | None:
    """The whole search over its floor on this device."""
    taken = time_us(rows, SEARCH, batch)
    shape = ("search", str(batch), "512", "512", "ours")
    floors_us = [float(row["floor_us"]) for row in rows if row["floor_us"] and _key(row) == shape]
    return taken / floors_us[0] if taken is not None and floors_us else None


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return row["part"], row["batch"], row["width"], row["context"], row["variant"]


def _rate(rows: Rows) -> float | None:
    taken = time_us(rows, "whole search", 64)
    return None if taken is None else 64e6 / taken


KILL: tuple[Claim, ...] = (
    *(
        Claim(
            f"proj_pyramid over a plain product, batch {batch}",
            "1.1-1.4",
            partial(ratio, case="proj_pyramid", batch=batch, above="ours", below="linear"),
            1.35,
            "x",
            otherwise="kill: plain product and a separate pass of maxima",
        )
        for batch in (1, 8, 64)
    ),
    *(
        Claim(
            f"beam_select, batch {batch}",
            "25-30 us",
            partial(time_us, case="beam_select", batch=batch),
            45.0,
            "us",
            otherwise="kill: counts in two levels",
        )
        for batch in (1, 64)
    ),
    *(
        Claim(
            f"library's product over rmsnorm_linear, batch {batch}",
            "0.8-1.0",
            partial(ratio, case="rmsnorm_linear", batch=batch, above="linear", below="ours"),
            0.95,
            "x",
            most=False,
            otherwise="kill: the library's from this batch on",
        )
        for batch in (8, 64)
    ),
)
MOST_US, LEAST_RATE = 1100.0, 1900.0
"""Of one H200, width 512 and context 512: a request alone, and requests per second at batch 64."""
H200_CEILINGS = Ceilings(flops=790e12, bandwidth=4.3e12)


def _floor_us(batch: int) -> float:
    return floors.search_us(PRESETS["reference"], batch, (512,) * 4, 512, 2, H200_CEILINGS)


# Another GPU is held to the same shares of its own floor.
SHARES: tuple[Claim, ...] = (
    Claim("whole search over its floor, batch 1", "3.6", partial(over_floor, batch=1), MOST_US / _floor_us(1), "x"),
    Claim("whole search over its floor, batch 64", "1.7", partial(over_floor, batch=64), 64e6 / LEAST_RATE / _floor_us(64), "x"),
)
H200: tuple[Claim, ...] = (
    Claim("whole search, batch 1", "1,000 us", partial(time_us, case=SEARCH, batch=1), MOST_US, "us"),
    Claim("whole search, batch 64", "2,300 /s", _rate, LEAST_RATE, "/s", most=False),
)
TARGETS: tuple[Claim, ...] = (
    *(
        Claim(
            f"eager naive over ours, batch {batch}",
            "10",
            partial(ratio, case=SEARCH, batch=batch, above="eager naive"),
            10.0,
            "x",
            most=False,
        )
        for batch in (1, 64)
    ),
    *(
        Claim(f"best of plain torch over ours, batch {batch}", "3", partial(over_torch, batch=batch), 3.0, "x", most=False)
        for batch in (1, 64)
    ),
    *(
        Claim(
            f"widths 512 over 128-256-512, batch {batch}",
            "1.7",
            partial(ratio, case=SEARCH, batch=batch, above="ours", below="ours, widths 128-256-512-512"),
            1.5,
            "x",
            most=False,
        )
        for batch in (1, 64)
    ),
    Claim(
        "a catalogue's cost, batch 64",
        "1.02",
        partial(ratio, case=CATALOGUE, batch=64, above="ours", below="ours, unconstrained"),
        1.05,
        "x",
    ),
)
PREDICTED: tuple[tuple[str, int, str, float], ...] = (
    ("proj_pyramid", 1, "ours", 15.0),
    ("proj_pyramid", 64, "ours", 700.0),
    ("beam_self_attention", 1, "ours", 2.5),
    ("beam_self_attention", 64, "ours", 100.0),
    ("context_attention", 1, "ours", 4.5),
    ("context_attention", 64, "ours", 120.0),
    (SEARCH, 1, "eager smart", 5500.0),
    (SEARCH, 1, "Hugging Face generate", 100_000.0),
    (SEARCH, 64, "ours", 27_000.0),
)
"""Microseconds that were predicted for one H200 without a bound: case, batch, variant."""
LAPTOP: tuple[Claim, ...] = (
    Claim(
        "eager naive over ours, batch 1",
        "3",
        partial(ratio, case=SEARCH, batch=1, above="eager naive", width=32, context=32),
        3.0,
        "x",
        most=False,
    ),
)


def text(rows: Rows) -> str:
    """The report of a folder of results."""
    if not rows:
        return "no results"
    device, preset, commit = rows[0]["device"], rows[0]["preset"], rows[0]["commit"]
    lines = [f"{device}, preset {preset}, commit {commit}", ""]
    if preset == "reference":
        claims = (*KILL, *(H200 if "H200" in device else SHARES), *TARGETS)
    else:
        claims = LAPTOP
    lines += [f"{'':<52} {'predicted':>10} {'bound':>12} {'measured':>12}  outcome"]
    lines += [_line(claim, rows) for claim in claims]
    if preset == "reference":
        lines += ["", f"{'median of one call, width 512, context 512':<52} {'predicted':>10} {'':>12} {'measured':>12}"]
        for case, batch, variant, predicted in PREDICTED:
            taken = time_us(rows, case, batch, variant)
            lines.append(f"{f'{case}, {variant}, batch {batch}':<52} {predicted:>7,.4g} us {'':>12} {_number(taken, 'us'):>12}")
    lines += ["", *_searches(rows)]
    wrong = [row for row in rows if row["status"] == "wrong"]
    lines += [f"WRONG {row['case']}, {row['variant']}, batch {row['batch']}, width {row['width']}: {row['note']}" for row in wrong]
    skipped = Counter((row["part"], row["variant"], row["note"]) for row in rows if row["status"] == "skipped")
    lines += [f"skipped {count} of {part}, {variant}: {note}" for (part, variant, note), count in skipped.items()]
    return "\n".join([*lines, f"{len(rows)} rows, {skipped.total()} of them skipped, {len(wrong)} wrong"])


def _line(claim: Claim, rows: Rows) -> str:
    value = claim.value(rows)
    if value is None:
        outcome = "not measured"
    else:
        outcome = "holds" if (value <= claim.bound if claim.most else value >= claim.bound) else claim.otherwise
    bound = f"{'≤' if claim.most else '≥'} {_number(claim.bound, claim.unit)}"
    return f"{claim.what:<52} {claim.predicted:>10} {bound:>12} {_number(value, claim.unit):>12}  {outcome}"


def _searches(rows: Rows) -> list[str]:
    """Every whole search that was timed."""
    lines = [
        f"{'batch':>5} {'width':>5} {'context':>7}  {'search':<40} {'p50 us':>10} {'p99 us':>10} {'/floor':>7} {'/ours':>6} {'MiB':>8}"
    ]
    for row in rows:
        if row["part"] in ("search", "constrained", "compiled") and row["status"] == "ok":
            name = row["variant"] if row["part"] == "search" else f"{row['case']}: {row['variant']}"
            lines.append(
                f"{row['batch']:>5} {row['width']:>5} {row['context']:>7}  {name:<40} {row['p50_us']:>10} {row['p99_us']:>10} "
                f"{row['over_floor']:>7} {row['over_ours']:>6} {row['memory_mib']:>8}"
            )
    return lines


def _number(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"
