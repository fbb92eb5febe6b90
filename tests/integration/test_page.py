"""The page in a real browser: everything is drawn, nothing is asked of anybody else, and watching sends events."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import uvicorn

from serving.app import create
from serving.cache import CachedVideo, Codes
from serving.model import Person
from streaming import records, topics
from tests.serving import chromium
from tests.serving.fakes import World

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(chromium.BINARY is None, reason="no chromium: apt-get install chromium"),
]

MADE = (3, 2, 1, 0)


def write_video(path: Path) -> None:
    """Two seconds of moving stripes with a tone."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        picture.width, picture.height, picture.pix_fmt = 108, 192, "yuv420p"
        sound = container.add_stream("aac", rate=16_000)
        for number in range(20):
            pixels = np.full((192, 108, 3), (number * 10) % 256, np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        wave = (0.1 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)).astype(np.float32)
        for start in range(0, len(wave), 1024):
            frame = av.AudioFrame.from_ndarray(np.tile(wave[start : start + 1024], (2, 1)), "fltp", "stereo")
            frame.rate, frame.pts = 16_000, start
            container.mux(sound.encode(frame))
        for stream in (picture, sound):
            container.mux(stream.encode(None))


@pytest.fixture
def page_world(tmp_path: Path) -> Iterator[tuple[World, str]]:
    """A server whose first item for everybody is a generated video, with the other parts' files beside it."""
    world = World(tmp_path, deadline_ms=20_000).start()
    write_video(world.videos / "made.mp4")
    video = CachedVideo(-(2**62) - 12_345, MADE, "/videos/made.mp4", 2_000, True, 1_000)
    world.codebook.shelf.add([video])
    world.cache.stock.append(video)
    by_chance = world.policy.answers

    def made_first(person: Person, width: int) -> tuple[list[Codes], list[float]]:
        sids, scores = by_chance(person, width)
        return sorted(sids, key=lambda sid: sid != MADE) if MADE in sids else [MADE, *sids[1:]], scores

    world.policy.answers = made_first
    windows = [{"samples": 500, "loss": 4 - n / 10, "recall_at_10": n / 20, "floors": {"popularity": 0.1}} for n in range(6)]
    (world.run / "trainer.json").write_text(json.dumps({"prequential": windows, "samples_per_s": 200.0}))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create(world.parts), log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield world, f"http://127.0.0.1:{listener.getsockname()[1]}/"
    server.should_exit = True
    thread.join()
    world.stop()


def posted(world: World, topic: str) -> list[records.Event]:
    return [records.decode(topic, body) for body in world.confirmed.topic(topic)]


def test_a_visitor_watches_in_a_persons_place_and_real_events_follow(page_world, tmp_path):
    world, address = page_world
    with chromium.tab(tmp_path / "profile", address) as tab:
        tab.size(1320, 900)
        tab.await_true("document.querySelectorAll('.feed .card').length === 12", 60)
        tab.await_true("document.querySelectorAll('#recall path').length >= 2 && document.querySelectorAll('.tile').length === 6")
        assert tab.evaluate("document.querySelector('#health').textContent").startswith("not here: writer, inspector, generator")
        assert "Made for 3.2.1.0" in tab.evaluate("document.querySelector('.feed').textContent")
        card = "[...document.querySelectorAll('.feed .card')].find((one) => one.textContent.includes('3.2.1.0'))"
        tab.evaluate(f"{card}.querySelector('.play').click()")
        tab.await_true(f"{card}.querySelector('video')?.currentTime > 0.3")
        tab.evaluate(f"{card}.querySelector('.like').click()")
        tab.await_true(f"!{card}.classList.contains('playing')", 20)
        deadline = time.monotonic() + 20
        while not posted(world, topics.WATCHES) and time.monotonic() < deadline:
            time.sleep(0.05)
        picture = tmp_path / "page.png"
        tab.picture(picture)
        assert tab.errors == []
        assert {url.split("/")[2] for url in tab.requests if url.startswith("http")} == {address.split("/")[2]}
    assert picture.stat().st_size > 50_000
    assert [event.kind for event in posted(world, topics.ENGAGEMENTS)] == ["click", "like"]
    (watch,) = posted(world, topics.WATCHES)
    assert (watch.finished, watch.play_ms, watch.duration_ms) == (True, 2_000, 2_000)
    shown = [records.decode(topics.IMPRESSIONS, body) for body in world.lasting.topic(topics.IMPRESSIONS)]
    (impression,) = (one for one in shown if one.impression_id == watch.impression_id)
    assert (impression.item_id, impression.user_id, impression.ts) == (-(2**62) - 12_345, watch.user_id, watch.impression_ts)


def test_the_page_fits_a_phone_and_says_that_the_server_is_away(page_world, tmp_path):
    _, address = page_world
    with chromium.tab(tmp_path / "profile", address) as tab:
        tab.size(390, 844, mobile=True)
        tab.await_true("document.querySelectorAll('.feed .card').length > 0", 60)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        before = tab.evaluate("document.documentElement.dataset.theme")
        tab.evaluate("document.getElementById('theme').click()")
        assert {before, tab.evaluate("document.documentElement.dataset.theme")} == {"light", "dark"}
        tab.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
        tab.await_true("document.getElementById('health').textContent.startsWith('no answer')")
