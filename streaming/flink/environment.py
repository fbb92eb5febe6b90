"""A Flink mini cluster in a JVM of its own, driven from Python: how every Flink job here is started, watched, resumed and stopped.

The JVM belongs to the Python process: it ends when that process ends, also by kill -9. State is kept on the heap and checkpointed
into a folder; a start resumes from the newest complete checkpoint found there, so a killed job and an upgraded one start alike.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pyflink.table import StatementSet, TableEnvironment

log = logging.getLogger(__name__)

# Warnings only, two files of 10 MB. Flink names the metrics of committers twice and warns of it at every checkpoint.
LOGGING = """\
rootLogger.level = WARN
rootLogger.appenderRef.file.ref = file
appender.file.name = file
appender.file.type = RollingFile
appender.file.fileName = {folder}/flink.log
appender.file.filePattern = {folder}/flink.%i.log
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = time=%d{{ISO8601}} level=%p logger=%c{{1}} %m%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 10MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 1
logger.metrics.name = org.apache.flink.metrics.MetricGroup
logger.metrics.level = ERROR
"""

TERMINAL = frozenset({"FAILED", "CANCELED", "FINISHED"})


class JobFailed(RuntimeError):
    """A Flink job ended by itself; the message has Flink's own reason."""


class Stop(Protocol):
    """Set when the process has to end."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float) -> bool: ...


@dataclass(frozen=True)
class MiniCluster:
    """What a Flink job needs of the machine.

    `folder` gets `checkpoints/` and `log/`; `jars` are the connectors; `options` are Flink's own configuration keys and win over ours.
    """

    name: str
    folder: Path
    jars: Sequence[Path]
    java_home: Path | None = None
    heap_mb: int = 1024
    checkpoint_ms: int = 1000
    exactly_once: bool = True
    parallelism: int = 1
    # The first compiler only: planning and starting a job takes half the processor time (20 instead of 38 s of it, cold).
    jvm: str = "-XX:TieredStopAtLevel=1"
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


@dataclass(frozen=True)
class Session:
    """A table environment with the address of its REST interface and the checkpoint it resumes from."""

    tables: TableEnvironment
    rest: str
    resumed_from: Path | None


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint below `folder` (`<job>/chk-<n>` with `_metadata`, which Flink writes last); None if there is none."""
    complete = [path.parent for path in folder.glob("*/chk-*/_metadata")]
    return max(complete, key=lambda path: (path.stat().st_mtime_ns, int(path.name.removeprefix("chk-"))), default=None)


def prune(folder: Path, keep: Path | None) -> None:
    """Remove what earlier runs left in `folder`, except the checkpoint that the next run resumes from."""
    for job in folder.glob("*"):
        if keep is None or keep.parent != job:
            shutil.rmtree(job, ignore_errors=True)
            continue
        for other in job.glob("chk-*"):
            if other != keep:
                shutil.rmtree(other, ignore_errors=True)


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def configuration(cluster: MiniCluster, rest_port: int, resume: Path | None) -> dict[str, str]:
    """Flink's configuration for a cluster; pure."""
    mode = "EXACTLY_ONCE" if cluster.exactly_once else "AT_LEAST_ONCE"
    settings = {
        "pipeline.name": cluster.name,
        "pipeline.jars": ";".join(jar.resolve().as_uri() for jar in cluster.jars),
        "pipeline.object-reuse": "true",
        "pipeline.auto-watermark-interval": "100 ms",
        "parallelism.default": str(cluster.parallelism),
        "table.local-time-zone": "UTC",
        # Every partition gets heartbeats; a partition that is merely behind must never be taken for idle (its labels would be late).
        "table.exec.source.idle-timeout": "0 ms",
        "execution.checkpointing.interval": f"{cluster.checkpoint_ms} ms",
        "execution.checkpointing.mode": mode,
        # Without a folder, state above 5 MB fails every checkpoint and the job restarts for ever.
        "execution.checkpointing.dir": cluster.checkpoints.resolve().as_uri(),
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "execution.checkpointing.num-retained": "2",
        "execution.checkpointing.tolerable-failed-checkpoints": "1000",
        # The first checkpoint of a backlog waits behind all of it otherwise.
        "execution.checkpointing.unaligned.enabled": str(cluster.exactly_once).lower(),
        "execution.checkpointing.aligned-checkpoint-timeout": "5 s",
        # A broker that is away for a while must not end the job for good.
        "restart-strategy.type": "exponential-delay",
        "restart-strategy.exponential-delay.initial-backoff": "1 s",
        "restart-strategy.exponential-delay.max-backoff": "10 s",
        "rest.address": "127.0.0.1",
        "rest.port": str(rest_port),
        "rest.bind-port": str(rest_port),
        "taskmanager.memory.managed.size": "16 mb",
        "taskmanager.memory.network.min": "32 mb",
        "taskmanager.memory.network.max": "32 mb",
    }
    for host in ("rest.bind-address", "jobmanager.bind-host", "taskmanager.bind-host", "jobmanager.rpc.address"):
        settings[host] = "127.0.0.1"
    if resume is not None:
        settings["execution.state-recovery.path"] = resume.resolve().as_uri()
    return {**settings, **cluster.options}


def table_environment(cluster: MiniCluster) -> Session:
    """Start the JVM (once a process) and a streaming table environment that resumes from the newest complete checkpoint."""
    logs = cluster.folder / "log"
    logs.mkdir(parents=True, exist_ok=True)
    cluster.checkpoints.mkdir(parents=True, exist_ok=True)
    # PyFlink takes the settings of its JVM from the environment only.
    properties = logs / "log4j2.properties"
    properties.write_text(LOGGING.format(folder=logs.resolve()))
    os.environ |= {"FLINK_LOG_DIR": str(logs.resolve()), "LOG4J_PROPERTIES": str(properties.resolve())}
    os.environ["JVM_ARGS"] = (
        f"-Xms128m -Xmx{cluster.heap_mb}m -XX:+UseSerialGC {cluster.jvm} -XX:MaxMetaspaceSize=384m -XX:+ExitOnOutOfMemoryError"
    )
    if cluster.java_home is not None:
        os.environ["JAVA_HOME"] = str(cluster.java_home)

    from pyflink.common import Configuration
    from pyflink.table import EnvironmentSettings, TableEnvironment

    resume = newest_checkpoint(cluster.checkpoints)
    prune(cluster.checkpoints, resume)
    port = free_port()
    config = Configuration()
    for key, value in configuration(cluster, port, resume).items():
        config.set_string(key, value)
    settings = EnvironmentSettings.new_instance().in_streaming_mode().with_configuration(config).build()
    return Session(TableEnvironment.create(settings), f"http://127.0.0.1:{port}", resume)


def job_state(rest: str, job_id: str) -> str | None:
    """State of a job by the REST interface (`RUNNING` once every task of it runs), None while nothing answers."""
    try:
        with urllib.request.urlopen(f"{rest}/jobs/{job_id}", timeout=2) as answer:
            job: dict[str, Any] = json.load(answer)
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError):
        return None
    state = str(job["state"])
    if state == "RUNNING" and any(vertex["status"] != "RUNNING" for vertex in job["vertices"]):
        return "STARTING"
    return state


@dataclass(frozen=True)
class Job:
    """A submitted job of this process."""

    session: Session
    client: Any  # pyflink.common.JobClient
    job_id: str

    def state(self) -> str | None:
        return job_state(self.session.rest, self.job_id)

    def wait_running(self, stop: Stop, timeout_s: float = 120) -> bool:
        """Wait until every task runs; False if `stop` was set before.

        Raises:
            JobFailed: the job ended, or does not run after `timeout_s`.
        """
        end = time.monotonic() + timeout_s
        while not stop.is_set():
            state = self.state()
            if state == "RUNNING":
                return True
            if state in TERMINAL or time.monotonic() > end:
                raise JobFailed(f"Flink job {self.job_id} is {state}: {self.reason()}")
            stop.wait(0.1)
        return False

    def wait(self, stop: Stop) -> None:
        """Wait until `stop` is set, then cancel the job; its last checkpoint stays and the next start resumes from it.

        Raises:
            JobFailed: the job ended by itself.
        """
        while not stop.wait(1.0):
            state = self.state()
            if state in TERMINAL:
                raise JobFailed(f"Flink job {self.job_id} is {state}: {self.reason()}")
        self.cancel()

    def wait_finished(self, stop: Stop) -> bool:
        """Wait for the end of a job whose input ends; False if `stop` was set before.

        Asked of the client and not over HTTP: the mini cluster ends with its job and answers nothing then.

        Raises:
            JobFailed: the job did not finish.
        """
        execution = self.client.get_job_execution_result()
        while not execution.done():
            if stop.wait(0.1):
                return False
        try:
            execution.result()
        except Exception as error:  # whatever Java threw
            causes = [line for line in str(error).splitlines() if "Caused by" in line]
            raise JobFailed(f"Flink job {self.job_id} failed: {causes[-1] if causes else error}") from error
        return True

    def cancel(self) -> None:
        self.client.cancel().result()

    def reason(self) -> str:
        """Root cause of the last failure, one line."""
        try:
            with urllib.request.urlopen(f"{self.session.rest}/jobs/{self.job_id}/exceptions", timeout=2) as answer:
                entries = json.load(answer)["exceptionHistory"]["entries"]
        except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError, KeyError):
            return "no reason known"
        causes = [line for entry in entries[:1] for line in entry["stacktrace"].splitlines() if not line.startswith("\t")]
        return causes[-1] if causes else "no failure recorded"


def start(define: Callable[[], Job], stop: Stop) -> Job | None:
    """Define and submit a job; None if `stop` was set before it was submitted (planning takes seconds and cannot be interrupted)."""
    outcome: list[Job | BaseException] = []

    def attempt() -> None:
        try:
            outcome.append(define())
        except BaseException as error:
            outcome.append(error)

    worker = threading.Thread(target=attempt, name="flink-planning", daemon=True)
    worker.start()
    while worker.is_alive() and not stop.is_set():
        worker.join(0.1)
    if not outcome:
        return None
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def submit(session: Session, statements: StatementSet) -> Job:
    """Start all INSERT statements of a set as one job."""
    client = statements.execute().get_job_client()
    if client is None:
        raise JobFailed("Flink accepted the statements but started no job")
    job_id = str(client.get_job_id())
    log.info("event=submitted job=%s rest=%s resumed_from=%s", job_id, session.rest, session.resumed_from)
    return Job(session, client, job_id)
