"""Music from nothing: chords, bass, melody and drums in the style's tempo, mode and groove, in the content's key, ducked under the
voice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray

from generation.storyboard import Storyboard, seed_of
from generation.voice import SAMPLE_RATE, Sound, Speech

Stereo = NDArray[np.float32]  # float32[samples, 2]

MODES: Final[dict[str, tuple[int, ...]]] = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "lydian": (0, 2, 4, 6, 7, 9, 11),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "pentatonic": (0, 2, 4, 7, 9, 12, 14),
}

PROGRESSIONS: Final[tuple[tuple[int, ...], ...]] = (
    (0, 4, 5, 3),
    (0, 5, 3, 4),
    (5, 3, 0, 4),
    (0, 3, 5, 4),
    (0, 2, 3, 4),
    (3, 4, 0, 5),
    (0, 0, 3, 4),
)

# Sixteen steps a bar (twelve in a waltz): x a hit, o a soft one.
GROOVES: Final[dict[str, dict[str, str]]] = {
    "house": {
        "kick": "x...x...x...x...",
        "clap": "....x.......x...",
        "hat": "..x...x...x...x.",
        "shaker": "o.o.o.o.o.o.o.o.",
        "bass": "..x...x...x...x.",
        "chord": "..x..x....x..x..",
    },
    "trap": {
        "kick": "x.....x...x.....",
        "snare": "........x.......",
        "hat": "x.x.x.xxx.x.xxxx",
        "bass": "x.....x...x.....",
        "chord": "x...............",
    },
    "half": {
        "kick": "x......x........",
        "snare": "........x.......",
        "hat": "x...o...x...o...",
        "bass": "x......x..o.....",
        "chord": "x.......x.......",
    },
    "bossa": {
        "kick": "x..xx..xx..xx..x",
        "rim": "x..x..x...x..x..",
        "shaker": "xoxoxoxoxoxoxoxo",
        "bass": "x..xx..xx..xx..x",
        "chord": "..x..x....x..x..",
    },
    "rock": {
        "kick": "x.x....x..x.x...",
        "snare": "....x.......x...",
        "hat": "x.x.x.x.x.x.x.x.",
        "bass": "x.x.x.x.x.x.x.x.",
        "chord": "x.....x.x.....x.",
    },
    "shaker": {
        "kick": "x.......x.......",
        "clap": "....x.......x...",
        "shaker": "xoxoxoxoxoxoxoxo",
        "bass": "x.....x.x.......",
        "chord": "x..o..x...o.x...",
    },
    "march": {"kick": "x...x...x...x...", "snare": "x.oox.oox.ooxxxx", "bass": "x...x...x...x...", "chord": "x.......x......."},
    "lofi": {
        "kick": "x......x..x.....",
        "snare": "....x.......x...",
        "hat": "x.o.x.o.x.o.x.oo",
        "bass": "x......x..x.....",
        "chord": "x.........o.....",
    },
    "break": {
        "kick": "x.x.......xx....",
        "snare": "....x..o.o..x..o",
        "hat": "x.x.x.x.x.x.x.x.",
        "bass": "x.x...x...xx..x.",
        "chord": "x.....x.........",
    },
    "ambient": {"kick": "o...............", "shaker": "....o.......o...", "bass": "x...............", "chord": "x..............."},
    "waltz": {"kick": "x...........", "rim": "....x...x...", "shaker": "o...o...o...", "bass": "x...........", "chord": "....x...x..."},
}

_LEVELS: Final = {"kick": 0.95, "snare": 0.55, "clap": 0.5, "hat": 0.22, "shaker": 0.18, "rim": 0.35}
_DUCKED: Final = 0.34  # music under the voice, about -9 dB


def _time(seconds: float) -> NDArray[np.float32]:
    return np.arange(round(seconds * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE


def _noise(count: int, seed: int) -> Sound:
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def _brightened(noise: Sound, low: float, high: float) -> Sound:
    """Only what lies between two frequencies, Hz."""
    spectrum = np.fft.rfft(noise)
    frequency = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
    spectrum *= 1 / (1 + (low / np.maximum(frequency, 1)) ** 4) / (1 + (frequency / high) ** 4)
    return np.fft.irfft(spectrum, len(noise)).astype(np.float32)


@lru_cache(maxsize=16)
def drum(name: str) -> Sound:
    """One hit, peak 1."""
    if name == "kick":
        t = _time(0.32)
        hit = np.sin(2 * np.pi * (46 * t + 62 / 28 * (1 - np.exp(-28 * t)))) * np.exp(-9 * t) + 0.25 * np.exp(-400 * t)
    elif name == "snare":
        t = _time(0.22)
        hit = 0.5 * np.sin(2 * np.pi * 190 * t) * np.exp(-22 * t) + 0.35 * _brightened(_noise(len(t), 1), 1200, 9000) * np.exp(-17 * t)
    elif name == "clap":
        t = _time(0.2)
        bursts = sum(np.where(t >= start, np.exp(-(t - start) * 120), 0) for start in (0, 0.011, 0.023)) + 0.7 * np.exp(-18 * t)
        hit = _brightened(_noise(len(t), 2), 900, 5000) * bursts
    elif name == "rim":
        t = _time(0.08)
        hit = np.sin(2 * np.pi * 1750 * t) * np.exp(-70 * t) + 0.5 * np.sin(2 * np.pi * 480 * t) * np.exp(-60 * t)
    else:
        t = _time(0.07 if name == "hat" else 0.1)
        envelope = np.exp(-65 * t) if name == "hat" else np.minimum(t * 40, 1) * np.exp(-38 * t)
        hit = _brightened(_noise(len(t), 3), 6500, 15000) * envelope
    return (hit / np.abs(hit).max()).astype(np.float32)


@lru_cache(maxsize=512)
def tone(timbre: str, pitch: int, seconds: float) -> Sound:
    """One note of an instrument, peak 1. `pitch` is a MIDI number."""
    frequency = 440.0 * 2 ** ((pitch - 69) / 12)
    t = _time(seconds)
    w = 2 * np.pi * frequency * t
    most = max(1, int(9000 / frequency))

    def harmonics(weights: Sequence[tuple[float, float, float]]) -> Sound:
        return sum((a * np.sin(n * w) * np.exp(-d * t) for n, a, d in weights if n <= most), np.zeros_like(t))

    if timbre == "pluck":
        sound = harmonics([(n, 1 / n, 2.2 + 1.6 * n) for n in range(1, 9)])
    elif timbre == "keys":
        sound = np.sin(w + 1.6 * np.exp(-4 * t) * np.sin(w)) * np.exp(-2.2 * t) + 0.12 * np.sin(w * min(7, most)) * np.exp(-14 * t)
    elif timbre == "bell":
        sound = np.sin(w + 2.2 * np.exp(-3 * t) * np.sin(3.5 * w)) * np.exp(-2.6 * t)
    elif timbre == "saw":
        sound = sum(np.sin(n * w * detune) / n**1.15 for detune in (0.996, 1.004) for n in range(1, min(12, most) + 1)) * np.exp(-1.2 * t)
    elif timbre == "organ":
        sound = harmonics([(1, 1, 0), (2, 0.6, 0), (3, 0.35, 0), (4, 0.25, 0), (6, 0.12, 0)]) * (1 + 0.06 * np.sin(2 * np.pi * 6 * t))
    elif timbre == "marimba":
        sound = harmonics([(1, 1, 6), (4, 0.35, 14), (10, 0.1, 30)])
    elif timbre == "chip":
        sound = harmonics([(n, 1 / n, 2.5) for n in range(1, 16, 2)])
    elif timbre == "bass":
        sound = np.tanh(1.6 * harmonics([(1, 1, 1.2), (2, 0.5, 2.5), (3, 0.22, 4)]))
    else:  # pad
        sound = sum(np.sin(n * w * detune) / n**1.8 for detune in (0.994, 1.0, 1.006) for n in range(1, min(6, most) + 1)) * np.minimum(
            t * 2.2, 1
        )
    attack = np.minimum(t * 250, 1)
    release = np.clip((seconds - t) * 18, 0, 1)
    sound = sound * attack * release
    return (sound / max(1e-6, float(np.abs(sound).max()))).astype(np.float32)


class _Mix:
    """A stereo sum into which sounds are put at times."""

    def __init__(self, seconds: float) -> None:
        self.sound = np.zeros((round(seconds * SAMPLE_RATE), 2), np.float32)

    def put(self, sound: Sound, seconds: float, gain: float, pan: float = 0.0) -> None:
        """`pan` from -1 (left) to 1 (right), with equal power."""
        first = round(seconds * SAMPLE_RATE)
        count = min(len(sound), len(self.sound) - first)
        if first < 0 or count <= 0:
            return
        angle = (pan + 1) * np.pi / 4
        self.sound[first : first + count, 0] += sound[:count] * np.float32(gain * np.cos(angle) * 1.414)
        self.sound[first : first + count, 1] += sound[:count] * np.float32(gain * np.sin(angle) * 1.414)


def compose(board: Storyboard) -> Stereo:
    """The music of a storyboard, without voice, about -20 dBFS RMS: groove from the first beat, melody from the first cut, a last chord."""
    plan = board.plan
    style, tempo = plan.style, plan.tempo
    random = Random(seed_of("music", plan.content_seed, plan.creative_seed))
    scale = MODES[style.mode]
    root = 45 + plan.content_seed % 12
    music_type = plan.spec.creative.music_type
    progression = PROGRESSIONS[(plan.creative_seed + (music_type or 0)) % len(PROGRESSIONS)]
    groove = GROOVES[style.groove]
    steps = len(next(iter(groove.values())))
    step = 60 / tempo / 4
    swing = 0.3 * step if style.groove in ("lofi", "bossa", "shaker") else 0.0
    ending = max(board.seconds - 1.1, board.shots[-1].start)
    drums, tonal = _Mix(board.seconds), _Mix(board.seconds)

    def pitch(degree: int, octave: int = 0) -> int:
        return root + scale[degree % 7] + 12 * (degree // 7 + octave)

    motif = [(random.choice((0, 2, 4, 5, 7, 9)), random.choice((2, 2, 4, 3))) for _ in range(5)]
    position, note = 0, 0
    next_note = 0
    while (now := position * step + (swing if position % 2 else 0.0)) < ending:
        at, chord = position % steps, progression[position // steps % len(progression)]
        for name, line in groove.items():
            hit = {"x": 1.0, "o": 0.45, ".": 0.0}[line[at]]
            if not hit:
                continue
            if name in _LEVELS:
                drums.put(
                    drum(name),
                    now,
                    _LEVELS[name] * hit * random.uniform(0.88, 1.0),
                    {"hat": 0.35, "shaker": -0.4, "rim": -0.25}.get(name, 0.0),
                )
            elif name == "bass":
                tonal.put(tone("bass", pitch(chord, -1), round(step * 3.2, 3)), now, 0.42 * hit)
            else:
                long = round(min(2.2, step * (14 if line.count("x") == 1 else 5)), 3)
                for index, degree in enumerate((chord, chord + 2, chord + 4)):
                    tonal.put(
                        tone(_CHORDS.get(style.timbre, style.timbre), pitch(degree, 1), long), now, 0.15 * hit, (-0.5, 0.0, 0.5)[index]
                    )
        if now >= board.shots[0].end - 0.02 and position >= next_note:
            degree, length = motif[note % len(motif)]
            tonal.put(
                tone(style.timbre, pitch(chord + degree, 2), round(min(1.2, step * length * 1.6), 3)), now, 0.2, 0.25 if note % 2 else -0.25
            )
            next_note, note = position + length, note + 1
        position += 1
    for index, degree in enumerate((0, 2, 4, 7)):
        tonal.put(tone(_CHORDS.get(style.timbre, style.timbre), pitch(degree, 1), 1.6), ending, 0.19, (-0.6, 0.2, 0.6, 0.0)[index])
    tonal.put(tone("bass", pitch(0, -1), 1.4), ending, 0.5)
    drums.put(drum("kick"), ending, 0.9)
    for shot in board.shots[1:]:
        drums.put(_whoosh(), max(0.0, shot.start - 0.28), 0.3, random.uniform(-0.4, 0.4))
    drums.put(tone("bell", pitch(7, 2), 0.9), board.shots[-1].start + 0.95, 0.2)
    mix = _roomy(tonal.sound, 0.3) + drums.sound
    level = float(np.sqrt(np.mean(mix**2))) or 1.0
    return mix * np.float32(10 ** (-20 / 20) / level)


_CHORDS: Final = {
    "bell": "keys",
    "marimba": "pluck",
    "chip": "saw",
    "saw": "pad",
}  # chords of short instruments need a longer one beside them


@lru_cache(maxsize=1)
def _whoosh() -> Sound:
    t = _time(0.5)
    swell = np.exp(-(((t - 0.28) / 0.11) ** 2))
    noise = _noise(len(t), 4)
    sound = _brightened(noise, 300, 2500) * (1 - t / 0.5) + _brightened(noise, 1500, 9000) * (t / 0.5)
    sound = sound * swell
    return (sound / np.abs(sound).max()).astype(np.float32)


@lru_cache(maxsize=1)
def _room() -> NDArray[np.float32]:
    t = _time(0.8)
    tail = np.stack([_noise(len(t), 5), _noise(len(t), 6)]) * np.exp(-7 * t) * np.minimum(t * 60, 1)
    return (tail / np.sqrt((tail**2).sum(axis=1, keepdims=True))).astype(np.float32)


def _roomy(sound: Stereo, share: float) -> Stereo:
    """The sound with the echo of a room."""
    tail = _room()
    size = 1 << (len(sound) + tail.shape[1] - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(sound.T, size) * np.fft.rfft(tail, size), size)[:, : len(sound)]
    return (sound + share * wet.T).astype(np.float32)


def mixed(board: Storyboard, music: Stereo, speech: Sequence[Speech]) -> Stereo:
    """Voice over music, the music ducked while the voice speaks; peak at most -1 dBFS, about -16 dBFS RMS while somebody speaks."""
    count = len(music)
    voice = np.zeros(count, np.float32)
    duck = np.ones(count, np.float32)
    for line, spoken in zip(board.lines, speech, strict=True):
        first = round(line.start * SAMPLE_RATE)
        length = min(len(spoken.sound), count - first)
        voice[first : first + length] += spoken.sound[:length]
        duck[max(0, first - SAMPLE_RATE // 14) : first + length + SAMPLE_RATE // 10] = _DUCKED
    window = SAMPLE_RATE // 9
    padded = np.pad(duck, (window, window), mode="edge").cumsum(dtype=np.float64)
    gain = ((padded[window:] - padded[:-window]) / window)[window // 2 : window // 2 + count].astype(np.float32)
    spoken_wide = _roomy(np.repeat(voice[:, None], 2, axis=1), 0.05)
    out = music * gain[:, None] + 1.05 * spoken_wide
    fade = SAMPLE_RATE // 3
    out[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)[:, None]
    out = np.tanh(1.25 * out) / np.float32(1.25)  # peaks bend before they break
    return (out * np.float32(min(1.6, 0.89 / max(1e-6, float(np.abs(out).max()))))).astype(np.float32)
