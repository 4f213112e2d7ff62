"""What the proxy understands of Postgres, NATS and Kafka: enough to see the moments at which a lost connection leaves a doubt.

A watch changes nothing. It takes both directions of one connection as they come, cut into chunks anyhow, and gives the same bytes back in
parts; a part that is a moment is exactly the frame that the moment is about. It keeps back what it cannot judge yet: a frame's head, or
a whole frame that may be a moment. Within TLS there are no moments.
"""

from __future__ import annotations

import re
import struct
from abc import ABC, abstractmethod
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Mapping


class Direction(StrEnum):
    """Which way bytes go."""

    TO_SERVER = "to server"
    TO_CLIENT = "to client"


class Part(NamedTuple):
    """Some bytes to pass on, and the moment at which they are the one frame that matters."""

    data: bytes
    moment: str | None = None


class Frame(NamedTuple):
    """A frame that begins here. One that is a moment is there as a whole; of another, its end may be still to come."""

    size: int
    moment: str | None = None


class Protocol(ABC):
    """Watches one connection. Raises `ValueError` at what is not of its protocol."""

    moments: ClassVar[Mapping[str, frozenset[str]]]
    """What can be done at each moment."""
    in_order: ClassVar[bool] = False
    """Answers are told apart by their order alone: a client that misses one can understand none that follow."""

    def __init__(self) -> None:
        self._held = dict.fromkeys(Direction, b"")
        self._passing = dict.fromkeys(Direction, 0)
        self._begun = False
        self._opaque = False

    def parts(self, direction: Direction, data: bytes) -> list[Part]:
        """Return what can be passed on, now that these bytes are there."""
        if direction is Direction.TO_SERVER and not self._begun:
            self._begun = True
            self._opaque = data.startswith(b"\x16")  # the first record of a TLS handshake
        look = self._sent if direction is Direction.TO_SERVER else self._received
        data = self._held[direction] + data
        parts: list[Part] = []
        given, at = 0, min(self._passing[direction], len(data))
        self._passing[direction] -= at
        while at < len(data) and not self._opaque and (frame := look(data, at)):
            if frame.moment is not None:
                parts += [Part(data[given:at]), Part(data[at : at + frame.size], frame.moment)]
                given = at = at + frame.size
            else:
                at += frame.size
                self._passing[direction] = max(0, at - len(data))
        at = len(data) if self._opaque else min(at, len(data))
        self._held[direction] = data[at:]
        parts.append(Part(data[given:at]))
        return [part for part in parts if part.data]

    def rest(self, direction: Direction) -> bytes:
        """Return what was kept back, when nothing more comes."""
        held, self._held[direction] = self._held[direction], b""
        return held

    def another(self) -> Self:
        """Return one like this, for another connection."""
        return type(self)()

    @abstractmethod
    def _sent(self, data: bytes, at: int) -> Frame | None:
        """Return the client's frame that begins at a place; None, and note nothing, if more of it is needed to tell."""

    @abstractmethod
    def _received(self, data: bytes, at: int) -> Frame | None:
        """Likewise for the server's."""


class PostgresProtocol(Protocol):
    """The wire protocol 3 (https://www.postgresql.org/docs/current/protocol-flow.html).

    ``before_commit``: the client's Query or Execute of a COMMIT, which has not been passed on yet. ``after_commit``: the CommandComplete
    of one that was; the transaction is committed. A COMMIT among other statements of one Query is none, nor is one that rolls back.
    """

    moments: ClassVar = {"before_commit": frozenset({"cut", "late"}), "after_commit": frozenset({"cut", "late"})}

    _COMMIT: Final = re.compile(rb"\s*(?:commit|end)(?:\s+(?:work|transaction))?\s*;?\s*", re.IGNORECASE)
    _CANCEL: Final = 80877102
    _ENCRYPT: Final = (80877103, 80877104)
    _PEEK: Final = 256
    """Bytes of a frame that are looked at: the names in Parse, Bind and Execute, and any text that is a mere COMMIT."""

    def __init__(self) -> None:
        super().__init__()
        self._started = False
        self._asked = 0
        """Requests for encryption; each is answered by one byte."""
        self._statements: set[bytes] = set()
        """Those whose text is COMMIT, and in ``_portals`` those bound to one."""
        self._portals: set[bytes] = set()
        # What is answered by one ReadyForQuery is a round: the login is round 0. In it, each Execute has an answer of its own, unless
        # an error makes the server pass over the rest of the round.
        self._round = self._place = 0
        self._synced = False
        self._answered = self._answers = 0
        self._commits: set[tuple[int, int]] = set()
        """Round and place of each COMMIT whose answer is still to come."""

    def _sent(self, data: bytes, at: int) -> Frame | None:
        if not self._started:
            return self._startup(data, at)
        if len(data) - at < 5:
            return None
        kind, size = data[at : at + 1], 1 + _integer(data, at + 1)
        looked_at = min(size, self._PEEK) if kind in b"QPBE" else 5
        body = data[at + 5 : at + looked_at]
        if len(body) < looked_at - 5:
            return None
        first, _, rest = body.partition(b"\0")
        second = rest.partition(b"\0")[0]
        commits = False
        if kind == b"P":
            _put(self._statements, first, self._COMMIT.fullmatch(second) is not None)
        elif kind == b"B":
            _put(self._portals, first, second in self._statements)
        elif kind in b"EQ":
            self._place += 1
            commits = first in self._portals if kind == b"E" else self._COMMIT.fullmatch(first) is not None
            if commits:
                self._commits.add((self._round, self._place))
        if kind in b"cf" and self._synced:
            self._round -= 1  # the server has ignored the Sync that came before the end of an extended COPY
        if kind in b"QFS":
            self._round, self._place = self._round + 1, 0
            self._synced = kind == b"S"
        return Frame(size, "before_commit" if commits else None)

    def _startup(self, data: bytes, at: int) -> Frame | None:
        if len(data) - at < 8:
            return None
        size, code = _integer(data, at), _integer(data, at + 4)
        if code in self._ENCRYPT:
            self._asked += 1
        elif code != self._CANCEL:
            self._started, self._round = True, 1
        return Frame(size)

    def _received(self, data: bytes, at: int) -> Frame | None:
        kind = data[at : at + 1]
        if self._asked:
            self._asked -= 1
            if kind in b"NSG":
                self._opaque = kind != b"N"
                return Frame(1)
        if len(data) - at < 5:
            return None
        size = 1 + _integer(data, at + 1)
        moment = None
        if kind in b"CIs":  # CommandComplete, EmptyQueryResponse, PortalSuspended: each ends an Execute
            if (self._answered, self._answers + 1) in self._commits:
                if len(data) - at < size:
                    return None
                if data[at : at + size].startswith(b"COMMIT\0", 5):
                    moment = "after_commit"
            self._answers += 1
        elif kind == b"Z":
            self._answered, self._answers = self._answered + 1, 0
            self._commits = {commit for commit in self._commits if commit[0] >= self._answered}
        return Frame(size, moment)


class NatsProtocol(Protocol):
    """The client protocol (https://docs.nats.io/reference/reference-protocols/nats-protocol).

    ``after_pub``: the message that answers a PUB or HPUB with a reply subject. Not for subjects in ``$JS.``: these ask JetStream about
    itself, or acknowledge what it delivered, and are no publications.
    """

    moments: ClassVar = {"after_pub": frozenset({"cut", "lose", "repeat", "late"})}

    _LONGEST: Final = 1 << 20

    def __init__(self) -> None:
        super().__init__()
        self._awaited: set[bytes] = set()
        """Reply subjects whose answers are still to come."""

    def _sent(self, data: bytes, at: int) -> Frame | None:
        if (line := self._line(data, at)) is None:
            return None
        words = line.split()
        verb = words[0].upper() if words else b""
        if verb not in {b"PUB", b"HPUB"}:
            return Frame(len(line))
        if len(words) == (4 if verb == b"PUB" else 5) and not words[1].startswith(b"$JS."):
            self._awaited.add(words[2])
        return Frame(len(line) + int(words[-1]) + 2)

    def _received(self, data: bytes, at: int) -> Frame | None:
        if (line := self._line(data, at)) is None:
            return None
        words = line.split()
        if not words or words[0] not in {b"MSG", b"HMSG"}:
            return Frame(len(line))
        size = len(line) + int(words[-1]) + 2
        subject, dot = words[1], b"."
        while dot and subject not in self._awaited:  # the answer comes to the reply subject, or to one below
            subject, dot, _ = subject.rpartition(b".")
        if not dot:
            return Frame(size)
        if len(data) - at < size:
            return None
        self._awaited.discard(subject)
        return Frame(size, "after_pub")

    def _line(self, data: bytes, at: int) -> bytes | None:
        end = data.find(b"\n", at) + 1
        if not end and len(data) - at > self._LONGEST:
            msg = f"no line of NATS: {data[at : at + 40]!r}"
            raise ValueError(msg)
        return data[at:end] if end else None


class KafkaProtocol(Protocol):
    """Requests and responses, told apart by correlation ids (https://kafka.apache.org/protocol).

    ``after_produce``: the response to a Produce request. With ``acks=0`` there is none.
    """

    moments: ClassVar = {"after_produce": frozenset({"cut", "lose", "late"})}
    in_order = True

    _PRODUCE: Final = 0

    def __init__(self) -> None:
        super().__init__()
        self._awaited: set[int] = set()

    def _sent(self, data: bytes, at: int) -> Frame | None:
        if len(data) - at < 4:
            return None
        size = 4 + _integer(data, at)
        if size >= 12:  # smaller is a token of the oldest SASL exchange
            if len(data) - at < 12:
                return None
            key, _, correlation = struct.unpack_from("!hhI", data, at + 4)
            if key == self._PRODUCE:
                self._awaited.add(correlation)
        return Frame(size)

    def _received(self, data: bytes, at: int) -> Frame | None:
        if len(data) - at < 4:
            return None
        size = 4 + _integer(data, at)
        if size < 8:
            return Frame(size)
        if len(data) - at < 8:
            return None
        correlation = _integer(data, at + 4)
        if correlation not in self._awaited:
            return Frame(size)
        if len(data) - at < size:
            return None
        self._awaited.discard(correlation)
        return Frame(size, "after_produce")


def _integer(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4])


def _put(names: set[bytes], name: bytes, within: bool) -> None:
    if within:
        names.add(name)
    else:
        names.discard(name)
