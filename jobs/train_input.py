"""Where samples are read from: the topic, by offsets that the caller keeps, or files of JSON lines."""

from __future__ import annotations

import base64
import gzip
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, Producer, TopicPartition

from jobs.process import Stop
from model.online.batches import Arrived
from streaming import records, topics
from streaming.kafka import Client, consumer

log = logging.getLogger("sidstream.trainer")

_READ_AT_ONCE = 256


class SampleError(Exception):
    """A line that is no sample; the message says which and why."""


class SampleTopic:
    """All partitions of the topic `samples`, read from offsets that the caller names; Kafka's own offsets are only informed.

    Args:
        letters: where records that are no samples are reported (topic `dead_letters`); None = they are only logged.
    """

    def __init__(self, client: Client, group: str, letters: Producer | None) -> None:
        self._reader = consumer(client, group, [], enable_partition_eof=True)
        self._letters = letters
        self._read: dict[int, int] = {}  # next offset to read, where anything is known
        self.partitions: list[int] = []
        self.at_end: set[int] = set()
        self.undecodable = 0

    def open(self, offsets: Mapping[int, int], stop: Stop | None = None) -> bool:
        """Read every partition from its offset, or from the start where it has none; false when stopped before the topic exists."""
        while not (found := self._reader.list_topics(topics.SAMPLES, timeout=30).topics[topics.SAMPLES].partitions):
            if stop is None or stop.wait(0.5):
                return False
        self.partitions = sorted(found)
        self._reader.assign([TopicPartition(topics.SAMPLES, each, offsets.get(each, OFFSET_BEGINNING)) for each in self.partitions])
        return True

    def read(self, wait_s: float) -> list[Arrived]:
        """What has come within `wait_s`; a record that is no sample arrives without a row, so that its offset is passed.

        Raises:
            KafkaException: the connection cannot be used any more.
        """
        rows = []
        for message in self._reader.consume(_READ_AT_ONCE, wait_s):
            error, partition, offset = message.error(), message.partition(), message.offset()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                if error.fatal():
                    raise KafkaException(error)
                log.warning('event=kafka_error reason="%s"', error.str())
            elif partition is not None and offset is not None:
                if error is not None:
                    self.at_end.add(partition)
                    self._read[partition] = offset
                else:
                    self.at_end.discard(partition)
                    self._read[partition] = offset + 1
                    rows.append(Arrived(partition, offset, self._decode(partition, offset, message.value() or b"")))
        return rows

    def ended(self) -> bool:
        """Whether every partition was read to its present end."""
        return len(self.at_end) == len(self.partitions)

    def lag(self) -> int:
        """Offsets in Kafka that were not read. A partition ends where the consumer says so: control records are no rows."""
        lag = len(self.partitions) - len(self._read)
        for partition, offset in self._read.items():
            bounds = self._reader.get_watermark_offsets(TopicPartition(topics.SAMPLES, partition), cached=True)
            lag += max(0, bounds[1] - offset) if bounds else 0
        return lag

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Tell Kafka what is in a checkpoint, for lag tools; nothing reads it back."""
        trained = [TopicPartition(topics.SAMPLES, partition, offset) for partition, offset in offsets.items()]
        if trained:
            try:
                self._reader.commit(offsets=trained, asynchronous=True)
            except KafkaException as error:
                log.warning('event=commit_failed reason="%s"', error)

    def close(self) -> None:
        self._reader.close()

    def _decode(self, partition: int, offset: int, body: bytes) -> records.Sample | None:
        try:
            return records.decode_sample(body)
        except (msgspec.DecodeError, RecursionError) as error:
            self.undecodable += 1
            log.warning('event=undecodable partition=%d offset=%d reason="%s"', partition, offset, error)
            if self._letters is not None:
                raw = base64.b64encode(body).decode()
                letter = records.DeadLetter(topic=topics.SAMPLES, partition=partition, offset=offset, reason=str(error), body_base64=raw)
                self._letters.produce(topics.DEAD_LETTERS, records.encode(letter))
            return None


@dataclass(frozen=True)
class Source:
    """Records that are there now, in the order of each of their partitions; `name` is what a checkpoint keeps their offsets by."""

    partitions: Sequence[int]
    arrivals: Iterator[Arrived]
    name: str = ""

    @classmethod
    def of(cls, rows: Iterable[records.Sample], name: str = "") -> Source:
        """Samples that are one partition, in their order."""
        return cls([0], (Arrived(0, offset, row) for offset, row in enumerate(rows)), name)

    def after(self, offsets: Mapping[int, int]) -> Source:
        """What is left from these offsets on."""
        return replace(self, arrivals=(each for each in self.arrivals if each.offset >= offsets.get(each.partition, 0)))


def from_files(files: Sequence[Path]) -> Source:
    """JSON lines (plain or .gz), in the order of the files; reading them raises SampleError at a line that is no sample."""
    lines = ((path, number, line) for path in files for number, line in enumerate(_lines(path), 1) if line.strip())
    return Source.of((_sample(*line) for line in lines), ",".join(str(path.resolve()) for path in files))


def _lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        yield from lines


def _sample(path: Path, number: int, line: bytes) -> records.Sample:
    try:
        return records.decode_sample(line)
    except msgspec.DecodeError as error:
        raise SampleError(f"{path}, line {number}: {error}") from error


def from_topic(client: Client) -> Source:
    """All that the topic holds now; what is no sample is logged."""
    topic = SampleTopic(client, "trainer-offline", None)
    topic.open({})

    def arrivals() -> Iterator[Arrived]:
        try:
            while not topic.ended():
                yield from topic.read(1.0)
        finally:
            topic.close()

    return Source(topic.partitions, arrivals(), topics.SAMPLES)
