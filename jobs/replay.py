"""`sidstream replay`: a real log into the topics, in event-time order, at a chosen speed, resumable without loss or duplicates."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from tqdm import tqdm

from jobs.process import Endpoints, Stop, run, write_json
from jobs.report import read_json
from jobs.settings import ConfigError, Settings
from jobs.traffic import Answers
from streaming import topics
from streaming.heartbeat import Heartbeats, partitions
from streaming.kafka import consumer, producer, until_end
from streaming.sources.kuairand import SourceError
from streaming.sources.kuairand_events import Timed, events, exposures

BEAT_EVENTS = 200  # a heartbeat to every partition after so many events: 10 partitions cost 5% more records
BEAT_MS = 60_000  # and when the log's clock has moved this far
SAVE_EVENTS = 5_000
SHADOW_PER_S = 10
PATIENCE = 50  # tries, 0.2 s apart


class Place(msgspec.Struct):
    """The part of a record by which a replay finds its place again."""

    event_id: str = ""
    ts: int = 0


def ends_of(client: Mapping[str, Any], shape: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Topic → partition → next offset."""
    reader = consumer(client, "replay", [])

    def end(topic: str, partition: int) -> int:
        for _ in range(PATIENCE):
            try:
                return int(reader.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)[1])
            except KafkaException as error:
                if error.args[0].code() not in (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE):
                    raise
                time.sleep(0.2)  # a topic created a moment ago has no leader yet
        raise OSError(f"{topic}: partition {partition} has no leader")

    try:
        return {topic: {str(p): end(topic, p) for p in range(count)} for topic, count in shape.items()}
    finally:
        reader.close()


def already_there(client: Mapping[str, Any], since: Mapping[str, Mapping[str, int]]) -> Iterator[Place]:
    """Records of the event topics from the given offsets to the end; what has no place (anybody may write there) is passed over."""
    for topic, offsets in since.items():
        reader = consumer(client, "replay", [], enable_partition_eof=True)
        for message in until_end(reader, [TopicPartition(topic, int(p), offset) for p, offset in offsets.items()]):
            try:
                yield msgspec.json.decode(message.value() or b"{}", type=Place)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
        reader.close()


def latest_time(client: Mapping[str, Any], shape: Mapping[str, int]) -> int:
    """Latest event time in the event topics' last records, 0 where they are empty."""
    last = {t: {p: max(0, end - 1) for p, end in ends.items() if end} for t, ends in ends_of(client, shape).items()}
    return max((place.ts for place in already_there(client, {t: o for t, o in last.items() if o})), default=0)


class Shadow:
    """Asks our own server for a feed for the log's users, as they come, without touching the log's topics."""

    def __init__(self, http: str, home: Path) -> None:
        self._http, self._answers = http, Answers(home)
        self._users: queue.Queue[tuple[int, str]] = queue.Queue(maxsize=200)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="shadow", daemon=True)
        self._thread.start()

    def saw(self, user: int, scene: str) -> None:
        if not self._users.full():
            self._users.put((user, scene))

    def close(self) -> None:
        self._end.set()
        self._thread.join(120)
        self._answers.write()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._http, timeout=10) as http:
            while not (self._end.is_set() and self._users.empty()):
                began = time.perf_counter()
                try:
                    user, scene = self._users.get(timeout=0.2)
                    answer = http.post("/recommend", json={"user_id": user, "scene": scene}).raise_for_status().json()
                    self._answers.answered(answer, (time.perf_counter() - began) * 1000)
                except queue.Empty:
                    continue
                except (httpx.HTTPError, ValueError):
                    self._answers.failed()
                time.sleep(max(0.0, 1 / SHADOW_PER_S - (time.perf_counter() - began)))


class Replay:
    """Sends timed events and owns the clock while it does.

    Args:
        close_ms: how far the clock runs on after the last event, so that every window closes.
    """

    def __init__(self, ends: Endpoints, close_ms: int) -> None:
        self._kafka, self._close_ms = ends.kafka, close_ms
        self._path = ends.home / "run" / "replay.json"
        self._shape = partitions(ends.kafka)
        self._producer = producer(ends.kafka)
        self._beats = Heartbeats(self._producer, self._shape)
        self._encoder = msgspec.json.Encoder()
        self._clock = 0
        self._saved: dict[str, Any] = {}  # progress as it is in the home: how many events are in the topics for certain, and up to where

    def skip(self, what: Mapping[str, Any], first_ms: int, resume: bool) -> tuple[int, set[str]]:
        """Events to pass over: how many, and which ids beyond them.

        Args:
            what: names the log and the part of it that is replayed; a replay goes on with the same only.

        Raises:
            ConfigError: the topics already hold later times and this is not to be resumed, or the replay begun here is another one.
        """
        saved = read_json(self._path)
        if resume and saved:
            if saved["what"] != what:
                raise ConfigError(
                    f"the replay begun in this home is {saved['what']}, not {what}: go on with the same --dir, --from and --to"
                )
            self._saved = saved
            there = list(already_there(self._kafka, saved["offsets"]))
            self._clock = max((place.ts for place in there), default=saved["ts"])
            return saved["events"], {place.event_id for place in there}
        latest = latest_time(self._kafka, self._shape)
        if latest >= first_ms:
            raise ConfigError(
                f"the topics' clock stands at {iso(latest)}, the log starts at {iso(first_ms)}: all of it would be late. "
                "Go on with an earlier replay by --resume, or use a fresh home (SIDSTREAM_HOME)"
            )
        self._saved = {"what": what}
        self._save(0, first_ms)
        return 0, set()

    def send(
        self, timed: Iterable[Timed], speed: float | None, skipped: int, known: set[str], stop: Stop, shadow: Shadow | None, bar: tqdm
    ) -> bool:
        """Send everything; True if the log's end was reached."""
        started, first, beaten, last, sent = time.monotonic(), None, 0, 0, 0
        for number, item in enumerate(timed):
            if stop.is_set():
                if sent:
                    self._save(number, last)
                break
            if item.topic == topics.IMPRESSIONS:
                bar.update()
            if number < skipped:
                continue
            if first is None:
                first = item.ts
            if speed is not None:
                due = started + (item.ts - first) / 1000 / speed
                while not stop.is_set() and time.monotonic() < due:
                    self._beat(min(item.ts, first + int((time.monotonic() - started) * 1000 * speed)))
                    stop.wait(min(0.25, max(0.0, due - time.monotonic())))
            if item.event.event_id not in known:
                self._put(item)
            if shadow is not None and item.topic == topics.IMPRESSIONS:
                shadow.saw(item.event.user_id, "shadow")
            last, sent = item.ts, sent + 1
            if sent % BEAT_EVENTS == 0 or last - beaten > BEAT_MS:
                self._beat(last)
                beaten = last
            if sent % SAVE_EVENTS == 0:
                self._save(number + 1, last)
        else:
            self._producer.flush()
            self._beat(last)
            self._beat(last + self._close_ms)
            self._producer.flush()
            write_json(self._path, {**self._saved, "finished": True, "ts": last})
            return True
        return False

    def _put(self, item: Timed) -> None:
        body, key = self._encoder.encode(item.event), str(item.event.user_id)
        while True:
            try:
                self._producer.produce(item.topic, body, key, timestamp=item.ts)
                break
            except BufferError:
                self._producer.poll(0.1)
        self._producer.poll(0)

    def _beat(self, ts: int) -> None:
        if ts > self._clock:  # a resumed replay repeats no heartbeat: time never goes back
            self._clock = ts
            self._beats.send(ts, ts)
        self._producer.poll(0)

    def _save(self, count: int, ts: int) -> None:
        self._producer.flush()
        self._saved |= {"events": count, "ts": ts, "offsets": ends_of(self._kafka, self._shape)}
        write_json(self._path, self._saved)


def iso(millis: int) -> str:
    return datetime.fromtimestamp(millis / 1000, UTC).isoformat(timespec="seconds")


def millis_of(text: str | None) -> int | None:
    """Milliseconds of an ISO time; one without a zone is UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not an ISO time such as 2022-04-26T12:00:00") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def factor(text: str) -> float | None:
    """A speed: None = as fast as it goes."""
    if text == "max":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise click.BadParameter(f"{text!r}: expected max, or a factor above 0 (1 = the log's own pace)")
    return value


@click.command()
@click.option("--source", type=click.Choice(["kuairand"]), default="kuairand", show_default=True)
@click.option(
    "--dir", "folder", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of the log's files."
)
@click.option("--speed", default="max", show_default=True, help="A factor of the log's own pace, or max.")
@click.option("--from", "begin", help="First time to send, ISO, UTC unless it says otherwise.")
@click.option("--to", "end", help="Time to stop before.")
@click.option("--impressions", type=click.IntRange(1), help="Stop after so many impressions and what followed from them.")
@click.option("--resume", is_flag=True, help="Go on where an earlier replay in this home stopped.")
@click.option("--shadow", is_flag=True, help="Also ask our server for a feed for the log's users (set serving.log_impressions to false).")
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def command(
    source: str,
    folder: Path,
    speed: str,
    begin: str | None,
    end: str | None,
    impressions: int | None,
    resume: bool,
    shadow: bool,
    config: Path | None,
) -> None:
    """Send a log's events into the topics, in the order of their own times.

    The replay owns the clock: Kafka's record times are event times, and heartbeats move every partition along. When the log ends,
    the clock runs on until every label window has closed. After a kill, --resume goes on without losing or repeating an event.
    """
    pace, from_ms, to_ms = factor(speed), millis_of(begin), millis_of(end)

    def main(settings: Settings, ends: Endpoints, stop: Stop) -> None:
        try:
            rows = exposures(folder, from_ms, to_ms)
        except SourceError as error:
            raise ConfigError(str(error)) from error
        windows = settings.samples
        replay = Replay(ends, int((windows.label_window_s + windows.disorder_s + 5) * 1000))
        skipped, known = replay.skip(
            {"dir": str(folder.resolve()), "from": from_ms, "to": to_ms, "impressions": impressions}, rows.first_ms, resume
        )
        if shadow and ends.http is None:
            raise ConfigError("--shadow needs our server, and none runs: start it with `sidstream up --only server`")
        asker = Shadow(ends.http, ends.home) if shadow and ends.http else None
        total = min(impressions or len(rows), len(rows))
        with tqdm(total=total, unit="impr", dynamic_ncols=True, disable=None) as bar:
            reached = replay.send(events(rows, impressions), pace, skipped, known, stop, asker, bar)
        if asker:
            asker.close()
        click.echo(f"{bar.n} of {total} impressions sent" + ("" if reached else "; go on with --resume"))

    run("replay", main, config)
