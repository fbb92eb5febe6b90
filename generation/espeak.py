"""Speaks lines with libespeak-ng, in a process of its own; run by `generation.voice`, imports nothing but the standard library.

A process of its own because the library keeps pitch flutter and random state between calls that no call resets: only a fresh process says
the same line twice in the same samples. It also keeps a fault in the C code away from the worker.

stdin:  JSON {"library", "data", "voice", "rate", "pitch", "range", "lines": [str]}
stdout: one line of JSON {"rate": Hz, "lines": [{"samples": n, "words": [[text position, length, ms], ...]}]}, then int16 PCM of all lines
"""

from __future__ import annotations

import ctypes
import json
import sys

RETRIEVAL = 1  # espeak_AUDIO_OUTPUT: samples go to the callback
UTF8 = 1
RATE, PITCH, RANGE = 1, 3, 4  # espeak_PARAMETER
WORD = 1  # espeak_EVENT_TYPE


class EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class Event(ctypes.Structure):
    """`espeak_EVENT` of speak_lib.h; `text_position` counts characters from 1, `audio_position` milliseconds."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", EventId),
    )


Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))


def speak(library: ctypes.CDLL, text: str) -> tuple[bytes, list[tuple[int, int, int]]]:
    """PCM (int16, mono) of a text and its words as (text position from 0, length, start in ms)."""
    pcm = bytearray()
    words: list[tuple[int, int, int]] = []

    def collect(samples: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[Event]) -> int:
        if samples and count > 0:
            pcm.extend(ctypes.string_at(samples, 2 * count))
        index = 0
        while events[index].type:
            if events[index].type == WORD:
                words.append((events[index].text_position - 1, events[index].length, events[index].audio_position))
            index += 1
        return 0

    callback = Callback(collect)
    library.espeak_SetSynthCallback(callback)
    body = text.encode()
    if library.espeak_Synth(body, ctypes.c_size_t(len(body) + 1), 0, 1, 0, UTF8, None, None) or library.espeak_Synchronize():
        raise RuntimeError("espeak-ng could not speak the line")
    return bytes(pcm), words


def main() -> None:
    order = json.load(sys.stdin)
    library = ctypes.CDLL(order["library"])
    rate = library.espeak_Initialize(RETRIEVAL, 0, order["data"].encode(), 0)
    if rate <= 0:
        raise RuntimeError(f"espeak-ng found no voices in {order['data']}")
    ctypes.CDLL(None).srand(1)
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    if library.espeak_SetVoiceByName(order["voice"].encode()):
        raise RuntimeError(f"espeak-ng has no voice {order['voice']!r}")
    for parameter, value in ((RATE, order["rate"]), (PITCH, order["pitch"]), (RANGE, order["range"])):
        library.espeak_SetParameter(parameter, value, 0)
    spoken = [speak(library, line) for line in order["lines"]]
    head = {"rate": rate, "lines": [{"samples": len(pcm) // 2, "words": words} for pcm, words in spoken]}
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n" + b"".join(pcm for pcm, _ in spoken))


if __name__ == "__main__":
    main()
