"""Videos: whole, with sound, the same for the same spec and different for different codes."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from generation import encode, music, storyboard, voice, workflow
from generation.encode import Abandoned, BrokenVideoError, VideoFacts, measure
from generation.picture import Picture
from generation.storyboard import FRAMES_PER_SECOND, Storyboard, VideoSpec
from generation.voice import SAMPLE_RATE, Speech

pytestmark = pytest.mark.integration  # whole videos

SID = (7, 3, 2, 5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VideoFacts]:
    path = tmp_path_factory.mktemp("videos") / "video.mp4"
    return path, workflow.make_video(VideoSpec("b", SID, 2, seconds=5), path)


def told(*sid: int) -> tuple[Storyboard, list[Speech]]:
    plan = storyboard.plan(VideoSpec("b", sid, 2, seconds=5))
    speech = voice.speak(plan.lines, plan.style.voice, plan.style.rate, plan.style.pitch, storyboard.speech_room(5, 3))
    return storyboard.timed(plan, [line.words for line in speech]), speech


def test_a_video_decodes_to_its_last_frame_with_sound(made: tuple[Path, VideoFacts]) -> None:
    path, facts = made
    assert (facts.duration_ms, facts.frames) == (5000, 5 * FRAMES_PER_SECOND)
    assert -24 < facts.scores["loudness_db"] < -10 and facts.scores["peak_db"] < 0
    assert facts.scores["motion"] > 0.005 and facts.scores["contrast"] > 0.05
    assert measure(path) == facts
    assert [child.name for child in path.parent.iterdir()] == ["video.mp4"]


def test_the_index_of_a_video_comes_before_its_pictures(made: tuple[Path, VideoFacts]) -> None:
    body = made[0].read_bytes()
    assert body.index(b"moov") < body.index(b"mdat")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_file_that_ends_early_is_no_video(made: tuple[Path, VideoFacts], tmp_path: Path, kept: float) -> None:
    body = made[0].read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(body[: int(len(body) * kept)])
    with pytest.raises(BrokenVideoError, match=r"cut\.mp4"):
        measure(path)


def test_a_stopped_worker_leaves_nothing_behind(tmp_path: Path) -> None:
    asked = iter([False, False, True])
    with pytest.raises(Abandoned):
        workflow.make_video(VideoSpec("b", SID, 2, seconds=5), tmp_path / "video.mp4", stopped=lambda: next(asked))
    assert list(tmp_path.iterdir()) == []


def test_the_same_spec_gives_the_same_frames_and_the_same_sound() -> None:
    (board, speech), (again, spoken) = told(*SID), told(*SID)
    assert board == again
    assert all(np.array_equal(first.sound, second.sound) for first, second in zip(speech, spoken, strict=True))
    assert np.array_equal(music.compose(board), music.compose(again))
    for seconds in (0.4, 2.5, 4.6):
        assert Picture(board).frame(seconds).tobytes() == Picture(again).frame(seconds).tobytes()


@pytest.mark.parametrize("other", [(8, 3, 2, 5), (7, 4, 2, 5), (7, 3, 3, 5), (7, 3, 2, 6)])
def test_another_code_at_any_level_looks_and_sounds_different(other: tuple[int, ...]) -> None:
    board, changed = told(*SID)[0], told(*other)[0]
    looks = [np.asarray(Picture(one).frame(1.0), np.float32) / 255 for one in (board, changed)]
    assert np.abs(looks[0] - looks[1]).mean() > 0.003
    spectra = [np.abs(np.fft.rfft(music.compose(one).mean(axis=1)))[:20_000] for one in (board, changed)]
    cosine = float(spectra[0] @ spectra[1] / np.linalg.norm(spectra[0]) / np.linalg.norm(spectra[1]))
    assert cosine < 0.97


def test_the_voice_is_heard_over_the_music_and_says_every_word_in_time() -> None:
    board, speech = told(*SID)
    assert [" ".join(word for word, _, _ in line.words) for line in board.lines] == list(board.plan.lines)
    composed = music.compose(board)
    mixed = music.mixed(board, composed, speech)
    assert np.abs(mixed).max() <= 0.9 and mixed.shape == (5 * SAMPLE_RATE, 2)
    silent = music.mixed(board, composed, [Speech(np.zeros_like(line.sound), line.words) for line in speech])
    for line, spoken in zip(board.lines, speech, strict=True):
        part = slice(round(line.start * SAMPLE_RATE), round(line.start * SAMPLE_RATE) + len(spoken.sound))
        with_voice, without = (float(np.sqrt(np.mean(sound[part] ** 2))) for sound in (mixed, silent))
        assert with_voice > 1.5 * without


def test_speech_that_is_too_long_is_spoken_faster() -> None:
    lines = ["This line is rather long for its shot.", "And so is this one, which goes on."]
    slow = voice.speak(lines, "en-us+f3", 150, 50, 60.0)
    quick = voice.speak(lines, "en-us+f3", 150, 50, 0.8 * sum(line.seconds for line in slow))
    assert sum(line.seconds for line in quick) <= 0.82 * sum(line.seconds for line in slow)


def test_an_unknown_voice_is_an_error_in_one_line() -> None:
    with pytest.raises(voice.VoiceError, match="no voice"):
        voice.speak(["Hello."], "xx-nowhere", 150, 50, 5.0)


def test_a_disk_that_is_full_leaves_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(encode, "write", full)
    with pytest.raises(OSError, match="No space"):
        workflow.make_video(VideoSpec("b", SID, 2, seconds=5), tmp_path / "video.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_video_without_sound_is_refused(made: tuple[Path, VideoFacts], tmp_path: Path) -> None:

    path = tmp_path / "mute.mp4"
    with av.open(str(made[0])) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    with pytest.raises(BrokenVideoError, match="0 sound"):
        measure(path)
