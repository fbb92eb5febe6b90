"""What every process of the system has in common: its configuration, its addresses, its log, its signals, its exit code."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from jobs import settings as configuration
from jobs.settings import ConfigError, Settings

BROKEN_CONFIGURATION = 2  # exit code that tells the supervisor that another try cannot help


@dataclass(frozen=True)
class Endpoints:
    """Addresses of everything that a process talks to."""

    home: Path
    kafka: dict[str, Any]  # librdkafka settings: `bootstrap.servers` and the security of the cluster
    redis: str | None  # its URL, if one is known
    http: str | None  # where our own server is, or is to listen
    model_store: str
    feature_repo: Path

    @property
    def redis_url(self) -> str:
        """Raises ConfigError where there is none; a part that never asks runs without Redis."""
        if self.redis is None:
            raise absent("redis", "redis.url", self.home)
        return self.redis


class Stop:
    """Set by SIGTERM or SIGINT: finish what is begun, then return."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout: float) -> bool:
        """Sleep for `timeout` seconds, but no longer than until the stop; returns whether it has come."""
        return self._event.wait(timeout)


def endpoints(settings: Settings, home: Path) -> Endpoints:
    """Addresses from the configuration, and of what is embedded from the home's `state.json`.

    Raises:
        ConfigError: no Kafka is configured and the embedded one does not run.
    """
    state = read_state(home)
    bootstrap = settings.kafka.bootstrap or state.get("kafka")
    if not bootstrap:
        raise absent("kafka", "kafka.bootstrap", home)
    redis = f"redis://{state['redis']}/0" if state.get("redis") else None
    http = f"http://{settings.http.host}:{settings.http.port}" if settings.http.port else state.get("http")
    return Endpoints(
        home=home,
        kafka={**settings.kafka.security, "bootstrap.servers": bootstrap},
        redis=settings.redis.url or redis,
        http=http,
        model_store=model_store(settings, home),
        feature_repo=feature_repo(home),
    )


def absent(service: str, key: str, home: Path) -> ConfigError:
    part = "broker" if service == "kafka" else service
    return ConfigError(
        f"{key} is not set and no embedded {service} runs in {home}: start one with `sidstream up --detach --only {part}`, "
        "or name a server in the configuration"
    )


def model_store(settings: Settings, home: Path) -> str:
    return settings.model_store or str(home / "models")


def feature_repo(home: Path) -> Path:
    return home / "feature_repo"


def read_state(home: Path) -> dict[str, Any]:
    """The home's `state.json`; empty when nothing has run there."""
    return read_json(home / "state.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when the file is absent or no such thing."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step, so that a reader sees the old or the new one, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)


def ready(home: Path, name: str, **facts: Any) -> None:
    """Tell the supervisor that this process now does its work; facts (for example `rest`, an address) end in its status."""
    me = psutil.Process()
    write_json(home / "run" / f"{name}.ready", {"pid": me.pid, "started": me.create_time(), "at": time.time(), "facts": facts})


def read_ready(home: Path, name: str) -> dict[str, Any]:
    """What `ready` wrote; empty before that."""
    return read_json(home / "run" / f"{name}.ready")


def run(name: str, main: Callable[[Settings, Endpoints, Stop], None], config: Path | None) -> None:
    """Run a process to its end and leave with its exit code: 0 finished or stopped, 2 configuration, 1 anything else.

    A broken configuration, an unreachable address or a full disk is one line on stderr; a defect is a traceback.
    """
    log_to_stderr()
    log = logging.getLogger(f"sidstream.{name}")
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        settings = configuration.load(config)
        home = configuration.home()
        home.mkdir(parents=True, exist_ok=True)
        where = endpoints(settings, home)
        log.info("process=%s event=started pid=%d home=%s kafka=%s", name, os.getpid(), home, where.kafka["bootstrap.servers"])
        main(settings, where, stop)
    except ConfigError as error:
        leave(log, name, str(error), BROKEN_CONFIGURATION)
    except KeyboardInterrupt:
        log.info("process=%s event=interrupted", name)
    except OSError as error:
        leave(log, name, explain(error), 1)
    except Exception:
        log.exception("process=%s event=failed", name)
        flush_and_exit(1)
    log.info("process=%s event=finished", name)
    flush_and_exit(0)


def explain(error: OSError) -> str:
    """One line for an error of the operating system, with what to do about it where that is known."""
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error) or type(error).__name__
    advice = {
        28: "the disk is full: free some space, or set SIDSTREAM_HOME to a larger disk",
        98: "the port is in use: choose another in the configuration, or 0 for a free one",
        13: "set SIDSTREAM_HOME to a folder that can be written",
        30: "set SIDSTREAM_HOME to a folder that can be written",
    }.get(error.errno or 0)
    return f"{what} ({advice})" if advice else what


def leave(log: logging.Logger, name: str, line: str, code: int) -> None:
    log.error('process=%s event=failed reason="%s"', name, line)
    flush_and_exit(code)


def flush_and_exit(code: int) -> None:
    """End now: threads of libraries (librdkafka, gRPC, PyFlink's gateway) must not delay or change the exit code."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def log_to_stderr(level: int = logging.INFO) -> None:
    """One line an event: time, level and logger as key=value, then the event's own pairs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("time=%(asctime)s level=%(levelname)s logger=%(name)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("sidstream").setLevel(level)


class LineFormatter(logging.Formatter):
    """UTC times with milliseconds; line ends inside a message are escaped, tracebacks keep theirs."""

    converter = time.gmtime  # type: ignore[assignment]
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).replace("\n", "\\n")


def host_and_port(url: str) -> tuple[str, int]:
    """Host and port of an `http://` or `redis://` address."""
    parts = urllib.parse.urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or {"http": 80, "https": 443, "redis": 6379}.get(parts.scheme, 0)
