"""One point of a part: its variants are built, checked against each other, and timed in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.kernels import agreement, ceilings, floors, model, searches, static, timing
from benchmarks.kernels.floors import Ceilings
from benchmarks.kernels.grid import Grid
from benchmarks.kernels.model import Found
from benchmarks.kernels.operations import OPERATIONS, Case, Shape, disagreement
from benchmarks.kernels.searches import Search, Variant
from benchmarks.kernels.table import Point
from benchmarks.kernels.timing import Skip, Timing
from kernels.trie import Trie
from model.grm.decoder import Context, Decoder
from model.grm.presets import GrmConfig

Row = dict[str, object]
GATE_BATCH, GATE_CONTEXT = 2, 64
"""Shape of the check in float32 that comes before a search is timed in another type."""


@dataclass(frozen=True)
class Run:
    """A search that is right, and the most memory that the GPU held while it was built and run once."""

    search: Search
    memory_mib: float | None


@dataclass
class Bench:
    """Where and what is measured; models and catalogues are made once."""

    config: GrmConfig
    grid: Grid
    device: torch.device
    dtype: torch.dtype
    ceilings: Ceilings | None = None
    _gated: dict[tuple[str, str, int], str | Skip | None] = field(default_factory=dict)

    @cached_property
    def decoder(self) -> Decoder:
        return model.decoder(self.config, self.device, self.dtype)

    @cached_property
    def exact(self) -> Decoder:
        """The same weights in float32, after their rounding to `dtype`."""
        return model.decoder(self.config, self.device, self.dtype).float()

    @cached_property
    def catalogue(self) -> Tensor:
        return static.catalogue(self.grid.catalogue, self.config.codes[0], self.config.levels)

    @cached_property
    def trie(self) -> Trie:
        return Trie.build(self.catalogue.to(self.device), self.config.codes)

    @cached_property
    def tables(self) -> static.Static:
        return static.Static(self.catalogue.to(self.device), self.config.codes[0])

    def measure(self, point: Point, seconds: float) -> list[Row]:
        """Rows of a point, timed for about `seconds`."""
        levels, cuda = self.config.levels, self.device.type == "cuda"
        if point.part == "ceilings":
            return self._ceiling(point, seconds)
        if point.part == "operations":
            return self._operation(point, seconds)
        if point.part == "search":
            key = point[2:] in self.grid.key
            return self._searches(point, searches.unconstrained(point.width, levels, self.grid.narrow, key=key, cuda=cuda), seconds)
        if point.part == "constrained":
            variants = timing.guarded(lambda: searches.constrained(point.width, levels, self.trie, self.tables, cuda=cuda))
            return [_skipped("all", variants.reason)] if isinstance(variants, Skip) else self._searches(point, variants, seconds)
        return self._searches(point, searches.through_compiler(point.case, point.width, levels, cuda=cuda), seconds)

    def _ceiling(self, point: Point, seconds: float) -> list[Row]:
        found, amount = ceilings.measure(point.case, self.device, self.dtype, seconds)
        if isinstance(found, Skip):
            return [_skipped(point.case, found.reason)]
        rate = amount / found.p50_us * 1e6
        return [_timed(point.case, found) | {"note": f"{rate:.4g} {'B/s' if point.case == 'copy' else 'FLOP/s'}"}]

    def _operation(self, point: Point, seconds: float) -> list[Row]:
        shape = Shape(self.config, point.batch, point.width, point.context, self.device, self.dtype)
        case = timing.guarded(lambda: OPERATIONS[point.case](shape))
        if isinstance(case, Skip):
            return [_skipped("all", case.reason)]
        errors = timing.guarded(lambda: self._wrong(case))
        if isinstance(errors, Skip):
            return [_skipped("all", f"ours: {errors.reason}")]
        calls = {name: variant.call for name, variant in case.variants.items() if name not in errors}
        times = timing.compare(calls, model.INPUT_SETS, self.device, seconds, graphs=True)
        floor = case.work.floor_us(self.ceilings) if self.ceilings else None
        return _rows({**times, **errors}, dict.fromkeys(case.variants, floor), 0)

    def _wrong(self, case: Case) -> dict[str, str | Skip]:
        """Which variants of an operation are not right."""
        ours = case.variants["ours"].call(0)
        errors: dict[str, str | Skip] = {}
        for name, variant in case.variants.items():
            error = timing.guarded(lambda v=variant: disagreement(v.pairs(v.call(0), ours), self.dtype))  # type: ignore[misc]
            if error is not None:
                errors[name] = error
        return errors

    def _searches(self, point: Point, variants: Mapping[str, Variant], seconds: float) -> list[Row]:
        errors = self._gate(point, variants)
        left = {name: variant for name, variant in variants.items() if name not in errors}
        inputs = timing.guarded(lambda: model.contexts(self.config, point.batch, point.context, self.device, self.dtype))
        if isinstance(inputs, Skip):
            return [_skipped("all", inputs.reason)]
        runs, wrong = self._checked(left, self.decoder, inputs, self.dtype)
        times = timing.compare({name: run.search for name, run in runs.items()}, model.INPUT_SETS, self.device, seconds, graphs=False)
        for name, result in times.items():
            if isinstance(result, Timing) and result.memory_mib is not None:
                # A graph takes its memory when it is made, and none when it runs.
                times[name] = replace(result, memory_mib=max(result.memory_mib, runs[name].memory_mib or 0.0))
        floor = {name: self._floor(point, variant.widths) for name, variant in variants.items()}
        return _rows({**times, **errors, **wrong}, floor, point.batch)

    def _gate(self, point: Point, variants: Mapping[str, Variant]) -> dict[str, str | Skip]:
        """What fails in float32 at a small shape; compiled ones are left out, whose source is what is compiled."""
        if self.dtype == torch.float32 or point.part == "compiled":
            return {}
        wanted = {name: variant for name, variant in variants.items() if (point.part, name, point.width) not in self._gated}
        if set(wanted) - {"ours"}:
            inputs = model.contexts(self.config, GATE_BATCH, GATE_CONTEXT, self.device, torch.float32)
            _, errors = self._checked({"ours": variants["ours"], **wanted}, self.exact, inputs, torch.float32)
            for name in wanted:
                error = errors.get(name)
                self._gated[point.part, name, point.width] = f"in float32: {error}" if isinstance(error, str) else error
        failed = {name: self._gated.get((point.part, name, point.width)) for name in variants}
        return {name: error for name, error in failed.items() if error is not None}

    def _checked(
        self, variants: Mapping[str, Variant], decoder: Decoder, inputs: Sequence[Context], dtype: torch.dtype
    ) -> tuple[dict[str, Run], dict[str, str | Skip]]:
        """The searches that are right, and what is wrong with the others."""
        judge = agreement.Judge(self.exact, model.last(inputs[0]), dtype)
        runs: dict[str, Run] = {}
        errors: dict[str, str | Skip] = {}
        expected: Found | None = None
        for name, variant in variants.items():
            made = timing.guarded(lambda v=variant: timing.peak_mib(lambda: _first(v.build(decoder, list(inputs))), self.device))  # type: ignore[misc]
            if isinstance(made, Skip):
                errors[name] = made
                continue
            (run, found), memory = made
            if variant.same and name != "ours" and expected is None:
                errors[name] = Skip("not checked: ours has no result here")
                continue
            error = judge.error(found, expected if variant.same else None)
            if error is not None:
                errors[name] = error
                continue
            runs[name] = Run(run, memory)
            expected = found if name == "ours" else expected
        return runs, errors

    def _floor(self, point: Point, widths: tuple[int, ...]) -> float | None:
        if self.ceilings is None:
            return None
        return floors.search_us(self.config, point.batch, widths, point.context, self.dtype.itemsize, self.ceilings)


def _first(search: Search) -> tuple[Search, Found]:
    """A search and what it finds for the last request of input set 0, kept from being overwritten."""
    sids, score = search(0)
    return search, (sids[-1:].clone(), score[-1:].clone())


def _rows(results: Mapping[str, Timing | Skip | str], floor_us: Mapping[str, float | None], batch: int) -> list[Row]:
    """A row per variant: a time, why there is none, or what is wrong. batch: 0 where requests per second mean nothing."""
    ours = results.get("ours")
    rows: list[Row] = []
    for name, result in results.items():
        if isinstance(result, str):
            rows.append({"variant": name, "status": "wrong", "note": result})
        elif isinstance(result, Skip):
            rows.append(_skipped(name, result.reason))
        else:
            row = _timed(name, result)
            if floor := floor_us[name]:
                row |= {"floor_us": floor, "over_floor": result.p50_us / floor}
            if isinstance(ours, Timing):
                row["over_ours"] = result.p50_us / ours.p50_us
            if batch:
                row["requests_per_s"] = 1e6 * batch / result.p50_us
            rows.append(row)
    return rows


def _timed(name: str, result: Timing) -> Row:
    return {
        "variant": name,
        "status": "ok",
        "p50_us": result.p50_us,
        "p99_us": result.p99_us,
        "samples": result.samples,
        "method": result.method,
        "memory_mib": result.memory_mib,
    }


def _skipped(name: str, reason: str) -> Row:
    return {"variant": name, "status": "skipped", "note": reason}
