"""Topics as they are created."""

from __future__ import annotations

from streaming import topics


def by_name(**changes: object) -> dict[str, topics.TopicSpec]:
    numbers = {"partitions": 3, "retention_ms": -1, "retention_bytes": 10**9, "views": ["user_history"], **changes}
    return {spec.name: spec for spec in topics.specs(**numbers)}  # type: ignore[arg-type]


def test_a_replay_of_years_ago_is_not_deleted_by_its_age() -> None:
    for name in (*topics.EVENT_TOPICS, topics.SAMPLES):
        assert by_name()[name].config["retention.ms"] == "-1"


def test_retention_by_time_can_be_asked_for() -> None:
    assert by_name(retention_ms=86_400_000)[topics.WATCHES].config["retention.ms"] == "86400000"


def test_record_times_are_the_producers_but_never_far_ahead() -> None:
    for name in topics.EVENT_TOPICS:
        config = by_name()[name].config
        assert config["message.timestamp.type"] == "CreateTime"
        assert int(config["message.timestamp.after.max.ms"]) <= 86_400_000


def test_feature_topics_keep_the_newest_value_of_each_entity_in_one_partition() -> None:
    spec = by_name()["features.user_history"]
    assert (spec.partitions, spec.config["cleanup.policy"]) == (1, "compact")


def test_events_and_samples_share_their_number_of_partitions() -> None:
    assert {by_name()[name].partitions for name in (*topics.EVENT_TOPICS, topics.SAMPLES)} == {3}
