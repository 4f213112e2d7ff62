"""Who takes part: subscriptions by name, and those that share the mailbox of a queue group."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from bridges.errors import Closed, ConfigurationError
from bridges.inprocess.feed import Feed
from bridges.inprocess.log import Place
from bridges.inprocess.mailbox import Mailbox
from bridges.inprocess.settings import Policy
from bridges.inprocess.spill import Spill
from bridges.inprocess.stats import Counts, add_ended

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bridges.inprocess.house import House
    from bridges.inprocess.kept import KeptLogs, Start
    from bridges.inprocess.log import Log
    from bridges.inprocess.routes import Routes
    from bridges.inprocess.settings import Settings
    from bridges.inprocess.subscription import Subscription
    from bridges.topics import Pattern


@dataclass(frozen=True, slots=True)
class Terms:
    """What was agreed with a subscription. Raises `ConfigurationError` for what does not go together."""

    patterns: tuple[Pattern, ...]
    name: str | None
    group: str | None
    durable: str | None
    settings: Settings
    start: Start | None

    def __post_init__(self) -> None:
        if self.group is not None and self.durable is not None:
            msg = f"group: {self.group!r} beside durable {self.durable!r}: those who share a durable name are a group by it"
            raise ConfigurationError(msg)
        if self.settings.tenants is not None and (self.start is not None or self.durable is not None):
            setting = f"start: {self.start!r}" if self.start is not None else f"durable: {self.durable!r}"
            msg = f"tenants: beside {setting}: a subscription that reads a log takes messages in its order; leave out one of the two"
            raise ConfigurationError(msg)

    @property
    def shared(self) -> str | None:
        """The name of what is shared with other members, if anything is."""
        return self.durable or self.group


class _Party:
    """A mailbox, and who takes from it."""

    __slots__ = ("box", "members", "terms")

    def __init__(self, box: Mailbox, terms: Terms) -> None:
        self.box = box
        self.terms = terms
        self.members: set[Subscription] = set()


class Members:
    """The subscriptions of one broker.

    Attributes:
        ended: what those counted that have ended, and had only a name made for them: what is counted of them all must not go down.
    """

    def __init__(self, house: House, routes: Routes, logs: KeptLogs) -> None:
        self._house = house
        self._routes = routes
        self._logs = logs
        self._parties: dict[str, _Party] = {}
        self._groups: dict[str, _Party] = {}
        self._numbers = count(2)
        self.ended = Counts()
        self._closed = False

    def __len__(self) -> int:
        return sum(len(party.members) for party in self._parties.values())

    def boxes(self) -> Iterator[Mailbox]:
        """Go over the mailboxes."""
        return (party.box for party in list(self._parties.values()))

    def named(self, name: str) -> bool:
        """Say whether the mailbox of this name was named by its maker."""
        party = self._parties.get(name)
        return party is not None and (party.terms.name or party.terms.shared) == name

    def join(self, subscription: Subscription, terms: Terms) -> Mailbox:
        """Let a subscription take part. Raises `Closed`, `ConfigurationError` and `bridges.errors.Evicted`."""
        if self._closed:
            msg = "the broker is closed"
            raise Closed(msg)
        party = self._groups.get(terms.shared) if terms.shared is not None else None
        if party is None:
            party = self._found(terms)
        else:
            _check_same(party.terms, terms)
        party.members.add(subscription)
        return party.box

    def leave(self, subscription: Subscription, box: Mailbox) -> None:
        """A subscription takes no further part; what it has not ended goes to the others, if there are any."""
        party = self._parties[box.name]
        party.members.discard(subscription)
        box.leave(subscription)
        if not party.members:
            named = self.named(box.name)
            del self._parties[box.name]
            if party.terms.shared is not None:
                del self._groups[party.terms.shared]
            self._routes.remove(party.terms.patterns, box)
            box.close()
            if not named:
                add_ended(box, self.ended)

    def close(self) -> None:
        """End every subscription."""
        self._closed = True
        for party in list(self._parties.values()):
            for member in list(party.members):
                member.unsubscribe()

    def check_kept(self, log: Log) -> None:
        """Raise `ConfigurationError` if a log that is to keep topics is one that a subscription spills to."""
        for box in self.boxes():
            if box.settings.spill_to is log:
                msg = f"log: is what {box.name!r} spills to (spill_to), and would have what is spilled twice; give another"
                raise ConfigurationError(msg)

    async def settled(self) -> None:
        """Wait until it is saved how far durable subscriptions have come."""
        await self._logs.settled()

    def _found(self, terms: Terms) -> _Party:
        name = wanted = terms.name or terms.shared or ",".join(pattern.text for pattern in terms.patterns)
        while name in self._parties:  # somebody may have given a name that looks like a made one
            name = f"{wanted}#{next(self._numbers)}"
        box = Mailbox(name, terms.settings, self._house)
        self._attach_log(box, terms)
        party = self._parties[name] = _Party(box, terms)
        if terms.shared is not None:
            self._groups[terms.shared] = party
        self._routes.add(terms.patterns, box)
        return party

    def _attach_log(self, box: Mailbox, terms: Terms) -> None:
        settings = terms.settings
        if settings.spill_to is not None:
            self._logs.check_spill(settings.spill_to)
            box.backlog = box.spill = Spill(settings.spill_to, box)
        elif terms.start is not None or terms.durable is not None or settings.policy == Policy.SPILL:
            setting = "start" if terms.start is not None else "durable" if terms.durable is not None else "policy: 'spill'"
            kept = self._logs.covering(terms.patterns, setting)
            cursor = kept.cursor(terms.durable) if terms.durable is not None else None
            saved = cursor.load() if cursor is not None else None
            place = saved or Place(kept.offset("live" if terms.start is None else terms.start))
            patterns = terms.patterns
            feed = Feed(
                kept.log,
                box,
                lambda topic: any(pattern.matches(topic) for pattern in patterns),
                self._routes.counts,
                start=place.below,
                done=place.done,
                again=place.dead,
                cursor=cursor,
            )
            if cursor is not None:
                cursor.follow(feed)
            box.backlog = box.feed = feed


def _check_same(ours: Terms, theirs: Terms) -> None:
    if ours.patterns != theirs.patterns:
        texts = [", ".join(pattern.text for pattern in terms.patterns) for terms in (ours, theirs)]
        msg = f"group {ours.shared!r} takes {texts[0]}; a member that takes {texts[1]} cannot share its messages"
        raise ConfigurationError(msg)
    if ours.durable != theirs.durable:
        msg = f"group {ours.shared!r} is {'durable' if ours.durable else 'not durable'}; all its members are"
        raise ConfigurationError(msg)
    if name := ours.settings.differs(theirs.settings):
        values = [getattr(terms.settings, name) for terms in (ours, theirs)]
        msg = f"group {ours.shared!r} has {name} {values[0]}; a member that has {values[1]} cannot share its buffer"
        raise ConfigurationError(msg)
