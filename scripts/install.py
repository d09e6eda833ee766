"""Makes or updates .venv; run by scripts/setup from the project's root, on the standard library alone.

A stamp, written last, makes a second call take a second. A marker, removed last, tells of an install that was
killed half-way; the next call then starts from an empty environment.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

VENV = Path(".venv")
STAMP = VENV / "flmrec.stamp"
MARKER = Path("build/setup.unfinished")
LOCK = Path("build/setup.lock")
LOG = Path("build/setup.log")
CLASSES = VENV / "spark.jsa"  # named in scripts/environment.sh too
NO_WORD = "-Xlog:cds=off -Xlog:cds+dynamic=off"  # where the archive does not fit; in scripts/environment.sh too
INPUTS = ("pyproject.toml", "constraints.txt", "scripts/setup", "scripts/install.py", "scripts/share_classes.py")

LOWEST_JAVA = 17
# Spark finds jars in its own folder without a flag or a network; these two are all that our tables use of Delta.
JARS = {
    "io.delta:delta-spark_4.2_2.13:4.4.0": "27d4fd8b1f879535c573ed1c718177d6a27f24d3e626ba02e216369725721ead",
    "io.delta:delta-storage:4.4.0": "c46735481fa8e326b0957be02b4420cbcab4b325bb08009b7f2045a95133f1cc",
}
STALE_JARS = ("delta-spark_*.jar", "delta-storage-*.jar")
NOT_NEEDED = "org.*:*,com.*:*,net.*:*,commons*:*,jakarta*:*,javax*:*,io.unitycatalog:*,io.delta:delta-kernel*"
IVY_SETTINGS = """<ivysettings><settings defaultResolver="central"/>
  <resolvers><ibiblio name="central" m2compatible="true"/></resolvers></ivysettings>
"""
OURS = "# by scripts/setup"
# Another Spark or Python of the caller's shell must not answer in this one's place; as scripts/environment.sh has it.
FOREIGN = "PYTHONPATH PYTHONHOME SPARK_HOME SPARK_CONF_DIR PYSPARK_PYTHON PYSPARK_DRIVER_PYTHON PYSPARK_SUBMIT_ARGS"


class Fault(Exception):
    """What the machine lacks, in one line."""


def main() -> int:
    try:
        java = expect_java()
        with one_at_a_time():
            bring_up_to_date(java)
    except (Fault, OSError) as fault:
        print(f"scripts/setup: {fault}", file=sys.stderr)
        return 5
    except KeyboardInterrupt:
        print("scripts/setup: interrupted; the next call repairs it", file=sys.stderr)
        return 130
    return 0


def expect_java() -> str:
    """What Java says of its version. Raises Fault unless JAVA_HOME, or else the PATH, has a Java that is new enough."""
    home = os.environ.get("JAVA_HOME")
    java = f"{home}/bin/java" if home else "java"
    place = f"JAVA_HOME {home}" if home else "the PATH"
    expected = f"expected {LOWEST_JAVA} or newer on the PATH or in JAVA_HOME"
    try:
        told = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    except (OSError, subprocess.CalledProcessError):
        raise Fault(f"Java: found none in {place}, {expected}") from None
    if (major := java_major(told)) < LOWEST_JAVA:
        raise Fault(f"Java: got {major or 'an unknown version'} in {place}, {expected}")
    return told


def java_major(told: str) -> int:
    """17 from `openjdk version "17.0.15"`, 8 from `java version "1.8.0_401"`, 0 when it says nothing of the kind."""
    found = re.search(r'version "(?:1\.)?(\d+)', told)
    return int(found.group(1)) if found else 0


@contextmanager
def one_at_a_time() -> Iterator[None]:
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("scripts/setup: waiting for another call to finish", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def bring_up_to_date(java: str) -> None:
    wanted, found = stamp(java), read_stamp()
    runs = works(VENV / "bin/python")
    if runs and found == wanted and not MARKER.exists() and all(jar_is_there(name) for name in JARS):
        return
    started = time.monotonic()
    LOG.write_text("")
    STAMP.unlink(missing_ok=True)
    moved = bool(found) and (found["root"], found["python"]) != (wanted["root"], wanted["python"])
    if not runs or moved or MARKER.exists():
        MARKER.touch()
        print("scripts/setup: a new .venv", flush=True)
        call([sys.executable, "-m", "venv", "--clear", str(VENV)], "venv; does this Python come with ensurepip?")
    MARKER.touch()
    print(f"scripts/setup: Python packages, minutes the first time (log: {LOG})", flush=True)
    pip = [str(VENV / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    try:
        call([*pip, "-c", "constraints.txt", "-e", ".[dev]"], "pip")
    except Fault:
        MARKER.unlink()  # pip undoes what it could not finish
        raise
    MARKER.unlink()
    add_to_activate(f"unset {FOREIGN}")
    place_jars()
    share_classes()
    STAMP.write_text(json.dumps(wanted))
    print(f"scripts/setup: done in {time.monotonic() - started:.0f} s", flush=True)


def stamp(java: str) -> dict[str, str]:
    """What an environment depends on; one made from other values is not up to date."""
    version = "".join(line for line in java.splitlines() if not line.startswith(("NOTE:", "Picked up ")))
    digest = hashlib.sha256()
    for name in INPUTS:
        digest.update(Path(name).read_bytes())
    return {"root": str(Path.cwd()), "python": sys.version, "java": version, "inputs": digest.hexdigest()}


def read_stamp() -> dict[str, str]:
    try:
        values = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) and {"root", "python"} <= values.keys() else {}


def works(python: Path) -> bool:
    """Whether it runs, in an environment of its own and of this very version."""
    asked = f"import sys; sys.exit(sys.prefix == sys.base_prefix or sys.version_info[:2] != {sys.version_info[:2]})"
    try:
        return subprocess.run([python, "-c", asked]).returncode == 0
    except OSError:
        return False


def call(command: Sequence[str], name: str, environment: Mapping[str, str] | None = None) -> None:
    """Runs it with its output in the log; raises Fault, after the log's last lines, when it fails."""
    with LOG.open("a") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        print("\n".join(LOG.read_text(errors="replace").splitlines()[-15:]), file=sys.stderr)
        raise Fault(f"{name}: failed with exit code {code}; the whole output is in {LOG}")


def place_jars() -> None:
    folder = jars_folder()
    kept = {jar_name(name) for name in JARS}
    for pattern in STALE_JARS:
        for path in folder.glob(pattern):
            if path.name not in kept:
                path.unlink()
    if all(jar_is_there(name) for name in JARS):
        return
    print("scripts/setup: Delta's jars for Spark", flush=True)
    with tempfile.TemporaryDirectory(dir=VENV, prefix="ivy-") as work:
        resolve(Path(work))
        for name, expected in JARS.items():
            got = Path(work, "jars", f"{name.split(':')[0]}_{jar_name(name)}")
            if digest_of(got) != expected:
                raise Fault(f"{name}: got SHA-256 {digest_of(got)}, expected {expected}")
            part = folder / f"{jar_name(name)}.part"
            shutil.copyfile(got, part)
            part.replace(folder / jar_name(name))


def resolve(work: Path) -> None:
    """Lets Spark's own resolver download the jars into work/jars; twice, as networks have bad moments."""
    settings, script = work / "ivysettings.xml", work / "nothing.py"
    settings.write_text(IVY_SETTINGS)
    script.write_text("")
    conf = {"ivy": work, "ivySettings": settings, "excludes": NOT_NEEDED}  # relative: Ivy trips over a space
    flags = [flag for key, value in conf.items() for flag in ("--conf", f"spark.jars.{key}={value}")]
    command = [str(VENV / "bin/spark-submit"), "--packages", ",".join(JARS), *flags, str(script)]
    environment = {**os.environ, "PATH": f"{VENV.absolute()}/bin:{os.environ['PATH']}"}
    try:
        call(command, "Delta's jars", environment)
    except Fault:
        print("scripts/setup: Delta's jars: once more", flush=True)
        call(command, "Delta's jars", environment)


def share_classes() -> None:
    """An archive of the classes that Spark and Delta load; scripts/environment.sh and activate tell Java of it.

    Java takes it where it fits to the bit, and starts as it would without where not: so its lack is no fault.
    """
    print("scripts/setup: an archive of Spark's classes, for quicker starts", flush=True)
    CLASSES.unlink(missing_ok=True)
    part = CLASSES.with_suffix(".part")
    options = f'"-XX:ArchiveClassesAtExit={part.absolute()}" -XX:TieredStopAtLevel=1 {NO_WORD}'
    environment = {**os.environ, "SPARK_SUBMIT_OPTS": options, "PATH": f"{VENV.absolute()}/bin:{os.environ['PATH']}"}
    try:
        call([str(VENV / "bin/spark-submit"), "scripts/share_classes.py"], "the archive", environment)
        part.replace(CLASSES)
    except (Fault, OSError) as fault:
        part.unlink(missing_ok=True)
        print(f"scripts/setup: Spark starts without the archive: {fault}", file=sys.stderr)
        return
    option = f'\\"-XX:SharedArchiveFile=$VIRTUAL_ENV/{CLASSES.name}\\" {NO_WORD}'
    add_to_activate(f'export SPARK_SUBMIT_OPTS="${{SPARK_SUBMIT_OPTS:-}} {option}"')


def add_to_activate(line: str) -> None:
    """Has `source .venv/bin/activate` run one more line, in place of the one that began with the same word."""
    activate, word = VENV / "bin/activate", line.split()[0]
    kept = [own for own in activate.read_text().splitlines() if not (own.endswith(OURS) and own.split()[0] == word)]
    activate.write_text("\n".join([*kept, f"{line} {OURS}", ""]))


def jar_name(coordinates: str) -> str:
    _, artifact, version = coordinates.split(":")
    return f"{artifact}-{version}.jar"


def jar_is_there(coordinates: str) -> bool:
    return digest_of(jars_folder() / jar_name(coordinates)) == JARS[coordinates]


def jars_folder() -> Path:
    folders = sorted(VENV.glob("lib/python*/site-packages/pyspark/jars"))
    return folders[-1] if folders else VENV / "lib/pyspark/jars"


def digest_of(file: Path) -> str:
    """SHA-256 of the file, or "nothing" when there is none."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "nothing"


if __name__ == "__main__":
    sys.exit(main())
