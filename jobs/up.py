"""`sidstream up`: start the parts of a home and keep them running."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import click

from jobs.local import logfiles, ports
from jobs.local.jars import JarsMissing
from jobs.local.java import JavaMissing
from jobs.local.ledger import Ledger
from jobs.local.parts import Addresses, Part, select, sidstream, system
from jobs.local.redis import RedisMissing
from jobs.local.supervisor import Runner, StartFailed, State, Supervisor, read_status
from jobs.process import BROKEN_CONFIGURATION, LineFormatter, explain, feature_repo, model_store, read_json, write_json
from jobs.settings import ConfigError, Settings, load
from jobs.settings import home as home_folder

LEAST_FREE_BYTES = 512 * 2**20
EMBEDDED = {"kafka": "broker", "controller": "broker", "redis": "redis", "http": "server"}  # port → the part that listens there


class Refused(click.ClickException):
    """One line on stderr, exit code 1."""


class RefusedConfiguration(Refused):
    """The same for a broken configuration, with the exit code of every process for that."""

    exit_code = BROKEN_CONFIGURATION


@click.command()
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="YAML; every key has a default.")
@click.option("--detach", is_flag=True, help="Return when everything is well; `sidstream down` stops it.")
@click.option(
    "--only", metavar="PART,…", default="", help="Only these: broker, redis, flink, inspector, writer, trainer, server, generator, …"
)
@click.option("--quiet", is_flag=True, hidden=True)
def command(config: Path | None, detach: bool, only: str, quiet: bool) -> None:
    """Start what is not running, wait until it is well, and keep it running.

    In the foreground Ctrl-C stops everything; a part that dies is started again. With --detach the supervisor goes to the
    background; a second `up --detach` adds parts to it.
    """
    names = [name.strip() for name in only.split(",") if name.strip()]
    try:
        settings = load(config)
        home = home_folder()
        (home / "run").mkdir(parents=True, exist_ok=True)
        (home / "logs").mkdir(exist_ok=True)
        refuse_full_disk(home)
        config = config.resolve() if config else None
        running = read_status(home)
        if running.get("alive") and not locked_by_nobody(home):
            if not detach:
                raise Refused(
                    f"{home} is already run by supervisor {running['supervisor']['pid']}: `sidstream status` shows it, "
                    "`sidstream up --detach --only …` adds parts to it, `sidstream down` stops it, SIDSTREAM_HOME names another home"
                )
            add(home, settings, config, names)
        elif detach:
            go_to_background(home, config, names)
        else:
            supervise(home, settings, config, names, quiet)
    except ConfigError as error:
        raise RefusedConfiguration(str(error)) from error
    except (JavaMissing, JarsMissing, RedisMissing, StartFailed) as error:
        raise Refused(str(error)) from error
    except OSError as error:
        raise Refused(explain(error)) from error


def refuse_full_disk(home: Path) -> None:
    free = shutil.disk_usage(home).free
    if free < LEAST_FREE_BYTES:
        raise Refused(f"only {free // 2**20} MiB are free in {home} (512 needed): free some space or set SIDSTREAM_HOME to a larger disk")


def lock(home: Path) -> IO[str] | None:
    """The home's lock, held until the file is closed or the process ends, however it ends; None if another process holds it."""
    file = (home / "run" / "supervisor.lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def locked_by_nobody(home: Path) -> bool:
    file = lock(home)
    if file is None:
        return False
    file.close()
    return True


def layout(home: Path, settings: Settings, config: Path | None) -> tuple[list[Part], dict[str, Any]]:
    """All parts of this configuration, and the addresses that `state.json` will give."""
    alive = Ledger(home).alive()
    ours = [name for name, part in EMBEDDED.items() if part in alive]
    chosen = ports.remembered(home, list(EMBEDDED), ours)
    if settings.http.port:
        if "server" not in alive and not ports.is_free(settings.http.port, settings.http.host):
            raise Refused(f"port {settings.http.port} (http.port) is in use: choose another in the configuration, or 0 for a free one")
        chosen["http"] = settings.http.port
    parts = system(settings, home, Addresses(**chosen), config)
    addresses = {
        "kafka": settings.kafka.bootstrap or f"127.0.0.1:{chosen['kafka']}",
        "redis": settings.redis.url.partition("://")[2].partition("/")[0] if settings.redis.url else f"127.0.0.1:{chosen['redis']}",
        "http": f"http://{settings.http.host}:{chosen['http']}",
        "flink": None,
        "model_store": model_store(settings, home),
        "feature_repo": str(feature_repo(home)),
    }
    return parts, addresses


def known(addresses: dict[str, Any], settings: Settings, names: Sequence[str]) -> dict[str, Any]:
    """The addresses without those of embedded servers that are not among the parts."""
    absent = {
        "kafka": settings.kafka.bootstrap is None and "broker" not in names,
        "redis": settings.redis.url is None and "redis" not in names,
        "http": not settings.http.port and "server" not in names,
    }
    return {key: None if absent.get(key) else value for key, value in addresses.items()}


def supervise(home: Path, settings: Settings, config: Path | None, names: Sequence[str], quiet: bool) -> None:
    """The supervisor itself: until SIGINT, SIGTERM or SIGHUP."""
    held = lock(home)
    if held is None:
        raise Refused(f"{home} is being started by another `sidstream up`: wait for it, or set SIDSTREAM_HOME to another home")
    log_to_file(home / "logs" / "supervisor.log", quiet)
    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: stopping.append(number))
    say = (lambda line: None) if quiet else click.echo
    parts, addresses = layout(home, settings, config)
    wanted = select(parts, names)
    supervisor = Supervisor(home, known(addresses, settings, [part.name for part in wanted]))
    started = time.monotonic()
    try:
        supervisor.want(wanted)
        if supervisor.bring_up(lambda: bool(stopping), lambda runner: progress(runner, say)):
            say(f"up after {time.monotonic() - started:.1f} s · home {home} · page {supervisor.addresses['http'] or '-'} · Ctrl-C stops it")
        while not stopping:
            supervisor.tick()
            answer_request(supervisor, parts, addresses, settings)
            time.sleep(0.1)
        say("stopping …")
    except (StartFailed, JavaMissing, JarsMissing, RedisMissing, OSError) as error:
        supervisor.reason = explain(error) if isinstance(error, OSError) else str(error)
        raise
    finally:
        exits = supervisor.stop()
    unclean = [f"{name} ({code})" for name, code in exits.items() if code != 0 and "#" not in name]
    if unclean:
        say(f"stopped; not cleanly: {', '.join(unclean)}")
    else:
        say("stopped")


def progress(runner: Runner, say: Any) -> None:
    """One line when a part is well, or has died."""
    if runner.state in (State.HEALTHY, State.DONE):
        say(f"  {runner.part.name:<16} {runner.state}")
    elif runner.state is State.RESTARTING:
        say(f"  {runner.part.name:<16} died, is started again: {runner.reason}")


def log_to_file(path: Path, quiet: bool) -> None:
    """All events to the log; on a terminal also what went wrong."""
    file = logging.FileHandler(path)
    handlers: list[logging.Handler] = [file]
    if not quiet:
        terminal = logging.StreamHandler(sys.stderr)
        terminal.setLevel(logging.WARNING)
        handlers.append(terminal)
    for handler in handlers:
        handler.setFormatter(LineFormatter("time=%(asctime)s level=%(levelname)s logger=%(name)s %(message)s"))
    logging.getLogger("sidstream").setLevel(logging.INFO)
    logging.getLogger("sidstream").handlers[:] = handlers


# -- parts for a supervisor that runs already: a file asks, its status answers ------------------------------------------


def answer_request(supervisor: Supervisor, parts: Sequence[Part], addresses: dict[str, Any], settings: Settings) -> None:
    path = supervisor.home / "run" / "request.json"
    if not path.exists():
        return
    request = read_json(path)
    path.unlink(missing_ok=True)
    try:
        wanted = select(parts, request.get("only", []))
    except ConfigError as error:
        supervisor.answer(request.get("id"), str(error))
        return
    new = [part.name for part in wanted if part.name not in supervisor.runners]
    supervisor.addresses = known(addresses, settings, [*supervisor.runners, *new])
    try:
        supervisor.want(wanted)
        supervisor.bring_up()
    except StartFailed as error:
        supervisor.drop(new)
        supervisor.phase = "up"
        supervisor.answer(request.get("id"), str(error))
    else:
        supervisor.answer(request.get("id"), None)


def add(home: Path, settings: Settings, config: Path | None, names: Sequence[str]) -> None:
    """Ask the running supervisor for parts and wait until they are well."""
    select(layout(home, settings, config)[0], names)  # an unknown name is this command's error
    request = uuid.uuid4().hex
    write_json(home / "run" / "request.json", {"id": request, "only": list(names)})
    while True:
        status = read_status(home)
        if not status.get("alive"):
            raise Refused(f"the supervisor ended meanwhile; see {home}/logs/supervisor.log")
        answer = status.get("answer") or {}
        if answer.get("id") == request:
            if answer["error"]:
                raise Refused(answer["error"])
            return
        time.sleep(0.1)


def go_to_background(home: Path, config: Path | None, names: Sequence[str]) -> None:
    """Start a supervisor that outlives this command; return when everything is well."""
    command_line = [*sidstream("up", "--quiet", config=config), *(["--only", ",".join(names)] if names else [])]
    log = home / "logs" / "supervisor.log"
    with log.open("ab") as file:
        child = subprocess.Popen(
            command_line,
            env={**os.environ, "SIDSTREAM_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    seen: dict[str, str] = {}
    try:
        while child.poll() is None:
            status = read_status(home)
            if status.get("supervisor", {}).get("pid") == child.pid:
                for name, part in status["parts"].items():
                    if part["state"] != seen.get(name) and part["state"] in (State.HEALTHY, State.DONE, State.RESTARTING):
                        click.echo(f"  {name:<16} {part['state']}" + (f": {part['reason']}" if part["reason"] else ""))
                    seen[name] = part["state"]
                if status["phase"] == "up":
                    click.echo(f"up · home {home} · page {read_json(home / 'state.json').get('http') or '-'} · `sidstream down` stops it")
                    return
            time.sleep(0.1)
    except KeyboardInterrupt:
        child.send_signal(signal.SIGTERM)
        child.wait()
        raise
    refusal = RefusedConfiguration if child.returncode == BROKEN_CONFIGURATION else Refused
    raise refusal(logfiles.last_words(log).removeprefix("Error: "))
