"""Every nemesis, by name: each of the modules registers its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridges.errors import ConfigurationError
from tests.faults.fleet import SINKS
from tests.faults.nemeses import NEMESES, network, operators, processes, servers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.faults.nemeses import Nemesis

__all__ = ["NEMESES", "chosen", "network", "operators", "processes", "servers"]


def chosen(names: Iterable[str], sink: str) -> list[Nemesis]:
    """Return the nemeses of these names, or all that may be done with a sink if there are none.

    Args:
        names: of nemeses.
        sink: one of `SINKS`.

    Raises:
        ConfigurationError: a name, or the sink, is not known, or the nemesis is not for the sink.
    """
    if sink not in SINKS:
        msg = f"sink: {sink!r} is not one of {', '.join(SINKS)}"
        raise ConfigurationError(msg)
    fit = {name: nemesis for name, nemesis in NEMESES.items() if sink in nemesis.sinks}
    names = list(names)
    for name in names:
        if name not in fit:
            msg = f"nemesis: {name!r} is not one of those for {sink}: {', '.join(sorted(fit))}"
            raise ConfigurationError(msg)
    return [fit[name] for name in names] or list(fit.values())
