"""The checker: what a run left behind against every promise, and a report of what was not kept.

It is pure: `check` reads a `History`, and `told` turns one of its violations into text for a person. The promises themselves are in
`tests.faults.invariants`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import islice
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

from tests.faults.invariants import INVARIANTS, Indexed, Violation, consumers, secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from uuid import UUID

    from tests.faults.history import History

__all__ = ["AGAIN", "INVARIANTS", "Violation", "check", "smallest", "told"]

AGAIN = "python -m tests.faults --seed {seed} --sink {sink}"
"""How a run is repeated that does not say it."""

MOST = 10
"""Violations of one invariant, and messages of one violation, that are told one by one: more of a kind say nothing new."""

LISTED = 20
"""Lines of each list in a report, where it is not small."""

WIDEST = 1000
"""Characters of a line of the smallest history."""

EFFORT = 1_000_000
"""Items that each step of the search for the smallest history may look at: some seconds."""

AFTER = 30.0
"""Seconds after its settling in which a message may still be copied or take effect, as neither has a time: faults until then are told."""

Item = TypeVar("Item")


def check(history: History) -> list[Violation]:
    """Return what was not kept, by the order of `INVARIANTS`; of each at most `MOST`, and how many more there are."""
    known = Indexed.of(history)
    return [violation for name, invariant in INVARIANTS.items() for violation in _first(name, invariant(known), known)]


def told(history: History, violation: Violation) -> str:
    """Return the report: how to run it again, the smallest history that shows it, and the whole way of each message concerned."""
    again = history.again or AGAIN.format(seed=history.seed, sink=history.sink)
    lines = [
        f"{violation.invariant}: {violation.text}",
        f"seed {history.seed}, sink {history.sink}; to run it again: {again}",
        "",
        "The smallest history that shows it:",
        *_listed(smallest(history, violation)),
    ]
    for id_ in violation.ids[:MOST]:
        lines += ["", f"The way of {id_}:", *_way(history, id_)]
    if len(violation.ids) > MOST:
        lines += ["", f"and {len(violation.ids) - MOST} more messages"]
    return _masked("\n".join(lines), history)


def smallest(history: History, violation: Violation) -> History:
    """Return a part of it in which the same invariant is violated, as small as a bounded search finds; all of it if it is not violated.

    What was done to the system, and how long it took to recover, remain: without them, what was allowed would be a violation.
    """

    def shows(part: History) -> bool:
        return any(True for _ in INVARIANTS[violation.invariant](part))

    whole = replace(history, consumers=tuple(consumers(history)))  # who had no effect in a part of it was to have one all the same
    everything = dict.fromkeys((*_ids(whole), *violation.ids))
    of_keys = {put.id for put in whole.puts if put.key in violation.keys}
    for ids in (set(violation.ids), of_keys | set(violation.ids), set(everything)):
        part = _only(whole, ids)
        if shows(part):
            break
    else:
        return history

    part = _fewest([id_ for id_ in everything if id_ in ids], partial(_with_messages, part), shows) or part
    for name in ("settled", "audits", "samples", "probes", "exits", "stuck"):
        part = _fewest(getattr(part, name), partial(_with_items, part, name), shows) or part
    return _fewest(list(part.logs), partial(_with_logs, part), shows) or part


def _fewest(items: Sequence[Item], made: Callable[[Sequence[Item]], History], shows: Callable[[History], bool]) -> History | None:
    """Remove ever smaller chunks of them while the history that is made of the rest shows the violation; None if nothing could go.

    After "Simplifying and Isolating Failure-Inducing Input" (Zeller and Hildebrandt, 2002), one pass for each size.
    """
    smaller: History | None = None
    effort, size = EFFORT, len(items)
    while size:
        start = 0
        while start < len(items) and effort > 0:
            rest = [*items[:start], *items[start + size :]]
            effort -= len(items)
            if shows(part := made(rest)):
                items, smaller = rest, part
            else:
                start += size
        size //= 2
    return smaller


def _with_messages(history: History, ids: Sequence[UUID]) -> History:
    return _only(history, set(ids))


def _with_items(history: History, name: str, items: Sequence[object]) -> History:
    changes: dict[str, Any] = {name: list(items)}
    return replace(history, **changes)


def _with_logs(history: History, names: Sequence[str]) -> History:
    return replace(history, logs={name: history.logs[name] for name in names})


def _ids(history: History) -> Iterator[UUID]:
    for items in (history.puts, history.copies, history.effects, history.deaths):
        for item in items:
            yield item.id
    yield from history.left


def _only(history: History, ids: Collection[UUID]) -> History:
    """Return what it knows of these messages, and all that is of no message."""
    return replace(
        history,
        puts=[put for put in history.puts if put.id in ids],
        copies=[copy for copy in history.copies if copy.id in ids],
        effects=[effect for effect in history.effects if effect.id in ids],
        deaths=[death for death in history.deaths if death.id in ids],
        left=[id_ for id_ in history.left if id_ in ids],
        settled=[
            settled._replace(ids=settled.ids.intersection(ids), unowned=settled.unowned.intersection(ids))
            for settled in history.settled
            if not settled.ids or not settled.ids.isdisjoint(ids)
        ],
        audits=[audit._replace(left=audit.left.intersection(ids), stored=audit.stored.intersection(ids)) for audit in history.audits],
    )


def _listed(history: History) -> Iterator[str]:
    """Return a line for each item, ready to be pasted into a test."""
    names = ("puts", "copies", "effects", "deaths", "left", "settled", "audits", "faults", "samples", "probes", "exits", "stuck")
    for name in names:
        items: list[Any] = getattr(history, name)
        if items:
            yield f"  {name} ({len(items)}):"
            yield from _some([f"    {_shown(item, history)[:WIDEST]}" for item in items[:LISTED]], len(items))
    yield f"  in_flight={history.in_flight}, restarts={history.restarts}, logs: {', '.join(history.logs) or 'none'}"


def _way(history: History, id_: UUID) -> Iterator[str]:
    """Return what is known of a message: first by time, then what has no time of its own."""
    puts = [put for put in history.puts if put.id == id_]
    settled = [one for one in history.settled if id_ in one.ids]
    zero = min((put.at for put in history.puts), default=0.0)
    timed: list[tuple[float, str]] = []
    for put in puts:
        what = f"topic {put.topic}, key {put.key}, number {put.number}, digest {put.digest}{', poison' if put.poison else ''}"
        timed += [(put.at, f"put: {what}"), (put.ended, f"its transaction: {put.outcome}")]
    for one in settled:
        owner = ", whose transaction did not own its lane" if id_ in one.unowned else ""
        timed.append((one.at, f"out of a queue of the outbox, by the session {one.session}{owner}"))
    timed += _sightings(history, id_)
    copies = sorted((copy for copy in history.copies if copy.id == id_), key=attrgetter("log", "place"))
    stored = [copy for copy in copies if copy.at][:LISTED]
    timed += [(copy.at, f"copy in {copy.log} at {copy.place}: key {copy.key}, digest {copy.digest}") for copy in stored]
    since = min((put.at for put in puts), default=float("-inf"))
    until = max((one.at + AFTER for one in settled), default=float("inf"))
    for fault in history.faults:
        if fault.healed >= since and fault.began <= until:
            timed += [(fault.began, f"fault: {fault.nemesis}"), (fault.healed, f"healed: {fault.nemesis}")]
    if not puts:
        yield "  nobody put it"
    for at, what in sorted(timed, key=itemgetter(0)):
        yield f"  {at - zero:+11.3f} s  {what}"
    if (more := sum(1 for copy in copies if copy.at) - len(stored)) > 0:
        yield f"    and {more} more copies"
    lines = [f"  copy in {copy.log} at {copy.place}: key {copy.key}, digest {copy.digest}" for copy in copies if not copy.at]
    yield from _some(lines, len(lines))
    effects = sorted((effect for effect in history.effects if effect.id == id_), key=attrgetter("consumer", "place"))
    lines = [f"  effect in {one.consumer} at {one.place}: key {one.key}, number {one.number}, digest {one.digest}" for one in effects]
    yield from _some(lines, len(lines))
    yield from (f"  dead: {death.reason}" for death in history.deaths if death.id == id_)
    if id_ in history.left:
        yield "  in the outbox at the end"


def _some(lines: Sequence[str], count: int) -> Iterator[str]:
    """Return the first of so many lines, and how many more there are."""
    yield from lines[:LISTED]
    if count > LISTED:
        yield f"    and {count - LISTED} more"


def _sightings(history: History, id_: UUID) -> Iterator[tuple[float, str]]:
    """Return where the audits saw it, each time that this changed."""
    before = (False, False)
    for audit in sorted(history.audits, key=attrgetter("at")):
        now = (id_ in audit.left, id_ in audit.stored)
        if now != before:
            yield audit.at, f"seen: {'' if now[0] else 'not '}in the outbox, {'' if now[1] else 'not '}in the broker"
        before = now


def _first(name: str, violations: Iterable[Violation], history: History) -> Iterator[Violation]:
    found = iter(violations)
    for violation in islice(found, MOST):
        yield violation._replace(text=_masked(violation.text, history), keys=tuple(_masked(key, history) for key in violation.keys))
    if more := sum(1 for _ in found):
        yield Violation(name, f"and {more} more")


def _masked(text: str, history: History) -> str:
    for secret in secrets(history):
        text = text.replace(secret, "***")
    return text


def _shown(item: Any, history: History) -> str:
    """Return its ``repr``, masked before that escapes a secret, which could not be found any more."""
    if not hasattr(item, "_fields"):
        return repr(item)
    values = (_masked(value, history) if isinstance(value, str) else value for value in item)
    return f"{type(item).__name__}({', '.join(f'{name}={value!r}' for name, value in zip(item._fields, values, strict=True))})"
