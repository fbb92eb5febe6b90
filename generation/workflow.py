"""The fixed workflow that makes a video from a spec: plan, speak, set in time, draw, compose, encode, read back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from generation import encode, music, storyboard, voice
from generation.encode import VideoFacts
from generation.picture import Picture
from generation.storyboard import VideoSpec

GENERATOR: Final = "workflow/1"


def make_video(spec: VideoSpec, out: Path, scratch: Path | None = None, stopped: Callable[[], bool] = lambda: False) -> VideoFacts:
    """Make the video of a spec and put it at `out`, whole or not at all.

    It is written to the folder `scratch` (on the same disk; by default the folder of `out`), decoded to its last frame, flushed to the
    disk and only then given its name.

    Raises:
        encode.Abandoned: `stopped` said so.
        encode.BrokenVideoError: what was written does not decode.
        voice.VoiceError: the voice is missing.
        OSError: the disk is full or cannot be written.
    """
    plan = storyboard.plan(spec)
    speech = voice.speak(
        plan.lines, plan.style.voice, plan.style.rate, plan.style.pitch, storyboard.speech_room(spec.seconds, len(plan.lines))
    )
    board = storyboard.timed(plan, [line.words for line in speech])
    sound = music.mixed(board, music.compose(board), speech)
    partial = (scratch or out.parent) / f".{out.stem}.{os.getpid()}.partial"
    try:
        encode.write(partial, Picture(board).frames(), sound, stopped)
        facts = encode.measure(partial)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(out)
        return facts
    finally:
        partial.unlink(missing_ok=True)
