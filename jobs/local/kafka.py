"""A real single-node Kafka (KRaft: broker and controller in one process) from pinned jars."""

from __future__ import annotations

import base64
import logging
import os
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.local import jars
from jobs.local.java import java

LONG_MAX = 2**63 - 1
SILENT = logging.getLogger("sidstream.probe")  # librdkafka reports every refused connection of a broker that is still starting
SILENT.addHandler(logging.NullHandler())
SILENT.propagate = False

# C1 only: the broker moves bytes, and the second compiler costs more of a laptop's two cores at start than it ever gives back
JVM = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-XX:-UsePerfData", "-XX:+ExitOnOutOfMemoryError"]

PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
log.dirs={data}
auto.create.topics.enable=false
# one node holds one copy of everything
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=2
group.initial.rebalance.delay.ms=0
# Flink's exactly-once sink asks for transactions of up to an hour; a broker's default limit is 15 minutes
transaction.max.timeout.ms=3600000
# a replay writes records with the times of its log: accept any, and never delete by record time, which is years ago; bytes bound the disk
log.message.timestamp.before.max.ms={long_max}
log.message.timestamp.after.max.ms={long_max}
log.retention.ms=-1
log.retention.bytes={retention_bytes}
log.segment.bytes=134217728
log.roll.ms={long_max}
# a laptop: few threads, and the compactor's buffer (128 MiB by default) would be half of the heap
num.network.threads=2
num.io.threads=4
background.threads=2
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=8388608
offsets.retention.minutes=525600
# after a kill -9 the controller admits the new process only when the old one's session is over (9 s by default); much shorter, and a
# broker that waits for its share of a busy machine is taken for dead
broker.session.timeout.ms=6000
broker.heartbeat.interval.ms=1000
"""

LOGGING = """\
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = time=%d{yyyy-MM-dd'T'HH:mm:ss.SSSXXX} level=%p logger=%c{1} message="%m"%n%throwable{8}
logger.started.name = kafka.server.KafkaRaftServer
logger.started.level = info
logger.recovery.name = org.apache.kafka.storage.internals.log.LogManager
logger.recovery.level = info
"""


def cluster_id() -> str:
    """A random UUID as Kafka writes it; never with a leading dash, which its formatter would take for an option."""
    while (cluster := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return cluster


@dataclass(frozen=True)
class Broker:
    """An embedded broker: its folder, which outlives its process, and its two ports on 127.0.0.1."""

    folder: Path
    port: int
    controller_port: int
    heap_mb: int = 384
    retention_bytes: int = 2 * 1024**3  # of one partition

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def prepare(self) -> None:
        """Write the configuration, and format the folder when it is new.

        Raises:
            JavaMissing, JarsMissing: set-up is incomplete.
            OSError: the folder cannot be written.
        """
        data = self.folder / "data"
        self.folder.mkdir(parents=True, exist_ok=True)
        properties = self.folder / "server.properties"
        properties.write_text(
            PROPERTIES.format(
                port=self.port,
                controller_port=self.controller_port,
                data=data,
                long_max=LONG_MAX,
                retention_bytes=self.retention_bytes,
            )
        )
        (self.folder / "log4j2.properties").write_text(LOGGING)
        if not (data / "meta.properties").exists():
            cluster = cluster_id()
            command = [str(java()), *JVM, "kafka.tools.StorageTool"]
            command += ["format", "--standalone", "--ignore-formatted", "-t", cluster, "-c", str(properties)]
            done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, check=False)
            if done.returncode:
                raise OSError(f"{data} could not be formatted for Kafka: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")

    def command(self) -> list[str]:
        """The broker's command line."""
        log4j = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}"
        heap = ["-Xms96m", f"-Xmx{self.heap_mb}m"]
        return [str(java()), *heap, *JVM, log4j, "kafka.Kafka", str(self.folder / "server.properties")]

    def environment(self) -> dict[str, str]:
        """The process's environment; the class path is there because its 46 entries would fill every process list."""
        return {**os.environ, "CLASSPATH": ":".join(map(str, jars.paths("broker")))}


def healthy(client: dict[str, Any], timeout_s: float = 1.0) -> bool:
    """Whether a broker answers a metadata request."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    quiet = {"log_level": 0, "socket.connection.setup.timeout.ms": 2000, "reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 100}
    try:
        return bool(AdminClient({**client, **quiet}, logger=SILENT).list_topics(timeout=timeout_s).brokers)
    except KafkaException:
        return False
