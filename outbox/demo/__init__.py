"""The demo and its proof: pgbench's own TPC-B moves money, and a consumer rebuilds every balance from messages alone.

engines    a private NATS or Kafka, fetched if it is not there
bank       the trigger that writes a message for each transfer, and the consumer's ledger
ledger     the consumer, as an application would write it
audit      a second reader of the broker's own log, for the order of publication
proof      what is compared at the end
run        starts everything, restarts what dies, and ends with the comparison
"""
