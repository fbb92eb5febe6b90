"""Java, jars, ports and logs of the embedded default."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import pytest

from jobs.local import jars, java, kafka, logfiles, ports
from jobs.local.jars import Jar, JarsMissing
from jobs.local.parts import Addresses, select, system
from jobs.settings import ConfigError, Kafka, Redis, Settings


def machine(folder: Path, version: str) -> Path:
    """A Java installation of which only the version matters."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "java").touch()
    (folder / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n')
    return folder


@pytest.mark.parametrize(
    ("version", "taken"), [("17.0.15", True), ("21.0.8", True), ("25", False), ("1.8.0_402", False), ("11.0.2", False)]
)
def test_the_machine_s_java_is_taken_only_if_it_is_17_or_21(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, taken: bool
) -> None:
    folder = machine(tmp_path / "jdk", version)
    monkeypatch.setenv("JAVA_HOME", str(folder))
    monkeypatch.setattr(java.shutil, "which", lambda name: None)
    assert java.java_home() == (folder if taken else java.bundled_home())


def test_no_java_at_all_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "machine_candidates", list)
    monkeypatch.setattr(java, "bundled_home", lambda: None)
    with pytest.raises(java.JavaMissing, match="make setup"):
        java.java_home()


class Repository:
    """Stands for the Maven cache and its repositories: gives the bodies in turn."""

    def __init__(self, folder: Path, *bodies: bytes) -> None:
        self.folder, self.bodies = folder, list(bodies)

    def __call__(self, timeout: int) -> Repository:
        return self

    def project(self, group: str, artifact: str) -> Repository:
        return self

    def at_version(self, version: str) -> Repository:
        return self

    def artifact(self) -> Repository:
        return self

    def resolve(self) -> Path:
        path = self.folder / "cached.jar"
        if not path.exists():
            path.write_bytes(self.bodies.pop(0))
        return path


@pytest.fixture
def jar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jar:
    monkeypatch.setattr(jars, "folder", lambda: tmp_path / "jars")
    return Jar("broker", "org.example", "thing", "1.0", hashlib.sha256(b"right").hexdigest())


def test_a_truncated_jar_in_the_cache_is_fetched_again(jar: Jar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jgo.maven.MavenContext", Repository(tmp_path, b"rig", b"right"))
    assert jars.fetch([jar]) == 1
    assert jar.path.read_bytes() == b"right"
    assert jars.fetch([jar]) == 0


def test_a_jar_with_other_content_is_refused(jar: Jar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jgo.maven.MavenContext", Repository(tmp_path, b"wrong", b"wrong"))
    with pytest.raises(JarsMissing, match=r"org\.example:thing:1\.0 has SHA-256"):
        jars.fetch([jar])
    assert list((tmp_path / "jars").iterdir()) == []


def test_no_network_is_one_line(jar: Jar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(self: Repository) -> Path:
        raise ConnectionError("Name or service not known\nmore")

    monkeypatch.setattr("jgo.maven.MavenContext", Repository(tmp_path))
    monkeypatch.setattr(Repository, "resolve", unreachable)
    with pytest.raises(JarsMissing, match="check the network") as error:
        jars.fetch([jar])
    assert "\n" not in str(error.value)


def test_a_cluster_id_is_never_taken_for_an_option() -> None:
    ids = {kafka.cluster_id() for _ in range(2000)}  # one UUID in 64 starts with a dash
    assert len(ids) == 2000
    assert not any(name.startswith("-") for name in ids)


def test_a_home_keeps_its_ports_while_they_are_free(home: Path) -> None:
    first = ports.remembered(home, ["kafka", "redis"])
    assert ports.remembered(home, ["kafka", "redis"]) == first
    with socket.create_server(("127.0.0.1", first["redis"])):
        moved = ports.remembered(home, ["kafka", "redis"])
        assert moved["kafka"] == first["kafka"]
        assert moved["redis"] != first["redis"]


def test_a_port_that_one_of_ours_listens_on_is_kept(home: Path) -> None:
    first = ports.remembered(home, ["redis"])
    with socket.create_server(("127.0.0.1", first["redis"])):
        assert ports.remembered(home, ["redis"], ours=["redis"]) == first


def test_a_log_is_capped_while_its_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "part.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"x" * 100)
        assert logfiles.cap(tmp_path, limit=50) == [path]
        writer.write(b"after\n")
    assert path.read_bytes() == b"after\n"
    assert path.with_suffix(".log.1").read_bytes() == b"x" * 100


def test_last_words_prefer_the_reason_of_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "part.log"
    path.write_text('time=1 event=failed reason="the disk is full"\nlibrdkafka says something else\n')
    assert logfiles.last_words(path) == "the disk is full"
    path.write_text("Error: kafka far:1: not there: start it\n%3|1|FAIL|rdkafka#producer-1| Connection refused\n")
    assert logfiles.last_words(path) == "Error: kafka far:1: not there: start it"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which set-up has run, whatever this one has."""
    monkeypatch.setattr(jars, "paths", lambda *purposes: [])


def test_what_the_configuration_names_is_not_embedded(home: Path, installed: None) -> None:
    embedded = [part.name for part in system(Settings(), home, Addresses(), None)]
    assert embedded[:2] == ["broker", "redis"]
    far = Settings(kafka=Kafka(bootstrap="far:9092"), redis=Redis(url="redis://far:6379"))
    assert [part.name for part in system(far, home, Addresses(), None)] == embedded[2:]


def test_only_takes_names_and_groups_and_brings_the_steps_that_they_need(home: Path, installed: None) -> None:
    parts = system(Settings(), home, Addresses(), None)
    assert [part.name for part in select(parts, ["redis"])] == ["redis"]
    assert [part.name for part in select(parts, ["trainer"])] == ["topics", "sids", "trainer"]
    flink = [part.name for part in select(parts, ["flink"])]
    assert flink == ["feature-repo", "topics", "flink-samples", "flink-features", "inspector", "writer"]
    with pytest.raises(ConfigError, match="no part is called spark; there are broker"):
        select(parts, ["spark"])
