"""`sidstream doctor`: what this machine and this configuration lack, and how to mend it."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
import psutil

from jobs.local import jars, java, kafka, ports, redis
from jobs.local.supervisor import read_status
from jobs.process import explain, model_store, read_json
from jobs.settings import ConfigError, Settings, load
from jobs.settings import home as home_folder

PACKAGES = ("torch", "torchrec", "apache-flink", "feast", "confluent-kafka", "redis", "fastapi", "av", "espeakng-loader")
LEAST_FREE_GIB, LEAST_MEMORY_GIB = 2, 8  # of a 30,000-impression run: 8 GiB resident in all


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    found: str
    ok: bool = True
    mend: str | None = None  # how; a finding that is not ok and needs nothing is only worth knowing
    needed: bool = True


@click.command()
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="The configuration to check.")
@click.option("--fetch", is_flag=True, help="First fetch the pinned jars that are missing.")
def command(config: Path | None, fetch: bool) -> None:
    """Say what is missing, unreachable or wrong, and how to mend it; exit code 1 if something needed is."""
    if fetch:
        try:
            jars.fetch(jars.locked(), click.echo)
        except jars.JarsMissing as error:
            raise click.ClickException(str(error)) from error
    findings = []
    for finding in examine(config, home_folder()):
        findings.append(finding)
        click.echo(render(finding))
    missing = sum(1 for finding in findings if not finding.ok and finding.needed)
    click.echo(f"{missing} thing{'s' * (missing != 1)} to mend" if missing else "everything that is needed is there")
    sys.exit(1 if missing else 0)


def render(finding: Finding) -> str:
    sign = "ok  " if finding.ok else ("MEND" if finding.needed else "note")
    return f"{sign} {finding.what:<12} {finding.found}" + (f" → {finding.mend}" if finding.mend and not finding.ok else "")


def examine(config: Path | None, home: Path) -> Iterator[Finding]:
    """Check one thing after another; each check that fails is one finding, never an exception."""
    yield python()
    yield packages()
    try:
        settings = load(config)
        yield Finding("config", str(config) if config else "defaults (no --config)")
    except ConfigError as error:
        yield Finding("config", str(error), False, "correct the file")
        settings = Settings()
    yield checked("java", lambda: f"{java.java_home()} (Java {java.major_version(java.java_home())})", java.JavaMissing)
    yield checked("jars", lambda: f"{len(jars.paths())} pinned jars", jars.JarsMissing)
    if settings.redis.url is None:
        yield checked("redis-server", lambda: str(redis.server_program()), redis.RedisMissing)
    yield folder("home", home)
    yield memory()
    yield from servers(settings, home)
    yield store(settings, home)
    yield accelerator()
    yield search()


def checked(what: str, look: Callable[[], str], failure: type[Exception]) -> Finding:
    try:
        return Finding(what, look())
    except failure as error:
        found, _, mend = str(error).partition(": ")
        return Finding(what, found, False, mend)


def python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", found, sys.version_info[:2] == (3, 11), "make the environment with Python 3.11: rm -rf .venv && make setup")


def packages() -> Finding:
    absent = []
    for name in PACKAGES:
        try:
            version(name)
        except PackageNotFoundError:
            absent.append(name)
    found = f"{', '.join(absent)} missing" if absent else f"{len(PACKAGES)} direct dependencies installed"
    return Finding("packages", found, not absent, "make setup")


def folder(what: str, path: Path) -> Finding:
    """Whether a folder can be written, with its disk's free space."""
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not os.access(there, os.W_OK):
        return Finding(what, f"{path} cannot be written", False, "set SIDSTREAM_HOME to a folder that can")
    free = shutil.disk_usage(there).free / 2**30
    mend = "free some space, or set SIDSTREAM_HOME to a larger disk"
    return Finding(what, f"{path}, {free:.1f} GiB free", free >= LEAST_FREE_GIB, mend)


def memory() -> Finding:
    free = psutil.virtual_memory().available / 2**30
    mend = f"{LEAST_MEMORY_GIB} GiB are used when everything runs: end other programs, or start fewer parts with --only"
    return Finding("memory", f"{free:.1f} GiB available", free >= LEAST_MEMORY_GIB, mend, needed=False)


def servers(settings: Settings, home: Path) -> Iterator[Finding]:
    """The servers that the configuration names, and the ports of those that it leaves to us."""
    running = bool(read_status(home).get("alive"))
    if settings.kafka.bootstrap:
        client = {**settings.kafka.security, "bootstrap.servers": settings.kafka.bootstrap}
        up = kafka.healthy(client, 5)
        mend = "start it, or correct kafka.bootstrap and kafka.security; without kafka.bootstrap a broker is embedded"
        yield Finding("kafka", f"{settings.kafka.bootstrap} {'answers' if up else 'does not answer'}", up, mend)
    if settings.redis.url:
        up = redis.healthy(settings.redis.url, 3)
        mend = "start it, or correct redis.url; without it a server is embedded"
        yield Finding("redis", f"{without_password(settings.redis.url)} {'answers' if up else 'does not answer'}", up, mend)
    if settings.http.port and not running:
        free = ports.is_free(settings.http.port, settings.http.host)
        found = f"{settings.http.host}:{settings.http.port} is {'free' if free else 'in use'}"
        yield Finding("http", found, free, "choose another http.port, or 0 for a free one")
    remembered = read_json(home / "run" / "ports.json")
    try:
        socket.create_server(("127.0.0.1", 0)).close()
    except OSError as error:
        yield Finding("ports", explain(error), False, "allow this user to listen on 127.0.0.1")
    else:
        last = ", ".join(f"{name} {port}" for name, port in remembered.items()) or "chosen at the first start"
        yield Finding("ports", last + ("" if not running else " (running)"))


def without_password(url: str) -> str:
    """A Redis URL that may be shown."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def store(settings: Settings, home: Path) -> Finding:
    url = model_store(settings, home)
    try:
        from model.store import ModelStore, StoreError
    except ImportError as error:
        return Finding("model store", str(error), False, "make setup")
    try:
        has_bundle = ModelStore(url).exists("BUNDLE")
    except (OSError, StoreError, ValueError, ImportError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        return Finding("model store", f"{url}: {lines[0]}", False, "correct model_store, or leave it out for a folder in the home")
    return Finding("model store", f"{url}, {'has' if has_bundle else 'no'} bundle of semantic IDs{'' if has_bundle else ' yet'}")


def accelerator() -> Finding:
    if Path("/proc/driver/nvidia/version").exists():
        return Finding("gpu", "NVIDIA driver present")
    return Finding("gpu", "none; everything runs on the CPU", False, needed=False)


def search() -> Finding:
    from kernels import native

    try:
        native.load()
    except native.Unavailable as error:
        return Finding("search", f"runs on PyTorch alone, which takes longer: {error}", False, needed=False)
    return Finding("search", "compiled for this processor" + (", with its matrix unit for bfloat16" if native.matrix_unit() else ""))
