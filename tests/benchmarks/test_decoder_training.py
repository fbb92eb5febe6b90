"""Training of the dense part: every way learns the same, its floor is the step's products, and it needs nothing but torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import decoder_training
from benchmarks.decoder_training import WAYS, Dense, Trainee, Way, batch_of, features, floor, measure
from benchmarks.products import Recorded
from model.grm.context import ContextProcessor
from model.grm.inputs import feature_names
from model.grm.presets import PRESETS

CPU = torch.device("cpu")
TINY = replace(PRESETS["laptop"], codes=(40,) * 4, d_model=32, layers=2, heads=4, self_groups=2, ffn=48, context_hidden=24, history=5)
EAGER = [way for way in WAYS if not (way.tf32 or way.compiled)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize("way", EAGER, ids=[way.name for way in EAGER])
def test_a_way_learns_a_batch_by_heart(way: Way) -> None:
    trainee, batch = Trainee(TINY, way, CPU), batch_of(TINY, 3, CPU, seed=1)
    losses = [trainee.step(batch).item() for _ in range(150)]
    assert losses[0] == pytest.approx(torch.tensor(40.0).log().item(), abs=0.2)  # heads start flat: a uniform guess
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in trainee.model.parameters())


def test_bfloat16_says_what_float32_says() -> None:
    batch = batch_of(TINY, 7, CPU, seed=2)
    float32, bfloat16 = (Trainee(TINY, way, CPU).step(batch).item() for way in EAGER)
    assert bfloat16 != float32
    assert bfloat16 == pytest.approx(float32, rel=1e-2)


def test_the_dense_part_has_the_models_shapes() -> None:
    real = {name: tensor.shape for name, tensor in ContextProcessor(TINY).named_parameters() if not name.startswith("tables.")}
    ours = {name: tensor.shape for name, tensor in Dense(TINY).named_parameters() if not name.startswith("decoder.")}
    assert ours == real
    assert features(TINY) == len(feature_names(TINY))


def test_the_floor_has_three_products_for_every_one_of_the_forward_pass() -> None:
    trainee, batch = Trainee(TINY, WAYS[0], CPU), batch_of(TINY, 3, CPU, seed=3)
    with torch.no_grad(), Recorded() as forward:
        trainee.model(batch)
    with Recorded() as step:
        trainee.step(batch)
    # Widen and project; four of cross-attention, four of self-attention and two of the network in a layer; a head per level.
    assert len(forward.calls) == 2 + 10 * TINY.layers + TINY.levels
    assert len(step.calls) == 3 * len(forward.calls)
    floor(trainee, batch)(0)


def test_a_way_that_fails_has_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainee.step

    def broken(self: Trainee, batch: decoder_training.Batch) -> torch.Tensor:
        if self.way.bfloat16:
            raise RuntimeError("no compiler")
        return step(self, batch)

    monkeypatch.setattr(Trainee, "step", broken)
    float32, bfloat16 = measure("tiny", TINY, (2,), EAGER, CPU, 0.05)
    assert float32.samples_per_s and not float32.reason
    assert bfloat16.samples_per_s is None and bfloat16.reason == "RuntimeError: no compiler"


def test_it_writes_a_row_for_every_way_and_batch_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "laptop", TINY)
    out = tmp_path / "rows.json"
    arguments = ["--device", "cpu", "--preset", "laptop", "--batch", "2", "--batch", "3", "--seconds", "0.05", "--out", str(out)]
    assert decoder_training.main([*arguments, "--way", "float32", "--way", "bfloat16"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["batch"], row["way"]) for row in rows] == [(2, "float32"), (2, "bfloat16"), (3, "float32"), (3, "bfloat16")]
    assert all(row["samples_per_s"] > 0 and row["floor_samples_per_s"] > 0 for row in rows)


@pytest.mark.integration
def test_it_needs_nothing_but_torch() -> None:
    missing = "torchrec", "fbgemm_gpu", "triton", "psutil", "pydantic", "numpy", "redis", "jobs"
    code = f"import sys; sys.modules.update(dict.fromkeys({missing!r})); from benchmarks import decoder_training as program; program.main()"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "bfloat16 compiled" in done.stdout, done.stderr
