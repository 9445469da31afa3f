"""``python -m tests.blackbox``: a black-box run on a Ray of its own, with its record as JSON on standard output.

``--rpc-failures 5`` has Ray itself drop 5% of the requests and 5% of the replies of actor calls; batches then travel by
those alone, not over the shards' own sockets.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import sys
import tempfile
from pathlib import Path

RPC_FAILURE = "RAY_testing_rpc_failure"
TOLD_AT_ONCE = {"RAY_timeout_ms_task_wait_for_death_info": "10", "RAY_core_worker_internal_heartbeat_ms": "20"}
"""By default Ray holds back the news of a failed call for two seconds, in case the actor turns out to be dead."""


def main() -> int:
    """Run, print, and say by the exit code whether anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.blackbox")
    parser.add_argument("--transactions", type=int, default=int(os.environ.get("VECRAFT_BLACKBOX_TXNS", "20000")))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "1")))
    parser.add_argument("--limit", type=float, default=1e9, help="seconds after which it ends at any rate")
    parser.add_argument("--no-kills", action="store_true", help="kill and stop nothing")
    parser.add_argument("--rpc-failures", type=int, default=0, metavar="PERCENT")
    parser.add_argument("--record", type=Path, help="file that the record is appended to")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if options.rpc_failures:
        chances = {f"{what}_failure_prob": options.rpc_failures for what in ("req", "resp")}
        # Ray reads it when it is loaded, in this process and in all that it starts.
        methods = {"CoreWorkerService.grpc_client.PushTask": {"num_failures": -1, **chances}}
        os.environ[RPC_FAILURE] = json.dumps(methods)
        os.environ.update(TOLD_AT_ONCE)
    from tests.blackbox.run import cluster_for, run_on_ray

    with (
        contextlib.redirect_stdout(sys.stderr),  # where Ray says which of its workers died
        tempfile.TemporaryDirectory(prefix="vecraft-blackbox-") as folder,
        cluster_for(Path(folder) / "data", "actor" if options.rpc_failures else "socket") as cluster,
    ):
        verdict, record = run_on_ray(
            cluster, options.transactions, options.seed, kills=not options.no_kills, limit_s=options.limit
        )
    if options.rpc_failures:
        percent = f"{options.rpc_failures}%"
        record["dropped"] = f"{percent} of all requests and {percent} of all replies of actor calls"
    print(json.dumps(record))
    for problem in verdict.problems:
        print(problem, file=sys.stderr)
    if options.record is not None:
        with options.record.open("a") as out:
            out.write(json.dumps(record) + "\n")
    return 1 if verdict.problems or not verdict.write_skew else 0


if __name__ == "__main__":
    sys.exit(main())
