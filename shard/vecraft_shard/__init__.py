"""One shard of VecraftDB: a plain object that owns a directory. No Ray, no HTTP, no threads, no clock of its own.

A write, from end to end:

1. ``engine.Shard.execute`` takes a batch of requests and holds the writer's latch.
2. ``participant`` looks whether the transaction was decided before; ``admission`` whether anything stands against it:
   locks, conflicts, vectors that do not fit. A refusal leaves no trace.
3. ``timeline`` issues its timestamp and counts it as undecided from that moment.
4. ``records`` turns it into bytes, ``wal`` writes the bytes of the whole batch as one frame and syncs once.
5. ``state`` applies it: ``collection`` appends rows to ``store`` files, ``versions`` and the posting lists. The new
   rows are the *tail*, which every search scans.
6. The requests are answered. ``background`` moves the tail to the graph, makes checkpoints (``checkpoint``,
   ``locations``) and gives back the space of dead rows (``compaction``), whenever what runs the shard says so.

A search, from end to end:

1. ``reads`` chooses the snapshot, or takes the given one; the clock moves to it; if something undecided could be
   visible to it, the answer is ``Undecided``.
2. ``collection.matching`` turns filters into a set of rows by ``indexes.metadata`` and ``indexes.documents``.
3. ``planner`` picks by estimated cost: scan the matching rows exactly (``indexes.tail``), or walk the graph
   (``indexes.hnsw``) and keep what matches; ``search`` carries it out, adds the tail, drops what the snapshot does not
   see, and repairs answers that came short.
4. Like searches of one batch are carried out together (``batching``).
5. Payloads of the winners are read from the payload log, and their checksums verified.

A start: ``recovery`` opens the last checkpoint and replays the log after it, with the code of step 5.

Who may call what, and what must always be true, stands in ``ports`` of the model room and in ``docs/``.
"""
