"""How wide to search: a ladder of widths per level, and which rung a batch gets by the load, by the time left and by the quality it keeps.

Every level pays for the beams that the one before it kept, so a rung narrows the first levels first (GR4AD's dynamic beam width) and
leaves the last one as it is: nothing follows it. Load and deadline choose the rung (GR4AD's traffic-aware beam search). What a rung costs
is learnt from the batches that are answered, and which rungs may be used is for `serving.agreement` to say. Under load a rung has to pay:
the people who are answered in the same time, times what each gets of the full search's results, must not be less than with the full search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final

Widths = tuple[int, int, int, int]
"""Beams kept after the first level, the second, each one between that and the last, and the last: the results."""

NARROWEST: Final = 8
SHARE_OF_SLACK: Final = 0.5  # of the time that is left, what a batch may plan to use: the rest is for being wrong
MOST_OF_SLACK: Final = 0.75  # what it may plan to use before its answers count as late
FIRST_GUESS_S: Final = {"float32": (0.0038, 0.00057, 0.000066), "bfloat16": (0.0035, 0.00087, 0.000004)}
"""Of a batch, of a row and of a row's beam, by the precision of the search: the laptop model on a CPU, until batches were timed."""
PACE, SHAPE = 0.1, 0.02  # how far one batch moves the pace of the machine, and its own estimate beside the others


class Verdict(Enum):
    """What the gate of quality says of a rung."""

    ALLOWED = "it keeps enough of the full search's results"
    UNKNOWN = "too little is known of it, or it does not pay: better than a degraded answer"
    REFUSED = "it keeps too little"


def ladder(widest: int) -> list[Widths]:
    """Rungs from the full search down: all levels as wide, the first two narrowed, all but the last halved, …, as far as 8 beams.

    All give as many results, and none has more beams at any level than the one before.
    """
    width, rungs = widest, [uniform(widest)]
    while width // 2 >= NARROWEST:
        half = width // 2
        rungs += [(half, width * 3 // 4, width, widest), (half, half, half, widest)]
        width = half
    return rungs


def uniform(width: int) -> Widths:
    return width, width, width, width


def per_level(widths: Widths, levels: int) -> list[int]:
    """A width for each level."""
    first, second, further, last = widths
    return [*[first, second, *[further] * levels][: levels - 1], last]


def name(widths: Widths) -> str:
    """A rung in a metric's label: `16-24-32-32`."""
    return "-".join(map(str, widths))


class Costs:
    """Seconds of a batch by rung and rows, as exponentially weighted averages of what batches took.

    An estimate is the pace of the machine, which every batch tells about, times a shape, which only batches of that rung and size do. So a
    rung that was not used for long does not keep the estimate of a slower hour. Rows are rounded up to powers of two.
    """

    def __init__(self, rungs: Sequence[Widths], max_batch: int, precision: str = "float32") -> None:
        batch_s, row_s, beam_s = FIRST_GUESS_S[precision]
        rows_s = [row_s + beam_s * sum(widths[:3]) / 3 for widths in rungs]
        self._pace = 1.0
        self._shape = [[batch_s + one_s * 2**size for size in range(_size(max_batch) + 1)] for one_s in rows_s]

    def __call__(self, rung: int, rows: int) -> float:
        """Never less than for a narrower rung or fewer rows, whatever noise was measured."""
        return self._pace * max(max(shape[: _size(rows) + 1]) for shape in self._shape[rung:])

    def learn(self, rung: int, rows: int, took_s: float) -> None:
        """Count what a batch took; one that took many times the estimate counts as four times."""
        size, shape = _size(rows), self._shape[rung]
        error = min(4.0, max(0.25, took_s / (self._pace * shape[size]))) - 1
        self._pace *= 1 + PACE * error
        shape[size] *= 1 + SHAPE * error


def _size(rows: int) -> int:
    """log2, rounded up."""
    return (rows - 1).bit_length()


def choose(costs_s: Sequence[float], verdicts: Sequence[Verdict], slack_s: float) -> int:
    """The widest allowed rung that fits well into the time, else the narrowest allowed one if it fits at all.

    Where not even that one does, the answers would be degraded: only then one of which too little is known is taken, the widest that
    fits, and where none does the narrowest that is not refused. With less time or higher costs the rung is never a wider one.

    Args:
        costs_s: estimated seconds by rung, none more than those before it.
        verdicts: by rung; the first, the full search, is always allowed.
        slack_s: seconds until the earliest deadline.
    """
    allowed = [rung for rung, verdict in enumerate(verdicts) if verdict is Verdict.ALLOWED]
    for rung in allowed:
        if costs_s[rung] <= slack_s * SHARE_OF_SLACK:
            return rung
    most_s = slack_s * MOST_OF_SLACK
    if costs_s[allowed[-1]] <= most_s:
        return allowed[-1]
    return next((rung for rung in _usable(verdicts) if costs_s[rung] <= most_s), _usable(verdicts)[-1])


def _usable(verdicts: Sequence[Verdict]) -> list[int]:
    return [rung for rung, verdict in enumerate(verdicts) if verdict is not Verdict.REFUSED]


class WidthPolicy:
    """The rung of each batch.

    Args:
        rungs: from the full search down.
        verdicts: on each of them, now.
        shares: of the full search's results, what each of them finds, now; only those of allowed ones are looked at.
        max_batch: rows at a time.
        precision: of the search, for the first guess of its costs.
    """

    def __init__(
        self,
        rungs: Sequence[Widths],
        verdicts: Callable[[], Sequence[Verdict]],
        shares: Callable[[], Sequence[float]],
        max_batch: int,
        precision: str = "float32",
    ) -> None:
        self.rungs = list(rungs)
        self.max_batch = max_batch
        self.costs = Costs(rungs, max_batch, precision)
        self._verdicts, self._shares = verdicts, shares

    def quickest_s(self, rows: int) -> float:
        """Seconds that so many requests take at least."""
        return self.costs(_usable(self._verdicts())[-1], rows)

    def rung(self, rows: int, waiting: int, slack_s: float) -> int:
        """For a batch of `rows` whose earliest deadline is in `slack_s`, while `waiting` others want to be answered after it."""
        most = self.max_batch
        costs = [self.costs(rung, rows) + waiting * self.costs(rung, most) / most for rung in range(len(self.rungs))]
        return choose(costs, self._paying(), slack_s)

    def _paying(self) -> list[Verdict]:
        """The verdicts; an allowed rung that does not pay is only better than a degraded answer."""
        most = [self.costs(rung, self.max_batch) for rung in range(len(self.rungs))]
        return [
            Verdict.UNKNOWN if verdict is Verdict.ALLOWED and share * most[0] < cost else verdict
            for verdict, share, cost in zip(self._verdicts(), self._shares(), most, strict=True)
        ]
