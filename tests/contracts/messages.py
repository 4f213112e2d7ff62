"""Messages to send around, and how to compare what came of them."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bridges.message import Message, uuid7
from bridges.ports import Outcome, Published

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03"


def message(topic: str, number: int = 0, *, key: str | None = None, size: int = 0) -> Message:
    """A small message that says its number, or one with a payload of ``size`` bytes."""
    return Message(uuid7(), topic, b"x" * size or b'{"number":%d}' % number, key, created_at=datetime.now(UTC))


def series(topics: Sequence[str], count: int, *, keys: int = 1, key: str = "key") -> list[Message]:
    """``count`` messages, over ``keys`` keys and all the topics in turn."""
    return [message(topics[n // keys % len(topics)], n, key=f"{key}-{n % keys}") for n in range(count)]


def awkward(topic: str) -> list[Message]:
    """Messages in which every field has something that a broker might change."""
    now = datetime.now(UTC)
    headers = {
        "traceparent": TRACEPARENT,
        "tracestate": "vendor=t61rcWkgMzE,other=00f067aa0ba902b7",
        "X-Umlaut": "Grüße aus Köln, 日本 \U0001f600",
        "x-percent": "100% of %41",
        "x-blanks": "  both ends ",
        "x-empty": "",
        "x-tab": "a\tb",
        "x-encoded-word": "=?utf-8?q?no?=",
        "x-colon": "a: b: c",
    }
    return [
        Message(uuid7(), topic, b'{"plain":true}', "plain", created_at=now),
        Message(uuid7(), topic, '{"text":"ü"}'.encode(), "Schlüssel % /\u2028日本", "text/plain; charset=utf-8", headers, now),
        Message(uuid7(), topic, bytes(range(256)) * 8, "a key  with blanks ", "application/octet-stream", {"a": "b"}, now),
        Message(uuid7(), topic, b"", None, "application/x-empty", {}, now.replace(microsecond=0)),
        Message(uuid7(), topic, b"\r\nHPUB x 1 1\r\n\0", None, created_at=now.replace(year=1999, microsecond=1)),
    ]


def by_key(messages: Iterable[Message]) -> dict[tuple[str, str | None], list[Message]]:
    """The messages of each topic and key, in order; copies of a message after its first are left out."""
    found: defaultdict[tuple[str, str | None], dict[object, Message]] = defaultdict(dict)
    for each in messages:
        found[each.topic, each.key].setdefault(each.id, each)
    return {place: list(those.values()) for place, those in found.items()}


def ids(messages: Iterable[Message]) -> list[object]:
    return [each.id for each in messages]


def published(messages: Sequence[Message], outcomes: Sequence[Outcome]) -> list[Message]:
    """The messages that were published."""
    return [each for each, outcome in zip(messages, outcomes, strict=True) if isinstance(outcome, Published)]


def kinds(outcomes: Iterable[Outcome]) -> set[str]:
    """The kinds among the outcomes, and their reasons, in words that a failure shows well."""
    return {type(outcome).__name__ + (f" {reason}" if (reason := getattr(outcome, "reason", "")) else "") for outcome in outcomes}


def assert_key_prefix(messages: Sequence[Message], outcomes: Sequence[Outcome]) -> None:
    """Fail if a message is Published although one before it in its key is not."""
    stuck: dict[str, int] = {}
    for place, (each, outcome) in enumerate(zip(messages, outcomes, strict=True)):
        if each.key is None:
            continue
        if isinstance(outcome, Published):
            assert each.key not in stuck, f"message {place} of {each.key!r} is published, message {stuck[each.key]} before it is not"
        else:
            stuck.setdefault(each.key, place)
