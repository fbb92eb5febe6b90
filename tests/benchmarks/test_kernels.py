"""The kernels' benchmark at tiny shapes: what it compares is equal, what is wrong is not timed, and a run that ended early goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.kernels import agreement, eager, floors, grid, model, report, run, searches, timing
from benchmarks.kernels.floors import Ceilings
from benchmarks.kernels.grid import Grid
from benchmarks.kernels.operations import OPERATIONS, Shape, disagreement
from benchmarks.kernels.parts import Bench
from benchmarks.kernels.table import AGAIN, Point, Table, read
from model.grm.presets import PRESETS

CPU = torch.device("cpu")
TINY = replace(PRESETS["laptop"], codes=(40,) * 4, d_model=32, layers=2, heads=4, self_groups=2, ffn=48)
SHAPES = Grid(batches=(2,), widths=(6,), contexts=(9,), key=((2, 6, 9),), narrow=(2, 3, 4, 6), catalogue=300)
LEVELS, WIDTH = 4, 6
FACTS = {"device": "a processor", "preset": "laptop", "commit": "abc"}


@pytest.fixture(scope="module", autouse=True)
def _quiet_torch() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(TINY, SHAPES, CPU, torch.float32, Ceilings(flops=1e11, bandwidth=1e10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_way_to_compute_an_operation_gives_the_same(name: str, dtype: torch.dtype) -> None:
    case = OPERATIONS[name](Shape(replace(TINY, codes=(300,) * 4), 2, 6, 9, CPU, dtype))
    ours = case.variants["ours"].call(0)
    errors = {key: disagreement(variant.pairs(variant.call(0), ours), dtype) for key, variant in case.variants.items()}
    assert len(errors) >= 2
    assert not any(errors.values()), errors


def variants(bench: Bench) -> dict[str, searches.Variant]:
    free = searches.unconstrained(WIDTH, LEVELS, SHAPES.narrow, key=False, cuda=False)
    caught = searches.constrained(WIDTH, LEVELS, bench.trie, bench.tables, cuda=False)
    return {**free, "ours in a catalogue": caught["ours"], "STATIC-style": caught["STATIC-style"]}


@pytest.mark.parametrize(("name", "like"), [("eager naive", "ours"), ("eager smart", "ours"), ("STATIC-style", "ours in a catalogue")])
def test_a_baseline_finds_the_sids_and_scores_that_our_search_finds(bench: Bench, name: str, like: str) -> None:
    inputs = model.contexts(TINY, 2, 9, CPU, torch.float32)
    made = variants(bench)
    sids, score = made[name].build(bench.decoder, inputs)(1)
    expected, expected_score = made[like].build(bench.decoder, inputs)(1)
    assert torch.equal(sids, expected)
    torch.testing.assert_close(score, expected_score, atol=1e-5, rtol=0)


def test_a_search_in_a_catalogue_finds_only_what_is_in_it(bench: Bench) -> None:
    sids, _ = variants(bench)["STATIC-style"].build(bench.decoder, model.contexts(TINY, 2, 9, CPU, torch.float32))(0)
    known = {tuple(row) for row in bench.catalogue.tolist()}
    assert {tuple(row) for row in sids.flatten(0, 1).tolist()} <= known


@pytest.mark.integration
def test_hugging_face_generate_finds_what_our_search_finds(bench: Bench) -> None:
    inputs = model.contexts(TINY, 2, 9, CPU, torch.float32)
    sids, score = searches.generated(WIDTH, LEVELS).build(bench.decoder, inputs)(1)
    expected, expected_score = searches.ours((WIDTH,) * LEVELS).build(bench.decoder, inputs)(1)
    assert torch.equal(sids, expected)
    torch.testing.assert_close(score, expected_score, atol=1e-5, rtol=0)


@pytest.mark.integration
def test_a_compiled_baseline_finds_what_our_search_finds(bench: Bench) -> None:
    rows = bench.measure(Point("compiled", "torch.compile, smart", 2, WIDTH, 9), 0.01)
    assert {row["variant"]: row["status"] for row in rows} == {"ours": "ok", "torch.compile": "ok"}, rows


def judge() -> tuple[agreement.Judge, model.Found]:
    decoder = model.decoder(TINY, CPU, torch.float32)
    context = model.contexts(TINY, 1, 9, CPU, torch.float32, count=1)[0]
    return agreement.Judge(decoder, context, torch.float32), eager.search(decoder, context, (WIDTH,) * LEVELS, eager.NAIVE)


def spoiled(kind: str, sids: Tensor, score: Tensor) -> model.Found:
    if kind == "a score that its SID does not have":
        return sids, score + torch.tensor([0.01, 0.0, 0.0, 0.0, 0.0, 0.0])
    if kind == "one SID twice":
        return sids[:, [0, 0, 2, 3, 4, 5]], score[:, [0, 0, 2, 3, 4, 5]]
    return sids.flip(1), score.flip(1)


@pytest.mark.parametrize("kind", ["a score that its SID does not have", "one SID twice", "the wrong order"])
def test_the_judge_refuses(kind: str) -> None:
    judged, found = judge()
    assert judged.error(found, found) is None
    assert judged.error(spoiled(kind, *found), found)


def test_the_judge_refuses_sids_that_are_worth_less() -> None:
    judged, found = judge()
    worse = eager.search(judged.model, judged.context, (1, 1, 1, WIDTH), eager.NAIVE)
    assert judged.error(worse, None) is None
    assert "worth" in str(judged.error(worse, found))


def test_what_is_wrong_gets_no_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def unlucky(logits: Tensor, cumulative: Tensor, state: Tensor, width: int, level: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        score, parent, token, state = eager.row_topk(logits, cumulative, state, width, level)
        return score, parent, (token + 1) % logits.shape[2], state

    monkeypatch.setattr(eager, "SMART", eager.Style(repeat=False, step=unlucky))
    rows = {str(row["variant"]): row for row in bench.measure(Point("search", "whole search", 2, WIDTH, 10), 0.01)}
    assert rows["eager smart"]["status"] == "wrong" and "p50_us" not in rows["eager smart"]
    assert rows["eager naive"]["status"] == "ok" and float(str(rows["eager naive"]["p50_us"])) > 0


def test_a_variant_that_runs_out_of_memory_is_skipped_with_the_reason() -> None:
    def greedy(_: int) -> None:
        raise torch.cuda.OutOfMemoryError

    found = timing.compare({"ours": lambda i: i, "greedy": greedy}, 4, CPU, 0.01, graphs=False)
    assert found["greedy"] == timing.Skip("out of memory") and isinstance(found["ours"], timing.Timing)


def test_floors_of_a_request_are_the_known_ones() -> None:
    full = replace(PRESETS["reference"], self_groups=12, context_layers=7, context_splits=2, context_groups=12)
    works = floors.search(full, 64, (512,) * 4, 512, 2)
    assert sum(work.flops for work in works) / 64e9 == pytest.approx(213.9, abs=0.1)
    assert floors.search_us(full, 64, (512,) * 4, 512, 2, Ceilings(790e12, 4.3e12)) / 64 == pytest.approx(274, abs=1)


def test_the_grid_is_complete_and_begins_with_its_key_points() -> None:
    points = grid.points("search", grid.GRIDS["reference"])
    assert len(set(points)) == len(points) == 7 * 4 * 3
    assert [point[2:] for point in points[:3]] == list(grid.GRIDS["reference"].key)


def test_a_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    done, again = Point("search", "whole search", 1, 6, 9), Point("search", "whole search", 2, 6, 9)
    table = Table(tmp_path, "search", FACTS)
    table.put(
        done, [{"variant": "ours", "status": "ok", "p50_us": 12.0}, {"variant": "greedy", "status": "skipped", "note": "out of memory"}]
    )
    table.put(again, [{"variant": "all", "status": "skipped", "note": AGAIN + "out of time"}])
    table = Table(tmp_path, "search", FACTS)
    assert table.finished(done) and not table.finished(again)
    table.put(again, [{"variant": "ours", "status": "ok", "p50_us": 13.0}])
    assert [row["p50_us"] for row in Table(tmp_path, "search", FACTS).rows] == ["12", "", "13"]


def test_results_of_two_machines_are_not_mixed(tmp_path: Path) -> None:
    Table(tmp_path, "search", FACTS).put(Point("search", "whole search", 1, 6, 9), [{"variant": "ours", "status": "ok"}])
    with pytest.raises(run.Unable, match="results of commit abc: use another --out"):
        Table(tmp_path, "search", FACTS | {"commit": "def"})


def test_a_run_measures_reports_and_skips_what_it_has_no_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(run.PRESETS, "laptop", TINY)
    monkeypatch.setitem(run.GRIDS, "laptop", SHAPES)
    common = ["--out", str(tmp_path), "--device", "cpu", "--preset", "laptop", "--part"]
    ceiling = Table(tmp_path, "ceilings", run.machine.facts(CPU, "laptop", torch.float32))
    for case, rate in (("copy", "1e10 B/s"), ("product", "1e11 FLOP/s")):
        ceiling.put(Point("ceilings", case, 0, 0, 0), [{"variant": case, "status": "ok", "note": rate}])
    assert run.main([*common, "constrained", "--minutes", "0.001"]) == 0
    assert run.main([*common, "operations", "--minutes", "-1"]) == 0
    rows = {row["variant"]: row for row in read(tmp_path / "constrained.csv")}
    assert rows["STATIC-style"]["status"] == "ok" and float(rows["STATIC-style"]["over_floor"]) > 1 and rows["ours"]["commit"]
    assert run.main(["--report", "--out", str(tmp_path)]) == 0
    assert "6 of them skipped, 0 wrong" in capsys.readouterr().out


def test_a_part_that_dies_is_started_again_behind_the_point_that_killed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {"ceilings": [0], "operations": [-6, 0], "search": [None], "constrained": [0], "compiled": [0]}
    monkeypatch.setitem(run.GRIDS, "laptop", SHAPES)
    monkeypatch.setattr(run, "_process", lambda given, part, minutes: codes[part].pop(0))
    run.main(["--all", "--out", str(tmp_path), "--device", "cpu", "--preset", "laptop"])
    notes = [(row["part"], row["case"], row["note"]) for row in read(tmp_path / run.ALL)]
    assert notes == [("operations", "proj_pyramid", "its process ended with -6"), ("search", "whole search", AGAIN + "out of time")]
    assert not any(codes.values())


def test_kill_rules_speak_when_they_are_broken() -> None:
    def row(case: str, variant: str, p50_us: float) -> dict[str, str]:
        run = {"device": "NVIDIA H200", "preset": "reference", "commit": "abc", "part": "operations", "status": "ok", "floor_us": ""}
        return run | {"case": case, "batch": "1", "width": "512", "context": "512", "variant": variant, "p50_us": str(p50_us)}

    told = report.text([row("proj_pyramid", "ours", 14.0), row("proj_pyramid", "linear", 10.0), row("beam_select", "ours", 40.0)])
    outcome = {line[:52].rstrip(): line.split("  ")[-1] for line in told.splitlines()}
    assert outcome["proj_pyramid over a plain product, batch 1"] == "kill: plain product and a separate pass of maxima"
    assert outcome["beam_select, batch 1"] == "holds"
    assert outcome["whole search, batch 64"] == "not measured"


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.main(["--all", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == run.machine.NO_GPU + "\n"


@pytest.mark.integration
def test_it_needs_nothing_but_torch() -> None:
    missing = "torchrec", "fbgemm_gpu", "triton", "transformers", "psutil", "pydantic", "numpy", "redis", "jobs"
    hide = f"import sys; sys.modules.update(dict.fromkeys({missing!r}))"
    code = f"{hide}; from benchmarks.kernels import run; run.main(['--report', '--out', 'none'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "no results\n", done.stderr
