"""Numbered SQL files in two tracks, and the runner that applies them.

Each track (``outbox``, ``dedupe``) is a folder of files ``NNNN_name.sql``. A schema remembers what was applied to it, with a
checksum, in its own ``migrations`` table. Files go forward only, one transaction each, under an advisory lock, so that two runners
cannot meet. A runner older than the schema it finds refuses to touch it.

    for migration in migrate(connection, "outbox", schema="outbox"):
        print("applied", migration)

People with their own migration tool take the text instead: ``script("outbox", schema="outbox")``. Both are in `migrations.runner`.

What no file can make once for all, since time goes on, are the partitions by day: `migrations.partitions` makes and drops those, as
`migrations.schedule` has it.
"""
