"""Jars of the broker and of Flink's connectors: named by coordinate, checked by SHA-256, kept in the virtual environment.

`jars.lock` lists every file, so nothing is resolved at set-up and the same bytes run everywhere. A jar in the folder has been
checked: it is copied there under another name and renamed only when its digest is right.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

LOCK = Path(__file__).with_name("jars.lock")


class JarsMissing(RuntimeError):
    """A pinned jar is not there, cannot be fetched, or has the wrong content; the message says which and what to do."""


@dataclass(frozen=True)
class Jar:
    purpose: str  # `broker`, `connector` or `parquet`
    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def coordinate(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"

    @property
    def path(self) -> Path:
        return folder() / f"{self.artifact}-{self.version}.jar"


def folder() -> Path:
    """Where checked jars lie: in the environment, so that they go when it goes."""
    return Path(sys.prefix) / "share" / "sidstream" / "jars"


def parse(lock: str) -> list[Jar]:
    """Read a lock: one `purpose group:artifact:version sha256` a line, `#` starts a comment."""
    jars = []
    for line in lock.splitlines():
        fields = line.partition("#")[0].split()
        if fields:
            purpose, coordinate, digest = fields
            group, artifact, version = coordinate.split(":")
            jars.append(Jar(purpose, group, artifact, version, digest))
    return jars


def locked(*purposes: str) -> list[Jar]:
    """The pinned jars of these purposes; of all when none is named."""
    return [jar for jar in parse(LOCK.read_text()) if not purposes or jar.purpose in purposes]


def paths(*purposes: str) -> list[Path]:
    """Local files of the jars of these purposes.

    Raises:
        JarsMissing: set-up has not fetched one of them.
    """
    wanted = locked(*purposes)
    absent = [jar.coordinate for jar in wanted if not jar.path.exists()]
    if absent:
        raise JarsMissing(
            f"{len(absent)} of {len(wanted)} jars are not there (first: {absent[0]}): run `make setup` or `sidstream doctor --fetch`"
        )
    return [jar.path for jar in wanted]


def fetch(jars: Iterable[Jar], said: Callable[[str], None] = lambda line: None) -> int:
    """Fetch what is missing, four at a time; returns how many jars were fetched.

    Raises:
        JarsMissing: a jar cannot be fetched, or two tries gave the wrong bytes.
    """
    absent = [jar for jar in jars if not jar.path.exists()]
    if not absent:
        return 0
    folder().mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(4) as pool:
        for done, jar in enumerate(pool.map(fetch_one, absent), 1):
            said(f"jar {done}/{len(absent)} {jar.coordinate}")
    return len(absent)


def fetch_one(jar: Jar) -> Jar:
    """Take a jar from the machine's Maven cache or its repositories, check it, put it in place."""
    from jgo.maven import MavenContext  # imports requests: only where something has to be fetched

    artifact = MavenContext(timeout=60).project(jar.group, jar.artifact).at_version(jar.version).artifact()
    for attempt in (1, 2):
        try:
            source = artifact.resolve()
            partial = jar.path.with_suffix(f".{os.getpid()}.partial")
            shutil.copyfile(source, partial)
        except OSError as error:  # includes every error of requests
            raise JarsMissing(
                f"{jar.coordinate} could not be fetched ({brief(error)}): check the network and the disk, then run this again"
            ) from error
        except RuntimeError as error:
            raise JarsMissing(f"{jar.coordinate} is not in the Maven repositories of this machine: {brief(error)}") from error
        found = sha256(partial)
        if found == jar.sha256:
            partial.replace(jar.path)
            return jar
        partial.unlink()
        if attempt == 1:
            source.unlink(missing_ok=True)  # an interrupted download leaves a truncated file in the Maven cache
    raise JarsMissing(f"{jar.coordinate} has SHA-256 {found}, pinned is {jar.sha256}: the repository serves something else")


def sha256(path: Path) -> str:
    """Digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def brief(error: Exception) -> str:
    """First line of an error, short enough for one line of output."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:160]


def main() -> None:
    """Set-up's step: fetch what is missing, one line; the same and exit code 1 when that fails."""
    try:
        fetched = fetch(locked())
    except JarsMissing as error:
        sys.exit(f"setup: {error}")
    print(f"  {fetched} fetched, {len(locked())} there and checked")


if __name__ == "__main__":
    main()
