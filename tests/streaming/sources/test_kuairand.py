"""KuaiRand's files become a catalogue, co-watched lists and events in time order."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming import topics
from streaming.sources import kuairand
from streaming.sources.kuairand import SourceError
from streaming.sources.kuairand_events import derive, events, exposures
from tests.conftest import DATA

REAL = DATA / "kuairand"
T0 = 1_650_812_741_436
LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
VIDEOS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,music_id,music_type,tag"
)

needs_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL}: set SIDSTREAM_DATA to the folder that holds kuairand/")


def row(user=1, video=2, at=T0, play=5000, duration=9000, **labels):
    names = LOG.split(",")
    values = {"user_id": user, "video_id": video, "time_ms": at, "play_time_ms": play, "duration_ms": duration, "tab": 1} | labels
    return ",".join(str(values.get(name, 0)) for name in names)


def write_log(folder, *rows, name="log_standard_4_08_to_4_21_pure.csv"):
    text = "\n".join((LOG, *rows)) + "\n"
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def all_events(folder, **times):
    return list(events(exposures(folder, **times)))


@pytest.mark.parametrize("name", ["log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_1k.csv.gz"])
def test_the_publishers_file_names_are_read_plain_and_gzipped(tmp_path, name):
    write_log(tmp_path, row(), name=name)
    assert len(exposures(tmp_path)) == 1


def test_a_row_becomes_an_impression_and_what_followed_in_time_order(tmp_path):
    write_log(tmp_path, row(is_click=1, is_like=1, is_forward=1, is_profile_enter=1, play=20_000, duration=60_000))
    sent = all_events(tmp_path)
    assert [item.ts for item in sent] == sorted(item.ts for item in sent)
    kinds = {getattr(item.event, "kind", item.topic): item.ts - T0 for item in sent}
    assert kinds["impressions"] == kinds["click"] == 0
    assert kinds["watches"] == 20_000
    assert all(0 <= kinds[kind] <= 20_000 for kind in ("like", "share", "profile_visit"))
    assert sent[0].topic == topics.IMPRESSIONS


def test_a_conversion_is_named_as_a_stand_in_and_has_no_currency(tmp_path):
    write_log(tmp_path, row(play=18_000), row(user=2, play=17_999), row(user=3, play=10, is_like=1))
    bought = [item.event for item in all_events(tmp_path) if item.topic == topics.CONVERSIONS]
    assert sorted(event.user_id for event in bought) == [1, 3]
    assert all("standin" in event.event_id and event.currency == "XXX" for event in bought)


def test_rows_out_of_time_order_in_several_files_come_out_in_order(tmp_path):
    write_log(tmp_path, row(user=1, at=T0 + 9_000), row(user=2, at=T0), name="log_standard_a.csv")
    write_log(tmp_path, row(user=3, at=T0 + 4_000, play=90_000), name="log_standard_b.csv.gz")
    sent = all_events(tmp_path)
    assert [item.ts for item in sent] == sorted(item.ts for item in sent)
    assert [item.event.user_id for item in sent if item.topic == topics.IMPRESSIONS] == [2, 3, 1]


def test_completely_repeated_rows_count_once_and_rows_that_differ_have_ids_of_their_own(tmp_path):
    write_log(tmp_path, row(), row(), row(profile_stay_time=7))
    ids = [item.event.event_id for item in all_events(tmp_path)]
    assert len(ids) == 4
    assert len(set(ids)) == 4


def test_times_bound_the_exposures_and_not_what_follows_from_them(tmp_path):
    write_log(tmp_path, row(user=1, at=T0), row(user=2, at=T0 + 1_000, play=60_000), row(user=3, at=T0 + 2_000))
    sent = all_events(tmp_path, from_ms=T0 + 1_000, to_ms=T0 + 2_000)
    assert {item.event.user_id for item in sent} == {2}
    assert sent[-1].ts == T0 + 61_000


def test_the_same_log_gives_the_same_events(tmp_path):
    write_log(tmp_path, *(row(user=n % 3, at=T0 + n % 5, is_click=n % 2, is_like=1, play=n * 700) for n in range(40)))
    assert all_events(tmp_path) == all_events(tmp_path)


@given(play=st.integers(-5, 900_000), duration=st.integers(0, 600_000), like=st.booleans(), hate=st.booleans())
def test_no_label_is_earlier_than_its_impression_or_later_than_its_watch(play, duration, like, hate):
    flags = dict.fromkeys(("is_click", "is_follow", "is_comment", "is_forward", "is_profile_enter"), 0)
    record = {"user_id": 1, "video_id": 2, "time_ms": T0, "play_time_ms": play, "duration_ms": duration, "tab": 0, "is_like": like}
    found = list(derive(record | flags | {"is_hate": hate}, "x"))
    end = next(event.ts for topic, event in found if topic == topics.WATCHES)
    assert end == T0 + max(0, play)
    assert all(T0 <= event.ts <= end for _, event in found)


def test_a_missing_column_is_named(tmp_path):
    path = write_log(tmp_path, row())
    path.write_text(path.read_text().replace("play_time_ms", "played"))
    with pytest.raises(SourceError, match="lacks the column play_time_ms"):
        exposures(tmp_path)


def test_a_value_that_is_no_number_names_the_file(tmp_path):
    path = write_log(tmp_path, row(user="somebody"))
    with pytest.raises(SourceError, match=path.name):
        exposures(tmp_path)


@pytest.mark.parametrize("use", [exposures, kuairand.catalogue])
def test_an_empty_folder_is_an_error_that_says_what_was_expected(tmp_path, use):
    with pytest.raises(SourceError, match=r"(log_standard|video_features_basic)_\*\.csv"):
        use(tmp_path)


def test_a_time_range_without_exposures_is_an_error(tmp_path):
    write_log(tmp_path, row())
    with pytest.raises(SourceError, match="no exposure between"):
        exposures(tmp_path, from_ms=T0 + 1)


def test_a_catalogue_keeps_unknown_values_unknown(tmp_path):
    rows = (VIDEOS, '7,70,NORMAL,2022-04-10,Web,0.0,,720.0,1280.0,9155697141,,"20,43"', "3,30,AD,2022-04-09,Kmovie,0.0,1500.0,1,2,5,9.0,")
    (tmp_path / "video_features_basic_pure.csv").write_text("\n".join(rows) + "\n")
    table = kuairand.catalogue(tmp_path)
    assert table["item_id"].to_pylist() == [3, 7]
    assert table["duration_ms"].to_pylist() == [1500, None]
    assert table["music_type"].to_pylist() == [9, None]
    assert table["tag"].to_pylist() == [None, 20]
    assert table["tags"].to_pylist() == [None, [20, 43]]


def test_a_video_listed_twice_is_an_error(tmp_path):
    line = "7,70,NORMAL,2022-04-10,Web,0.0,1,720.0,1280.0,9155697141,9.0,20"
    (tmp_path / "video_features_basic_pure.csv").write_text("\n".join((VIDEOS, line, line)) + "\n")
    with pytest.raises(SourceError, match="listed twice"):
        kuairand.catalogue(tmp_path)


def test_history_leaves_out_users_whose_history_reaches_into_the_replay(tmp_path):
    table = pa.table({"user_id": [1, 2], "last_time_ms": [T0 - 1, T0], "video_ids": [[5, 6], [7]]})
    pq.write_table(table, tmp_path / "history_4_08_to_4_24.parquet")
    assert kuairand.history(tmp_path, T0).to_pylist() == [{"user_id": 1, "item_ids": [5, 6]}]


def test_without_a_history_file_the_log_before_the_replay_is_the_history(tmp_path):
    write_log(tmp_path, row(video=9, at=T0 + 5), row(video=8, at=T0 + 1), row(video=7, at=T0 + 9), row(user=4, at=T0 + 9))
    assert kuairand.history(tmp_path, T0 + 9).to_pylist() == [{"user_id": 1, "item_ids": [8, 9]}]
    assert kuairand.history(tmp_path).num_rows == 0


@needs_data
def test_the_real_files_are_read_whole():
    rows = exposures(REAL)
    assert len(rows) == 180_384
    assert kuairand.catalogue(REAL).num_rows == 7_583
    assert kuairand.history(REAL, rows.first_ms).num_rows > 20_000


@needs_data
def test_the_real_logs_events_are_in_order_with_ids_of_their_own():
    last, seen, sent = 0, set(), 0
    for item in events(exposures(REAL), limit=5_000):
        assert item.ts >= last
        last = item.ts
        seen.add(item.event.event_id)
        sent += 1
    assert len(seen) == sent > 10_000
