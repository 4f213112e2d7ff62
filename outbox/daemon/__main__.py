"""``python -m outbox.daemon`` is ``outboxd``."""

from outbox.daemon.cli import main

main()
