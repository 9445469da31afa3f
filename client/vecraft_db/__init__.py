"""VecraftDB as its users import it: clients, server, command line, plots, import and export.

A write through this room: 1. ``VecraftClient.upsert`` calls the flow of the same name in ``client.operations``, which
checks and converts the arguments, once; 2. the flow asks the router for a commit; 3. the engine's runner carries the
messages out, to shards in this process (``embedded``), to actors, or to a gateway; 4. the answer becomes a
``CommitResult``. A search goes the same way. Every client runs the same flows, so all of them mean the same.
"""
