"""Batches: by time, or by the stream alone."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from model.online.batches import Arrived, Reproducible, Timely


@dataclass(frozen=True)
class Row:
    ready_ts: int


def rows(partition: int, times: list[int | None]) -> list[Arrived]:
    return [Arrived(partition, offset, None if time is None else Row(time)) for offset, time in enumerate(times)]


def drain(batches: Reproducible | Timely) -> list[list[tuple[int, int]]]:
    taken = []
    while batch := batches.take(0.0, flush=True):
        taken.append([(arrived.partition, arrived.offset) for arrived in batch])
    return taken


def test_a_batch_is_learned_when_it_is_full_or_its_first_row_has_waited() -> None:
    batches = Timely(3, max_wait_s=1.0)
    assert batches.take(0.0) == []
    batches.add(rows(0, [1, 2]), now=10.0)
    assert batches.take(10.9) == []
    assert len(batches.take(11.0)) == 2
    batches.add(rows(0, [1, 2, 3, 4]), now=12.0)
    assert len(batches.take(12.0)) == 3
    assert batches.waiting() == 1
    assert batches.take(12.5) == []
    assert len(batches.take(13.0)) == 1


def test_rows_keep_their_order() -> None:
    batches = Timely(2, 1.0)
    batches.add(rows(1, [5, 4, 3]), 0.0)
    assert drain(batches) == [[(1, 0), (1, 1)], [(1, 2)]]


def test_a_reproducible_batch_waits_for_every_partition() -> None:
    batches = Reproducible(2, [0, 1])
    batches.add(rows(0, [1, 2, 3]), 0.0)
    assert batches.take(1e9) == []
    batches.add(rows(1, [2]), 0.0)
    assert [(a.partition, a.offset) for a in batches.take(0.0)] == [(0, 0), (0, 1)]
    assert batches.take(1e9, flush=True) == []
    batches.end()
    assert drain(batches) == [[(1, 0), (0, 2)]]


PARTITIONS = st.lists(st.lists(st.one_of(st.none(), st.integers(0, 20)), max_size=12), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(PARTITIONS, st.randoms(use_true_random=False), st.integers(1, 5))
def test_reproducible_batches_do_not_depend_on_how_the_partitions_were_read(partitions: list[list[int | None]], random, size: int) -> None:
    def read(chunks: list[list[Arrived]]) -> list[list[tuple[int, int]]]:
        batches = Reproducible(size, range(len(partitions)))
        taken = []
        for chunk in chunks:
            batches.add(chunk, 0.0)
            while batch := batches.take(0.0):
                taken.append([(arrived.partition, arrived.offset) for arrived in batch])
        batches.end()
        return taken + drain(batches)

    every = [rows(partition, times) for partition, times in enumerate(partitions)]
    queues = [list(each) for each in every]
    shuffled: list[list[Arrived]] = []
    while any(queues):
        queue = random.choice([each for each in queues if each])
        count = random.randint(1, len(queue))
        shuffled.append(queue[:count])
        del queue[:count]
    assert read(shuffled) == read(every)
    assert sum(len(batch) for batch in read(every)) == sum(len(times) for times in partitions)
    assert all(len(batch) == size for batch in read(every)[:-1])


@settings(max_examples=40, deadline=None)
@given(PARTITIONS, st.integers(1, 5), st.integers(0, 10))
def test_continuing_from_the_offsets_of_a_batch_gives_the_batches_that_followed(
    partitions: list[list[int | None]], size: int, cut: int
) -> None:
    def read(start: dict[int, int]) -> list[list[tuple[int, int]]]:
        batches = Reproducible(size, range(len(partitions)))
        for partition, times in enumerate(partitions):
            batches.add(rows(partition, times)[start.get(partition, 0) :], 0.0)
        batches.end()
        return drain(batches)

    whole = read({})
    done = whole[:cut]
    following = {partition: offset + 1 for batch in done for partition, offset in batch}
    assert read(following) == whole[cut:]
