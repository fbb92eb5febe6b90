"""MP4 files: writing them (H.264 and AAC, playable before they are all there) and reading them back to the last frame."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import av
import numpy as np
import pyarrow as pa
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from generation.paint import HEIGHT, WIDTH
from generation.storyboard import FRAMES_PER_SECOND
from generation.voice import SAMPLE_RATE

# superfast makes files a third smaller and takes 0.4 s more of a processor for each video, a fifth of the whole.
PRESET: Final = "ultrafast"
QUALITY: Final = "23"
AUDIO_CHUNK: Final = 1024  # samples of an AAC frame
SAMPLED_EVERY: Final = 6  # frames between those that `measure` looks at


class BrokenVideoError(Exception):
    """A file is not a whole video with sound; the message says what is missing."""


class Abandoned(Exception):
    """The work was given up because the caller asked for it."""


@dataclass(frozen=True)
class VideoFacts:
    """What was read back from a file. `scores`, all of them measured, none of them taste:

    `loudness_db` and `peak_db` of the sound (dBFS), `contrast` (standard deviation of brightness within a picture, 0..1), `brightness`
    (0..1), `motion` (mean change of brightness between samples a quarter of a second apart, 0..1), `colour` (mean saturation, 0..1).
    """

    duration_ms: int
    frames: int
    bytes: int
    sha256: str
    scores: dict[str, float]


def write(path: Path, frames: Iterable[Image.Image], sound: NDArray[np.float32], stopped: Callable[[], bool] = lambda: False) -> None:
    """Encode frames (RGB, WIDTH x HEIGHT) and sound (float32[samples, 2]) into an MP4.

    Raises:
        Abandoned: `stopped` said so between two frames; the file is then not a video.
        OSError: the file cannot be written.
    """
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.options = {"preset": PRESET, "crf": QUALITY, "threads": "1", "g": str(FRAMES_PER_SECOND * 2), "profile": "main"}
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
        audio.bit_rate = 128_000
        converter = VideoReformatter()
        planes = np.ascontiguousarray(sound.T)
        sent = 0

        def send(until: int) -> None:
            nonlocal sent
            while sent < until:
                chunk = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(planes[:, sent : sent + AUDIO_CHUNK]), format="fltp", layout="stereo"
                )
                chunk.sample_rate, chunk.pts = SAMPLE_RATE, sent
                container.mux(audio.encode(chunk))
                sent = min(sent + AUDIO_CHUNK, planes.shape[1])

        for index, picture in enumerate(frames):
            if stopped():
                raise Abandoned(str(path))
            # Pillow keeps RGB in four bytes a pixel; through Arrow they are read where they are, without a copy.
            pixels = np.frombuffer(pa.array(picture).buffers()[-1], np.uint8).reshape(HEIGHT, WIDTH, 4)
            frame = converter.reformat(av.VideoFrame.from_numpy_buffer(pixels, format="rgba"), format="yuv420p")
            frame.pts = index
            container.mux(video.encode(frame))
            send(min(planes.shape[1], (index + 1) * SAMPLE_RATE // FRAMES_PER_SECOND))
        send(planes.shape[1])
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def measure(path: Path) -> VideoFacts:
    """Decode a file to its last frame and its last sample, and say what it is.

    Raises:
        BrokenVideoError: it is not an MP4, has no picture or no sound, ends early, or is silent.
    """
    frames, samples, power, peak = 0, 0, 0.0, 0.0
    lumas: list[NDArray[np.float32]] = []
    saturation: list[float] = []
    converter = VideoReformatter()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video or not container.streams.audio:
                raise BrokenVideoError(
                    f"{path.name}: {len(container.streams.video)} pictures tracks, {len(container.streams.audio)} sound tracks"
                )
            expected, rate = container.streams.video[0].frames, container.streams.video[0].average_rate
            for decoded in container.decode(container.streams.video[0], container.streams.audio[0]):
                if isinstance(decoded, av.VideoFrame):
                    if frames % SAMPLED_EVERY == 0:
                        small = converter.reformat(decoded, 54, 96, "rgb24").to_ndarray().astype(np.float32) / 255
                        lumas.append(small @ np.array([0.299, 0.587, 0.114], np.float32))
                        saturation.append(float((small.max(axis=2) - small.min(axis=2)).mean()))
                    frames += 1
                elif isinstance(decoded, av.AudioFrame):
                    block = decoded.to_ndarray()
                    samples += block.shape[1]
                    power += float(np.square(block).mean(axis=0).sum())
                    peak = max(peak, float(np.abs(block).max()))
    except (av.FFmpegError, OSError) as error:
        raise BrokenVideoError(f"{path.name}: {error}") from error
    if not frames or frames < expected or rate is None:
        raise BrokenVideoError(f"{path.name}: {frames} of {expected} frames decode")
    seconds = frames / float(rate)
    if samples / SAMPLE_RATE < seconds - 0.1:
        raise BrokenVideoError(f"{path.name}: sound ends after {samples / SAMPLE_RATE:.2f} s of {seconds:.2f} s")
    level = np.sqrt(power / samples)
    if level < 1e-4:
        raise BrokenVideoError(f"{path.name}: silent")
    body = path.read_bytes()
    scores = {
        "loudness_db": float(20 * np.log10(level)),
        "peak_db": float(20 * np.log10(max(peak, 1e-6))),
        "contrast": float(np.mean([luma.std() for luma in lumas])),
        "brightness": float(np.mean([luma.mean() for luma in lumas])),
        "motion": float(np.mean([np.abs(after - before).mean() for before, after in pairwise(lumas)] or [0.0])),
        "colour": float(np.mean(saturation)),
    }
    return VideoFacts(
        round(seconds * 1000),
        frames,
        len(body),
        hashlib.sha256(body).hexdigest(),
        {name: round(value, 4) for name, value in scores.items()},
    )
