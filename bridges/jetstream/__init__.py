"""NATS JetStream: publish with counted acknowledgements, and consume through a durable pull consumer.

One connection, `JetStream`, serves any number of sinks and sources. It is built when it is needed and thrown away on any doubt, so
that nothing is sent late; the client's own reconnection, which would send what it still holds, is off. One place retries: the Bridge.
"""

from bridges.jetstream.connection import JetStream
from bridges.jetstream.sink import JetStreamSink
from bridges.jetstream.source import JetStreamSource

__all__ = ["JetStream", "JetStreamSink", "JetStreamSource"]
