"""What differs from seed to seed: the sizes, the workload and the faults of one simulated cluster.

Each seed draws a configuration of its own (swarm testing, Groce et al., ISSTA 2012): some bugs show only under quiet
load, some only under large skew, and a mixture of everything at once hides both.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

KINDS = ("append", "transfer", "blind", "get", "scan", "search", "alias", "interactive", "past", "skew", "fresh")
SPECIAL = ("witness", "claim", "near", "catalog", "pin", "delete_where", "reuse")
"""What clients do in some configurations only."""

FOCUSES = ("names", "damage", "graphs", "history", "relapses")
"""What a seed may be about: it then has much of that, and little of what would hide it. And see ``deletions``."""


@dataclass(frozen=True, slots=True)
class Swarm:
    """The configuration of one seed. Times are seconds unless the name says otherwise."""

    focus: str
    """One of :data:`FOCUSES`, or ``deletions``; empty: everything as it was drawn."""
    shards: int
    routers: int
    clients: int
    keys: int
    accounts: int
    think: float
    length: float
    """How long clients and faults go on."""
    isolation: str
    at_once: float
    """Share of commits that are read back at once, by a strong read through any router."""
    weights: dict[str, float]
    texts: bool
    """Whether records have documents, and conditions may be on those."""
    chosen_ids: float
    """Share of transactions whose id the client chooses."""
    foreign_ids: bool
    """Whether chosen ids may hold no creation time, or one of a clock that is far off."""
    loss: float
    duplicates: float
    late: float
    """Share of duplicates that come much later than the first copy."""
    slow: float
    """Share of messages that take about a second."""
    latency: float
    slow_links: float
    """Share of connections, one way between two nodes, that are 20 times as slow as the others."""
    silent: bool
    """Whether nobody says that a stopped shard is stopped."""
    partitions: float
    """Mean time between faults of this kind; 0: never. The same for the next six."""
    crashes: float
    router_crashes: float
    blackouts: float
    """Of everything at once: nobody is left who knows how late it was."""
    clock_jumps: float
    disk_errors: float
    full_disks: float
    power: float
    """Share of crashes that lose what was not synced."""
    relapses: float
    """Share of starts that end in another crash, while the shard recovers or soon after."""
    flips: int
    """Bits that are found flipped after each crash of one shard; 0: none ever."""
    wild_clocks: bool
    """Whether jumps may lead beyond the skew that is accepted."""
    skew_ms: int
    sync_time: float
    park: float
    """Share of reads that are carried out in the middle of something else, as another thread would."""
    router_timeout: float
    patience: float
    """How long clients wait for a router, which may go on for longer."""
    resolve_after_ms: int
    checkpoint_interval: float
    retention: float
    history: float
    compact_rows: int
    index_rows: int
    """A collection of so many rows gets a graph."""
    index_slice_ms: float
    maintain_ms: float
    """How long background work goes on at a time, by the simulated stopwatch."""

    @classmethod
    def of(cls, seed: int) -> Swarm:
        """The configuration of a seed."""
        return cls.draw(random.Random(f"swarm {seed}"))

    @classmethod
    def draw(cls, rng: random.Random) -> Swarm:
        """Draw a configuration."""
        pick = rng.choice
        weights = {kind: pick((0.0, 1.0, 1.0, 3.0)) for kind in KINDS}
        weights["get"] += 0.5
        weights["append"] += 0.5
        weights["alias"] *= pick((0.15, 0.5))
        weights |= {kind: pick((0.0, 0.0, 0.0, 1.0, 3.0)) for kind in SPECIAL}
        weights["catalog"] *= 0.5
        weights["alias"] += 0.3 * weights["delete_where"]  # which may go by an alias
        weights["waver"] = 0.0
        calm = rng.random() < 0.15
        drawn = cls(
            focus="" if calm else pick(("", "", "", *FOCUSES)),
            shards=pick((1, 2, 2, 3, 3, 4)),
            routers=pick((1, 2, 3)),
            clients=pick((2, 3, 4, 6)),
            keys=pick((2, 4, 8, 16)),
            accounts=pick((2, 4, 6)),
            think=pick((0.0, 0.005, 0.02, 0.08)),
            length=pick((0.3, 0.6, 1.0, 2.0)),
            isolation=pick(("snapshot", "snapshot", "serializable")),
            at_once=pick((0.0, 0.3, 0.8)),
            weights=weights,
            texts=rng.random() < 0.25,
            chosen_ids=pick((0.0, 0.5, 1.0)),
            foreign_ids=rng.random() < 0.2,
            loss=0.0 if calm else pick((0.0, 0.01, 0.05, 0.15, 0.3)),
            duplicates=0.0 if calm else pick((0.0, 0.05, 0.2)),
            late=pick((0.0, 0.2, 0.7)),
            slow=0.0 if calm else pick((0.0, 0.01, 0.05)),
            latency=pick((0.0002, 0.001, 0.005)),
            slow_links=pick((0.0, 0.0, 0.15, 0.4)),
            silent=rng.random() < 0.5,
            partitions=0.0 if calm else pick((0.0, 0.0, 0.5, 1.0)),
            crashes=0.0 if calm else pick((0.0, 0.15, 0.4, 0.8)),
            router_crashes=0.0 if calm else pick((0.0, 0.3, 0.8)),
            blackouts=0.0 if calm else pick((0.0, 0.0, 0.0, 0.2, 0.5)),
            clock_jumps=0.0 if calm else pick((0.0, 0.0, 0.3)),
            disk_errors=0.0 if calm else pick((0.0, 0.0, 0.0, 0.3, 1.0)),
            full_disks=0.0 if calm else pick((0.0, 0.0, 0.0, 0.0, 0.0, 0.5)),
            power=pick((0.0, 0.5, 1.0)),
            relapses=0.0 if calm else pick((0.0, 0.0, 0.3)),
            flips=int(not calm and rng.random() < 0.06),
            wild_clocks=rng.random() < 0.1,
            skew_ms=pick((0, 5, 50, 220, 220)),
            sync_time=pick((0.0001, 0.002, 0.01)),
            park=pick((0.0, 0.3, 0.8)),
            router_timeout=pick((0.5, 1.5, 3.0)),
            patience=pick((0.1, 0.4, 1.2, 4.0)),
            resolve_after_ms=pick((100, 300, 1000)),
            checkpoint_interval=pick((0.1, 0.5, 60.0)),
            retention=pick((1.2, 4.0, 3600.0, 3600.0)),
            history=pick((0.3, 2.0, 600.0, 600.0)),
            compact_rows=pick((4, 16, 1000)),
            index_rows=pick((1, 8, 1000, 1000)),
            index_slice_ms=pick((0.1, 5.0)),
            maintain_ms=pick((1.0, 20.0)),
        )
        if not drawn.focus and not calm and rng.random() < 0.25:
            drawn = replace(drawn, focus="deletions")
        return replace(drawn, **_focused(drawn, rng)) if drawn.focus else drawn


_QUICK = {
    "think": 0.0, "latency": 0.0005, "slow_links": 0.0, "slow": 0.0, "loss": 0.0, "sync_time": 0.002, "partitions": 0.0,
    "router_crashes": 0.0, "blackouts": 0.0, "disk_errors": 0.0, "full_disks": 0.0, "clock_jumps": 0.0,
    "wild_clocks": False, "foreign_ids": False, "relapses": 0.0, "flips": 0, "length": 1.0, "clients": 4, "keys": 16,
}  # fmt: skip
"""Where much happens: little of a cluster's time goes by with waiting."""


def _focused(drawn: Swarm, rng: random.Random) -> dict[str, Any]:
    """What is different in a seed that is about one thing."""
    pick = rng.choice

    def mainly(**weights: float) -> dict[str, float]:
        return {kind: weights.get(kind, 0.0) for kind in drawn.weights}

    match drawn.focus:
        case "names":
            # A change of the catalog has to fit in between the two halves of somebody's transaction.
            return _QUICK | {
                "weights": mainly(catalog=4, alias=1, blind=5, get=1, past=1, delete_where=pick((0, 1)), pin=0.2),
                "shards": pick((2, 3)), "routers": 3, "slow_links": pick((0.15, 0.3)), "keys": pick((4, 16)),
                "crashes": 0.0, "history": pick((0.3, 0.3, 600.0)), "texts": False,
            }  # fmt: skip
        case "damage":
            # What was damaged must have been in a checkpoint, and be looked at before it is written again.
            return _QUICK | {
                "weights": mainly(get=3, search=6, scan=2, past=1, blind=0.6, near=pick((0, 1)), append=0.3),
                "flips": pick((1, 3, 8)), "crashes": pick((0.15, 0.4)), "power": 0.0, "think": 0.005,
                "checkpoint_interval": 0.1, "history": 600.0, "length": 2.0,
            }  # fmt: skip
        case "graphs":
            return _QUICK | {
                "weights": mainly(near=6, blind=4, append=0.5, get=0.5, delete_where=0.5), "index_rows": 1,
                "index_slice_ms": 0.1, "maintain_ms": 1.0, "compact_rows": pick((4, 1000)),
            }  # fmt: skip
        case "history":
            return _QUICK | {
                "weights": mainly(past=3, pin=2, blind=3, get=1, scan=1, skew=4, catalog=0.5), "history": 0.3,
                "compact_rows": 4, "think": 0.02, "length": 1.5, "keys": 4, "crashes": drawn.crashes,
            }  # fmt: skip
        case "deletions":
            # Records come to match and cease to between the halves of a deletion by filter, and it is sent again,
            # through another router, while it waits for locks on one shard and holds its own on another.
            return _QUICK | {
                "weights": mainly(delete_where=2, waver=4, blind=pick((0, 1)), get=0.5, alias=pick((0, 0.1))),
                "shards": pick((2, 3)), "routers": 3, "slow_links": pick((0.15, 0.3)), "clients": 6,
                "keys": pick((2, 4)), "chosen_ids": pick((0.5, 1.0)), "patience": pick((0.1, 0.1, 1.2)),
                "loss": pick((0.0, 0.05)), "crashes": 0.0, "texts": False,
            }  # fmt: skip
        case _:
            # The end of the log is torn, and again before much was written after it.
            return _QUICK | {
                "weights": mainly(blind=3, append=2, transfer=3, get=1, witness=pick((0, 1)), skew=2),
                "relapses": pick((0.5, 0.8)), "crashes": 0.15, "power": pick((0.5, 0.9)), "shards": pick((2, 3)),
                "slow_links": pick((0.0, 0.3)), "length": 2.0, "keys": pick((4, 16)),
            }  # fmt: skip
