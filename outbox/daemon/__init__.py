"""The daemon: one process that pumps the outbox, runs consumers, and tells how it is.

config     what can be set, checked once; the only place that reads the environment
brokers    from a sink's configuration to its Sink, its Source and what is wrong with its settings
app        the composition root: everything is made, joined and run here
health     live and ready, judged by progress
http       /metrics, /livez, /readyz
cli        run, migrate, check, demo, version
"""
