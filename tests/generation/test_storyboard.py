"""Plans: deterministic, different for different codes, in time with the voice."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.finish import FINISHES
from generation.motion import TRANSITIONS
from generation.music import GROOVES, MODES
from generation.paint import GRADES
from generation.scenery import SCENES
from generation.storyboard import Content, Creative, VideoSpec, plan, speech_room, timed
from generation.vocabulary import sprites, styles, themes

codes = st.tuples(*[st.integers(0, 8191)] * 4)


def spec(*sid: int, **known: object) -> VideoSpec:
    return VideoSpec("b", sid, 2, **known)  # type: ignore[arg-type]


def test_every_word_of_the_vocabulary_is_understood() -> None:
    for theme in themes():
        assert {theme.hero, *theme.extras} <= set(sprites()), theme.name
        assert theme.scene in SCENES, theme.name
        assert len(theme.palette) == 6 and len(theme.calls) == len(theme.buttons), theme.name
    for style in styles():
        assert style.finish in FINISHES and style.grade in GRADES and style.transition in TRANSITIONS, style.name
        assert style.groove in GROOVES and style.mode in MODES, style.name
    for groove in GROOVES.values():
        assert len({len(line) for line in groove.values()}) == 1


def test_the_first_codes_reach_every_theme_and_every_style() -> None:
    assert {plan(spec(code, 0, 0, 0)).theme.name for code in range(len(themes()))} == {theme.name for theme in themes()}
    assert {plan(spec(0, 0, code, 0)).style.name for code in range(len(styles()))} == {style.name for style in styles()}


@given(codes)
def test_the_creative_side_leaves_subject_and_words_alone(sid: tuple[int, ...]) -> None:
    one, other = plan(spec(*sid)), plan(spec(*sid[:2], sid[2] + 1, sid[3] + 7))
    assert (one.theme, one.lines, one.title, one.hour, one.hue) == (other.theme, other.lines, other.title, other.hour, other.hue)
    assert one.style != other.style


@given(codes)
def test_the_content_side_leaves_style_and_tempo_alone(sid: tuple[int, ...]) -> None:
    one, other = plan(spec(*sid)), plan(spec(sid[0] + 1, sid[1], *sid[2:]))
    assert (one.style, one.tempo, one.mirrored, one.montage) == (other.style, other.tempo, other.mirrored, other.montage)
    assert one.theme != other.theme


def test_a_title_names_the_subject_and_a_tag_assigns_it() -> None:
    assert plan(spec(5, 5, 0, 0, content=Content(tag=9, title="Cooking 3, vlog"))).theme.name == "cooking"
    assert {plan(spec(code, 0, 0, 0, content=Content(tag=9))).theme.name for code in range(20)} == {plan(spec(9, 0, 0, 0)).theme.name}


def test_short_videos_are_told_faster() -> None:
    quick, slow = (plan(spec(1, 1, 1, 1, creative=Creative(duration_ms=ms))) for ms in (8_000, 90_000))
    assert quick.tempo > slow.tempo


def test_what_the_request_wants_shown_is_shown() -> None:
    told = plan(spec(1, 2, 3, 4, title="Half price", call_to_action="Buy now"))
    assert (told.title, told.button) == ("Half price", "Buy now")


def test_a_sid_without_creative_codes_is_refused() -> None:
    with pytest.raises(ValueError, match="creative"):
        plan(VideoSpec("b", (1, 2), 2))


@given(codes, st.lists(st.floats(0.2, 1.5), min_size=3, max_size=3), st.floats(5, 10))
def test_shots_and_lines_fill_the_video_in_order(sid: tuple[int, ...], lengths: list[float], seconds: float) -> None:
    assert sum(lengths) <= speech_room(seconds, 3) + 1
    board = timed(plan(VideoSpec("b", sid, 2, seconds=seconds)), [[("word", 0.0, length)] for length in lengths])
    assert board.shots[0].start == 0 and board.shots[-1].end == seconds
    assert all(before.end == after.start for before, after in zip(board.shots, board.shots[1:], strict=False))
    assert all(shot.end > shot.start for shot in board.shots)
    spoken = [word for line in board.lines for word in line.words]
    assert all(before[2] < after[1] for before, after in itertools.pairwise(spoken))
    if sum(lengths) <= speech_room(seconds, 3):
        assert spoken[-1][2] <= seconds
    assert [shot.kind for shot in board.shots if shot.kind != "panels"] == ["wide", "close", "call"]
