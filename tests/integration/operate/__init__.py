"""What an operator does from the command line: ``outboxd dead`` and ``outboxd replay``."""
