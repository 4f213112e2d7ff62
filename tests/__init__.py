"""The tests. Nothing is installed from here."""
