"""Starting, joining and stopping clusters.

::

    launch(root, shards=2, address="local")     a Ray of this process's own, ended with it
    launch(root, address="auto")                on a Ray that runs already: the actors are detached and stay
    connect("auto")                             join what was launched there
    stop(name)                                  end a cluster on the Ray this process is connected to

A cluster is named after its root unless it is given a name, so launching the same root twice on one Ray joins it.

The connection to Ray itself, of which a process has only one, is :mod:`vecraft_cluster.connection`'s.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
from pathlib import Path

import ray

from vecraft_cluster.cluster import Cluster, ask_membership, make_controller, stop
from vecraft_cluster.connection import join_ray
from vecraft_cluster.controller import ClusterPlan, Membership
from vecraft_cluster.ports import NAMESPACE, controller_name, look_up
from vecraft_data_model.errors import InvalidDataException, ShardUnavailableError
from vecraft_shard.config import ShardConfig

__all__ = ["Cluster", "clusters", "connect", "launch", "name_of", "stop"]

DATA_PLANES = ("socket", "actor")

_CONTROLLER = re.compile(r"vecraft:(?P<cluster>.+):controller")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def launch(
    root: str | Path,
    shards: int | None = None,
    *,
    address: str = "local",
    name: str | None = None,
    default_shards: int | None = None,
    routers: int = 1,
    shard_config: ShardConfig | None = None,
    shard_cpus: float = 0,
    data_plane: str = "socket",
    timeout: float = 60.0,
) -> Cluster:
    """Start a cluster over a data directory, or join it if it runs there already.

    Args:
        root: The data directory, made if missing; a path on the nodes that hold the shards.
        shards: How many shards it must have; ``None`` takes what is there.
        address: ``"local"``: start a Ray on this machine, ended by ``close`` (a process that is connected to a Ray
            already uses that one). ``"auto"`` or ``"host:port"``: use the Ray that runs there; the cluster stays when
            this process goes.
        name: The cluster's name; from the root if left out.
        default_shards: How many shards a new root gets if ``shards`` is left out; ``None``: one per CPU here.
        routers: Router actors, for clients that use them.
        shard_config: The shards' settings.
        shard_cpus: Ray CPUs that each shard reserves.
        data_plane: ``"socket"``: routers reach shards over sockets of the shards' own, and by actor calls where that
            does not work; ``"actor"``: by actor calls only.
        timeout: Seconds until every shard must answer.

    Raises:
        InvalidDataException: An argument is not accepted, or the root has another number of shards.
        CorruptionError: The root is damaged.
        StorageFailureException: It cannot be read or written, or another process has it open.
        ShardUnavailableError: Ray, or a shard, did not come up in time.
    """
    path = Path(root).expanduser().resolve()
    cluster = _checked_name(name) if name is not None else name_of(path)
    release = join_ray(address)
    created = False
    try:
        plan = ClusterPlan(
            cluster=cluster,
            root=str(path),
            shards=shards,
            default_shards=default_shards or os.cpu_count() or 1,
            routers=routers,
            shard_config=shard_config or ShardConfig(),
            shard_cpus=shard_cpus,
            sockets=_checked_plane(data_plane) == "socket",
            home_node=ray.get_runtime_context().get_node_id(),
        )
        try:
            controller = look_up(controller_name(cluster))
        except ShardUnavailableError:
            created = True
            controller = make_controller(plan)
        membership = ask_membership(controller, timeout)
        _check_same(membership, path, shards)
        running = Cluster(membership, controller, stop_on_close=created and address == "local", release=release)
        try:
            running.wait_ready(timeout)
        except BaseException:
            atexit.unregister(running.close)
            raise
        return running
    except BaseException:
        try:
            if created and ray.is_initialized():
                stop(cluster)
        finally:
            release()
        raise


def connect(
    address: str = "auto", *, name: str | None = None, root: str | Path | None = None, timeout: float = 60.0
) -> Cluster:
    """Join a cluster that runs.

    Args:
        address: ``"auto"`` (the Ray of this machine, or ``RAY_ADDRESS``) or ``"host:port"``.
        name: The cluster; may be left out if only one runs there.
        root: Its data directory, instead of its name.
        timeout: Seconds until its controller must answer.

    Raises:
        InvalidDataException: None or several run there and none was named; the message lists them.
        ShardUnavailableError: There is no Ray there, or it refused this process, or the cluster does not answer.
    """
    release = join_ray(address)
    try:
        if name is None and root is not None:
            name = name_of(Path(root).expanduser().resolve())
        if name is None:
            running = clusters()
            if len(running) != 1:
                what = (
                    f"{len(running)} clusters run there ({', '.join(running)}): name one"
                    if running
                    else "none runs there"
                )
                raise InvalidDataException(
                    f"cannot choose a cluster on the Ray at {address!r}: {what}", clusters=running
                )
            name = running[0]
        controller = look_up(controller_name(_checked_name(name)))
        return Cluster(ask_membership(controller, timeout), controller, stop_on_close=False, release=release)
    except BaseException:
        release()
        raise


def clusters() -> list[str]:
    """Return the names of the clusters on the Ray that this process is connected to, sorted."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    matches = (_CONTROLLER.fullmatch(actor["name"]) for actor in actors if actor["namespace"] == NAMESPACE)
    return sorted(match["cluster"] for match in matches if match)


def name_of(root: Path) -> str:
    """Return the name that a cluster gets from its (resolved) data directory."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", root.name).strip("-.") or "root"
    return f"{readable[:60]}-{hashlib.blake2b(str(root).encode(), digest_size=4).hexdigest()}"


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidDataException(
            "a cluster's name must be 1 to 100 letters, digits, '.', '_' or '-', and begin with a letter or digit; "
            f"got {name!r}"
        )
    return name


def _checked_plane(data_plane: str) -> str:
    if data_plane not in DATA_PLANES:
        raise InvalidDataException(f"data_plane must be one of {', '.join(DATA_PLANES)}; got {data_plane!r}")
    return data_plane


def _check_same(membership: Membership, root: Path, shards: int | None) -> None:
    """A cluster that runs already must be the one that was asked for."""
    if membership.root != str(root):
        raise InvalidDataException(
            f"cluster {membership.cluster!r} runs over {membership.root}, not over {root}: choose another name",
            root=membership.root,
        )
    running = membership.cluster_map.shard_count
    if shards is not None and shards != running:
        raise InvalidDataException(f"{root} has {running} shard(s), but shards={shards} was asked for", shards=running)
