"""Which Postgres, NATS and Kafka the tests run on: chosen here, and nowhere else.

For each, in this order: a URL in the environment (``OUTBOXD_TEST_POSTGRES``, ``OUTBOXD_TEST_NATS``, ``OUTBOXD_TEST_KAFKA``); a container,
where Docker answers and has or gets the image; a private server from what is on the machine or can be fetched. There is no fourth:
an engine that cannot be had is an error, and no test is skipped for it.

Tests that kill, freeze or restart a server always use a private one of their own.
"""
