"""One class of tests a Protocol, run on every implementation and on every wrapper.

``sink.py`` and ``source.py`` hold the sentences of design.md, section 5. A ``harness_*.py`` says how an implementation is made, fed, read
back, sent away and brought back; a ``test_*.py`` runs the class on it. Where a sentence is different for an implementation, its class there
overrides the test with what holds instead, and the docstring gives the reason.

What is put in and read back goes through the brokers' plain clients and ``wire.py``, not through the other side of ours: two mistakes that
cancel each other out would be found.
"""
