"""The daemon: one process that pumps the outbox, runs consumers, and tells how it is.

config     what can be set, checked once; the only place that reads the environment
brokers    from a sink's configuration to its Sink, its Source and what is wrong with its settings
routing    from the routes to the Router, and to what the outbox's source knows of them
bridging   the bridges between brokers, and what stands around their sinks
crossings  what a bridge may be configured to be, and whether bridges feed each other
days       the days of the consumers' tables, made and dropped
app        the composition root: everything is made, joined and run here
health     live and ready, judged by progress
http       /metrics, /livez, /readyz
cli        run, migrate, check, demo, version; and those of the next three
inspection status and doctor
operate    dead and replay
tidy       partitions made and dropped, where the daemon may not
"""
