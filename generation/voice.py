"""The voice: lines spoken by espeak-ng (from its wheel), with the time of every word, made warm enough to listen to."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import espeakng_loader
import numpy as np
from numpy.typing import NDArray

Sound = NDArray[np.float32]

SAMPLE_RATE: Final = 44_100
FASTEST: Final = 240  # words a minute that can still be followed
PATIENCE_S: Final = 120  # it takes a twentieth of a second; a machine that is far too busy must not lose a voice over it
_SILENCE: Final = 0.012


class VoiceError(Exception):
    """espeak-ng could not speak; the message is its own."""


@dataclass(frozen=True)
class Speech:
    """A spoken line. `sound`: float32[samples], mono, 44.1 kHz, in -1..1; `words`: (text, start, end), seconds from the start of
    `sound`."""

    sound: Sound
    words: tuple[tuple[str, float, float], ...]

    @property
    def seconds(self) -> float:
        return len(self.sound) / SAMPLE_RATE


def speak(lines: Sequence[str], voice: str, rate: int, pitch: int, room: float) -> list[Speech]:
    """Speak lines so that together they last at most `room` seconds, faster than `rate` words a minute if they must.

    Raises:
        VoiceError: espeak-ng is missing, or does not know the voice.
    """
    speech = _spoken(lines, voice, rate, pitch)
    for _ in range(3):  # speech does not shorten quite in proportion to its rate
        total = sum(line.seconds for line in speech)
        if total <= room or rate >= FASTEST:
            break
        rate = min(FASTEST, round(rate * total / room * 1.03))
        speech = _spoken(lines, voice, rate, pitch)
    return speech


def _spoken(lines: Sequence[str], voice: str, rate: int, pitch: int) -> list[Speech]:
    order = {
        "library": str(espeakng_loader.get_library_path()),
        "data": str(espeakng_loader.get_data_path()),
        "voice": voice,
        "rate": rate,
        "pitch": pitch,
        "range": 62,
        "lines": list(lines),
    }
    script = Path(__file__).with_name("espeak.py")
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(script)],
            input=json.dumps(order).encode(),
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise VoiceError(f"espeak-ng did not speak within {PATIENCE_S} s") from error
    if done.returncode:
        raise VoiceError(f"espeak-ng ended with {done.returncode}: {done.stderr.decode(errors='replace').strip().splitlines()[-1:]}")
    head, _, pcm = done.stdout.partition(b"\n")
    facts = json.loads(head)
    samples = np.frombuffer(pcm, np.int16).astype(np.float32) / 32768
    speech, first = [], 0
    for text, line in zip(lines, facts["lines"], strict=True):
        speech.append(_speech(text, samples[first : first + line["samples"]], line["words"], facts["rate"]))
        first += line["samples"]
    return speech


def _speech(text: str, raw: Sound, words: Sequence[tuple[int, int, int]], rate: int) -> Speech:
    loud = np.flatnonzero(np.abs(raw) > _SILENCE)
    first, last = (int(loud[0]), int(loud[-1]) + 1) if len(loud) else (0, len(raw))
    seconds = (last - first) / rate
    starts = [min(max(0.0, ms / 1000 - first / rate), seconds) for _, _, ms in words]
    ends = [*starts[1:], seconds]
    texts = []
    for index, (position, length, _) in enumerate(words):
        following = words[index + 1][0] if index + 1 < len(words) else len(text)
        texts.append(text[position : max(position + length, following)].strip())
    return Speech(_warm(_resampled(raw[first:last], rate)), tuple(zip(texts, starts, ends, strict=True)))


def _resampled(sound: Sound, rate: int) -> Sound:
    """To 44.1 kHz; the wheel's voices are at 22.05 kHz, exactly half."""
    count = round(len(sound) * SAMPLE_RATE / rate)
    spectrum = np.fft.rfft(sound)
    padded = np.zeros(count // 2 + 1, spectrum.dtype)
    kept = min(len(spectrum), len(padded))
    padded[:kept] = spectrum[:kept]
    return (np.fft.irfft(padded, count) * (count / max(1, len(sound)))).astype(np.float32)


def _warm(sound: Sound) -> Sound:
    """Less buzz above 6 kHz, more body around 200 Hz, more presence around 3 kHz; evened out, at -18 dBFS RMS."""
    frequency = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE)
    gain = 1 + 0.5 * np.exp(-(((frequency - 210) / 130) ** 2)) + 0.45 * np.exp(-(((frequency - 3000) / 1300) ** 2))
    gain *= 1 / (1 + (frequency / 7500) ** 4) * np.clip(frequency / 90, 0, 1)
    shaped = np.fft.irfft(np.fft.rfft(sound) * gain, len(sound))
    window = SAMPLE_RATE // 25
    envelope = np.sqrt(
        np.convolve(shaped**2, np.ones(window) / window, "same") if len(shaped) < window else _moving_mean(shaped**2, window)
    )
    evened = shaped / (0.06 + envelope)
    level = float(np.sqrt(np.mean(evened**2))) or 1.0
    spoken = evened * (10 ** (-18 / 20) / level)
    fade = min(len(spoken), SAMPLE_RATE // 200)
    spoken[:fade] *= np.linspace(0, 1, fade)
    spoken[len(spoken) - fade :] *= np.linspace(1, 0, fade)
    return spoken.astype(np.float32)


def _moving_mean(power: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    total = np.cumsum(np.concatenate([np.zeros(window), power, np.zeros(window)]))
    start = window // 2 + window
    return np.maximum(total[start : start + len(power)] - total[start - window : start - window + len(power)], 0) / window
