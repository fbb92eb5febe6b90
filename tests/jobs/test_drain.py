"""When the features of a bounded run are complete."""

from jobs.drain import KnownTime


def test_the_newest_event_with_an_impression_is_waited_for() -> None:
    known = KnownTime(disorder_ms=1000)
    known.add("impressions", "i", "shown", 10_000, 10_050)
    assert known.newest == 10_000
    known.add("watches", "w", "shown", 12_000, 20_000)
    assert known.newest == 19_000, "an event later than the disorder allows is known when it comes"


def test_a_label_counts_when_its_impression_comes() -> None:
    known = KnownTime(disorder_ms=1000)
    known.add("watches", "w", "shown", 12_000, 12_000)
    known.add("watches", "orphan", "never shown", 99_000, 99_000)
    assert known.newest == 0
    known.add("impressions", "i", "shown", 10_000, 10_000)
    assert known.newest == 12_000


def test_a_copy_moves_nothing() -> None:
    known = KnownTime(disorder_ms=1000)
    known.add("impressions", "i", "shown", 10_000, 10_000)
    known.add("impressions", "i", "shown", 10_000, 80_000)
    assert known.newest == 10_000
