"""The router: many shards seen as one database, through flows that do no input or output of their own.

A write, module by module:

1. ``router.Router.commit`` makes the flow; ``splitting`` cuts the mutations by slot, one transaction part per shard.
2. ``commit`` makes attempts, ``attempt`` carries one through: one shard → ``CommitOne``; several → ``Prepare`` to all,
   ``Decide`` at the primary, answer, then ``Finish`` to the others in the background. What it wants done it yields as
   effects (``effects``).
3. A runner (``runners``) stamps requests with clock and map epoch and carries them through ports; on an event loop by
   way of an ``outbox`` per shard, where the requests of all flows meet and leave together.

A search:

1. ``router.Router.search`` makes the flow in ``reads``: it fixes the snapshot, asks every shard that owns slots,
2. ``asking`` waits out transactions that are still undecided, shards that restart and maps that are stale,
3. ``merging`` merges the shards' answers by (distance, record id).

``transactions`` builds interactive transactions on top, ``service`` the administrative flows, ``session`` the signed
tokens that outside clients carry. The ``gateway`` package, the REST face, is the only place that knows HTTP.
"""

from vecraft_router.config import RouterConfig
from vecraft_router.effects import Ask, Effect, Flow, RefreshMap, Sleep, Spawn, Tell
from vecraft_router.options import Bounded, ReadOptions
from vecraft_router.results import Commit, Found, Pin
from vecraft_router.router import Router
from vecraft_router.runners import AsyncRunner, SyncRunner
from vecraft_router.session import SessionTokens
from vecraft_router.transactions import InteractiveTransaction

__all__ = [
    "Ask",
    "AsyncRunner",
    "Bounded",
    "Commit",
    "Effect",
    "Flow",
    "Found",
    "InteractiveTransaction",
    "Pin",
    "ReadOptions",
    "RefreshMap",
    "Router",
    "RouterConfig",
    "SessionTokens",
    "Sleep",
    "Spawn",
    "SyncRunner",
    "Tell",
]
