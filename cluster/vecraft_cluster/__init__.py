"""What runs shards: on threads in this process (``host``), or as actors of a Ray cluster.

A write through this room, embedded: 1. the router's runner calls :class:`vecraft_cluster.host.ShardHost` with a
batch; 2. the batch joins the queue of writes, and whoever leads it takes all that is queued as one group;
3. the shard validates, logs, syncs and applies the group; 4. each caller gets its own answers. A search goes past that
queue: it runs on its caller's thread, beside other searches, while the latch keeps indexes from changing under it.

``root`` knows the data directory, which is the same embedded and on Ray. This package itself never imports Ray: the
modules that need it are imported by whoever wants a cluster.
"""
