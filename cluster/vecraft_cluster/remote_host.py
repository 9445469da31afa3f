"""A shard actor seen as a host: a port that can also keep the shard's writers waiting, for whoever copies its files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray import exceptions as ray_errors

from vecraft_cluster.ports import Directory, Handle, RayShardPort, shard_name, translate, unwrap
from vecraft_data_model.errors import StorageFailureException

PAUSE_S = 600.0
"""A pause that nobody ended is over after this: whoever asked for it must have died."""

CALL_TIMEOUT_S = 60.0


class RemoteHost(RayShardPort):
    """A shard of a cluster, as :class:`vecraft_cluster.host.ShardHost` is one in this process."""

    def __init__(self, cluster: str, shard: int, directory: Directory) -> None:
        super().__init__(cluster, shard, directory)
        self._actor = shard_name(cluster, shard)
        self._number = shard
        self._handles = directory

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep writers and maintenance waiting while the body runs; reads go on.

        Raises:
            StorageFailureException: The shard went on before the body ended: what it read of the files does not count.
            ShardUnavailableError: The shard cannot be reached.
        """
        handle, pause = self._pause()
        try:
            yield
        finally:
            held = False
            try:
                held = ray.get(handle.resume.remote(pause), timeout=CALL_TIMEOUT_S)
            except (ray_errors.RayError, TimeoutError) as error:
                self._handles.gone(self._actor, error)
        if not held:
            raise StorageFailureException(
                f"shard {self._number} was restarted, or went on writing, while its files were read; try again",
                shard=self._number,
            )

    def _pause(self) -> tuple[Handle, int]:
        known = self._handles.known(self._actor)
        handle = self._handles.find(self._actor)
        try:
            return handle, unwrap(ray.get(handle.pause.remote(PAUSE_S), timeout=CALL_TIMEOUT_S))
        except (ray_errors.RayError, TimeoutError) as error:
            self._handles.gone(self._actor, error)
            if isinstance(error, ray_errors.ActorDiedError) and known is not None:
                return self._pause()  # the handle was of an actor that was replaced since: look it up, once
            raise translate(error, f"shard {self._number}", shard=self._number) from error


def remote_hosts(cluster: str, shards: range, directory: Directory) -> dict[int, RemoteHost]:
    """Return the hosts of a cluster's shards, by number."""
    return {shard: RemoteHost(cluster, shard, directory) for shard in shards}
