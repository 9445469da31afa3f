"""A shard under a lease, in a process that can be stopped: answers one line on standard output for each on its input.

``python lease_child.py DIRECTORY KERNEL LEASE_S``; it takes no file lock, as on a disk whose locks do not reach others.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import numpy as np

from vecraft_cluster.host import ShardHost
from vecraft_cluster.lease import Lease, LeaseFolder, LeaseKeeper
from vecraft_data_model.convert import put_of_columns
from vecraft_data_model.errors import VecraftError
from vecraft_data_model.messages import Batch, CommitOne, Count, CountReply, CreateCollection, Request, Transaction
from vecraft_data_model.schema import CollectionSchema
from vecraft_shard.disk import OsDisk


def request_for(command: str, argument: str) -> Request:
    """``create c``, ``write a`` or ``count c`` as a request."""
    if command == "count":
        return Count(collection=argument)
    digest = hashlib.sha256(argument.encode()).digest()
    if command == "create":
        schema = CollectionSchema(name=argument, dim=2)
        return CommitOne(Transaction(argument, digest, [CreateCollection(schema, "ab" * 16)]))
    put = put_of_columns("c", [argument], np.ones((1, 2), np.float32))
    return CommitOne(Transaction(argument, digest, [put]))


def answer(host: ShardHost, line: str) -> str:
    """What the host says to a command: the kind of its reply, and the count."""
    command, _, argument = line.partition(" ")
    try:
        reply = host.execute(Batch([request_for(command, argument)]), 60.0).responses[0]
    except VecraftError as error:
        return f"refused {error.details.get('outcome')} {error.message}"
    count = f" {reply.count}" if isinstance(reply, CountReply) else ""
    return f"{type(reply).__name__}{count}"


def main() -> None:
    """Serve until the input ends, or the lease is lost."""
    directory, kernel, lease_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    lease = Lease(LeaseFolder(directory / "lease"), kernel=kernel, lease_s=lease_s, takeover_s=1.25 * lease_s)
    lease.acquire(60.0)
    LeaseKeeper(lease, lambda: os._exit(77), every_s=lease_s / 4)
    host = ShardHost(OsDisk(directory), 0, lease=lease)
    print("ready", flush=True)
    for line in sys.stdin:
        print(answer(host, line.strip()), flush=True)


if __name__ == "__main__":
    main()
