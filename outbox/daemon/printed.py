"""What an operator is told: aligned lines for people, on a terminal or not, and JSON for programs."""

from __future__ import annotations

import base64
import dataclasses
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import typer

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable

    from outbox.daemon.consumer_letters import ConsumerLetter, WholeLetter
    from outbox.deadletters import DeadLetter
    from outbox.replay import Replayed

_SHOWN_BYTES: Final = 64
_SHOWN_TOPICS: Final = 10
_COLUMNS: Final = ["died at", "reason", "attempts", "id", "topic", "key", "error"]


def many(number: int, what: str) -> str:
    """Return a number of something, in words."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def plain(text: str) -> str:
    """Return text in one line, without what would move a terminal's cursor."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def print_json(value: dict[str, Any]) -> None:
    """Print an object on a line."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def print_letter_as_json(letter: DeadLetter | ConsumerLetter) -> None:
    """Print everything that is known of a dead letter as an object: its payload too, where that was asked for."""
    fields: dict[str, Any] = {
        name: value.isoformat() if isinstance(value, datetime) else value for name, value in dataclasses.asdict(letter).items()
    }
    fields["id"] = str(letter.id)
    payload = fields.pop("payload", None)
    if payload is not None:
        text = _text_of(payload)
        fields |= {"payload": text} if text is not None else {"payload_base64": base64.b64encode(payload).decode()}
    print_json(fields)


def print_letters(letters: Iterable[DeadLetter | ConsumerLetter]) -> None:
    """Print a line for each dead letter."""
    lines = [_COLUMNS]
    for letter in letters:
        died_at = letter.died_at.isoformat(timespec="seconds")
        reason = getattr(letter, "reason", "handler")
        key = "-" if letter.key is None else letter.key
        line = [died_at, reason, str(letter.attempts), str(letter.id), letter.topic, key, letter.error or ""]
        lines.append([plain(cell) for cell in line])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_whole(letter: DeadLetter | WholeLetter) -> None:
    """Print everything about a dead letter, its payload too."""
    lines: list[tuple[str, str]] = []
    for field in dataclasses.fields(letter):
        value = getattr(letter, field.name)
        if field.name == "headers":
            lines += [("header", f"{name}: {text}") for name, text in value.items()]
        elif field.name != "payload":
            lines.append((field.name, "-" if value is None else value.isoformat() if isinstance(value, datetime) else str(value)))
    payload = letter.payload or b""
    text = _text_of(payload)
    if text is None:
        more = " ..." if len(payload) > _SHOWN_BYTES else ""
        text = f"{many(len(payload), 'byte')}, not text: {payload[:_SHOWN_BYTES].hex(' ')}{more}"
    for name, value in [*lines, ("payload", text)]:
        typer.echo(f"{name:<12}  {plain(value)}")


def print_topics(topics: Counter[str]) -> None:
    """Print how many of each topic, the most frequent first, and not all if there are many."""
    shown = topics.most_common(_SHOWN_TOPICS)
    for topic, number in shown:
        typer.echo(f"{number:>9}  {plain(topic)}")
    if rest := len(topics) - len(shown):
        typer.echo(f"{topics.total() - sum(number for _, number in shown):>9}  of {many(rest, 'other topic')}")


def print_done(verb: str, topics: Counter[str], *, dry_run: bool) -> None:
    """Print what was done, or would be: ``verb`` is "requeue" or "drop"."""
    if topics:
        done = {"requeue": "requeued", "drop": "dropped"}[verb]
        typer.echo(f"{f'would {verb}' if dry_run else done} {many(topics.total(), 'dead letter')}")
        print_topics(topics)
    else:
        typer.echo(f"no dead letter fits; {'nothing would change' if dry_run else 'nothing was changed'}")


def print_replayed(done: Replayed, to: str) -> None:
    """Print how far a replay came."""
    if done.replay is None:
        typer.echo("nothing in the archive fits")
        return
    how = "complete" if done.complete else "stopped"
    typer.echo(f"replay {done.replay} to {to}, {how}: {done.published} of {many(done.matched, 'message')} published")
    for reason, number in done.rejected.items():
        typer.echo(f"{number:>9}  rejected: {reason}")
    if done.missed:
        typer.echo(f"{done.missed:>9}  not found: their time in the archive was over before they were reached")


def _text_of(payload: bytes) -> str | None:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return None
