"""The samples job in live traffic: nothing but heartbeats follows an impression, and the job is told to stop and starts again."""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path

import pytest

from jobs.process import read_ready
from streaming import topics
from tests.conftest import await_true
from tests.integration.samples_scenario import Stream, impression, stream

pytestmark = pytest.mark.integration
LABEL_S, DISORDER_S, CONTRACT_S = 2.0, 1.0, 3.0
QUIET_S = 0.25  # between the heartbeats of the features topic


def beat_history(here: Stream, over: threading.Event) -> None:
    """The clock of the features topic, which the features job gives in a whole system."""
    while not over.wait(QUIET_S):
        here.history(-1, int(time.time() * 1000))
        here.producer.flush()


def seconds_until_sampled(here: Stream, number: int) -> float:
    shown = impression(number, int(time.time() * 1000))
    here.send(topics.IMPRESSIONS, shown)
    here.producer.flush()
    here.samples.wait(lambda rows: shown.impression_id in here.initial_ids(), f"sample {number}\n{here.log('samples')}", 90)
    return time.time() - shown.ts / 1000


def test_samples_come_in_time_when_nothing_follows_and_a_stopped_job_goes_on(tmp_path: Path) -> None:
    with stream(tmp_path, label_window_s=LABEL_S, disorder_s=DISORDER_S) as here:
        over = threading.Event()
        clock = threading.Thread(target=beat_history, args=(here, over))
        clock.start()
        try:
            here.start("inspect")
            job = here.start("samples", "run")
            await_true(lambda: bool(read_ready(here.home, "flink-samples")), "samples job", 180, job)
            seconds_until_sampled(here, 0)
            # The median: one stall of a busy machine says nothing about the watermark.
            assert statistics.median(seconds_until_sampled(here, n) for n in range(1, 6)) <= LABEL_S + DISORDER_S + CONTRACT_S

            job.terminate()
            assert job.wait(60) == 0, here.log("samples")
            here.send(topics.IMPRESSIONS, impression(6, int(time.time() * 1000)))
            here.start("samples", "run")
            seconds_until_sampled(here, 7)
            here.samples.wait(lambda rows: len(here.initial_ids()) == 8, "the sample of the pause", 30)
            assert sorted(row["impression_id"] for row in here.samples.rows) == sorted(f"imp{n}" for n in range(8))
            assert not here.letters.read(1.0)
        finally:
            over.set()
            clock.join()
