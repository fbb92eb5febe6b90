"""The configuration tree: defaults, errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.settings import ConfigError, Samples, Settings, load


def write(folder: Path, text: str) -> Path:
    path = folder / "sidstream.yaml"
    path.write_text(text)
    return path


def test_an_empty_file_is_the_embedded_default(tmp_path: Path) -> None:
    assert load(write(tmp_path, "")) == Settings() == load(None)
    assert Settings().kafka.bootstrap is None
    assert Settings().redis.url is None


def test_the_defaults_that_clients_rely_on() -> None:
    settings = Settings()
    assert (settings.samples.label_window_s, settings.samples.attribution_window_s, settings.samples.disorder_s) == (60, 604_800, 5)
    assert (settings.publish.every_s, settings.model.preset, settings.http.port) == (10, "laptop", 0)


def test_a_key_overrides_its_default_and_leaves_its_neighbours(tmp_path: Path) -> None:
    settings = load(write(tmp_path, "samples: {label_window_s: 12}\nkafka: {bootstrap: 'a:1', security: {sasl.username: me}}\n"))
    assert settings.samples.label_window_s == 12
    assert settings.samples.disorder_s == 5
    assert settings.kafka.security == {"sasl.username": "me"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("samples: {label_window: 3}", "samples.label_window:"),
        ("samples: {label_window_s: -3}", "samples.label_window_s:"),
        ("http: {port: 70000}", "http.port:"),
        ("model: {preset: huge}", "model.preset:"),
        ("model: {options: {long: many}}", "model.options.long"),
        ("model: {options: {mtp: .inf}}", "model.options.mtp"),
        ("- a\n- b", "expected keys and values"),
        ("a: [", "not YAML"),
        ("kafka: [1]", "kafka: expected keys and values: bootstrap"),
        ("kafka: {bootstrap: nowhere}", "kafka.bootstrap:"),
        ("redis: {url: localhost}", "redis.url:"),
        ("samples: {label_window_s: .inf}", "samples.label_window_s:"),
        ("samples: {label_window_s: 60, attribution_window_s: 10}", "attribution_window_s is 10"),
        ("sids: {heads: {gama: 1}}", "sids.heads.gama: there is no such key; there are dimensions"),
    ],
)
def test_a_broken_file_is_one_error_that_names_the_key(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")) as error:
        load(write(tmp_path, text))
    assert str(tmp_path) in str(error.value)


def test_a_file_of_bytes_is_said_to_be_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "sidstream.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not YAML"):
        load(tmp_path / "sidstream.yaml")


def test_a_key_without_a_value_is_its_default(tmp_path: Path) -> None:
    assert load(write(tmp_path, "http:\nsamples:\n  label_window_s:\n  disorder_s: 3\n")) == Settings(samples=Samples(disorder_s=3))


def test_an_unknown_key_without_a_value_is_still_unknown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="htpp: there is no such key; there are kafka"):
        load(write(tmp_path, "htpp:\n"))


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "absent.yaml")
