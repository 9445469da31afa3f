"""Health, figures, the cluster, checkpoints, backups, plots: what is not about records.

Liveness only says that this process answers. Readiness asks every shard, now, every time: a gateway that cannot reach a
shard must not be sent traffic, and a cached answer would be the moment before it broke.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from vecraft_data_model.errors import InvalidDataException, OverloadedError, TsnePlotGeneratingFailureException
from vecraft_data_model.filters import values_at
from vecraft_data_model.messages import Rows, StatusReply
from vecraft_data_model.payload import metadata_of
from vecraft_data_model.scan_options import ScanOptions
from vecraft_data_model.schema import validate_name
from vecraft_data_model.validation import check_record_ids
from vecraft_router.gateway.body import read_as
from vecraft_router.gateway.context import Call, Gateway
from vecraft_router.gateway.metrics import CONTENT_TYPE
from vecraft_router.gateway.problems import problem_response
from vecraft_router.gateway.routes import Route
from vecraft_router.gateway.schemas import BackupBody, CheckpointBody


def routes(gateway: Gateway) -> list[Route]:
    """List the routes of this module."""
    here = _Service(gateway)
    plot = "A t-SNE plot (?record_ids=a&record_ids=b&perplexity=30&random_state=42&color_by=field)"
    return [
        Route("GET", "/healthz", here.healthz, "The process answers"),
        Route("GET", "/readyz", here.readyz, "Every shard answers; 503 names those that do not"),
        Route("GET", "/metrics", here.metrics, "Prometheus text", media_type="text/plain"),
        Route("GET", "/cluster", here.cluster, "Shards, slots and figures"),
        Route("POST", "/admin/checkpoint", here.checkpoint, "Make a checkpoint on every shard", CheckpointBody),
        Route(
            "POST",
            "/admin/backup",
            here.backup,
            "Write a backup into the gateway's backup directory; writes wait meanwhile",
            BackupBody,
            "201: its path and manifest",
        ),
        Route("GET", "/collections/{c}/tsne.png", here.tsne, plot, media_type="image/png"),
    ]


class _Service:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def healthz(self, request: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def readyz(self, request: Request) -> Response:
        replies = await self._status()
        silent = {shard: reply for shard, reply in replies.items() if not isinstance(reply, StatusReply)}
        if not silent:
            return Response(b'{"status":"ready"}', media_type="application/json")
        return problem_response(
            503,
            "shard_unavailable",
            "not ready: " + "; ".join(f"shard {shard}: {_why(reply)}" for shard, reply in sorted(silent.items())),
            {"shards": sorted(silent)},
            request.scope["vecraft.request_id"],
        )

    async def metrics(self, request: Request) -> Response:
        return Response(self._gateway.metrics.render(await self._status()), headers={"Content-Type": CONTENT_TYPE})

    async def cluster(self, request: Request) -> Response:
        call = self._gateway.call(request)
        replies = await self._status()
        cluster_map = self._gateway.router.state.cluster_map
        shards: list[dict[str, Any]] = []
        for shard in cluster_map.all_shards():
            entry: dict[str, Any] = {"shard": shard, "slots": len(cluster_map.slots_owned(shard))}
            reply = replies.get(shard)
            if isinstance(reply, StatusReply):
                entry.update(
                    status="up",
                    epoch=reply.epoch,
                    lsn=reply.lsn,
                    collections=reply.collections,
                    figures=reply.figures,
                )
            else:
                entry.update(status="unavailable", error=_why(reply))
            shards.append(entry)
        return call.answer({"epoch": cluster_map.epoch, "shards": shards})

    async def checkpoint(self, request: Request) -> Response:
        call = self._gateway.call(request)
        body = read_as(request, CheckpointBody, optional=True)
        router = self._gateway.router
        await self._gateway.run(router.checkpoint(body.compact, body.index, deadline=call.deadline))
        return call.answer({"checkpointed": list(router.state.cluster_map.all_shards())})

    async def backup(self, request: Request) -> Response:
        call = self._gateway.call(request)
        body = read_as(request, BackupBody, optional=True)
        if body.path is not None and not isinstance(body.path, str):
            raise InvalidDataException(f"path must be a name, got {str(body.path)[:60]!r}")
        backups = self._gateway.backups
        if backups is None:
            raise InvalidDataException("this gateway writes no backups: its database cannot make any")
        if self._gateway.backing_up.locked():
            raise OverloadedError("another backup is being written; a gateway writes one at a time")
        async with self._gateway.backing_up:
            manifest = await asyncio.to_thread(backups, body.path)
        return call.answer(manifest, status=201)

    async def tsne(self, request: Request) -> Response:
        call = self._gateway.call(request)
        plotter = self._gateway.plotter
        if plotter is None:
            raise TsnePlotGeneratingFailureException("this gateway was started without a plotter")
        name = validate_name(call.path("c"))
        query = request.query_params
        unknown = set(query) - {"record_ids", "perplexity", "random_state", "color_by"}
        if unknown:
            raise InvalidDataException(
                f"unknown query key {min(unknown)[:60]!r}; accepted are record_ids, perplexity, random_state, color_by"
            )
        perplexity = _number(query.get("perplexity", "30"), "perplexity")
        seed = _number(query.get("random_state", "42"), "random_state")
        ids = query.getlist("record_ids")
        rows = await self._rows(call, name, check_record_ids(ids) if ids else None)
        color_by = query.get("color_by")
        labels = None if color_by is None else _labels(rows, color_by)
        if self._gateway.plotting.locked():
            raise OverloadedError("another plot is being drawn; a gateway draws one at a time")
        async with self._gateway.plotting:
            picture = await asyncio.to_thread(
                plotter,
                np.empty((0, 0), np.float32) if rows.vectors is None else rows.vectors,
                labels,
                perplexity=perplexity,
                random_state=int(seed) if seed.is_integer() else -1,
                title=f"{name}: t-SNE of {len(rows.ids):,} vectors",
                label_name=color_by,
            )
        return call.raw(picture, "image/png")

    async def _rows(self, call: Call, name: str, ids: list[str] | None) -> Rows:
        """Read what is to be drawn, at one snapshot; refuse more than the gateway draws."""
        limit = self._gateway.limits.plot_points_max
        if ids is not None and len(ids) > limit:
            raise _too_many(len(ids), limit)
        if ids is not None:
            got = await self._gateway.run(self._gateway.router.get(name, ids, call.options()))
            return got.rows
        page = await self._gateway.run(
            self._gateway.router.scan_page(name, ScanOptions(limit=limit, with_vectors=True), call.options())
        )
        if page.more:
            raise _too_many(None, limit)
        return page.rows

    async def _status(self) -> dict[int, object]:
        deadline = self._gateway.engine.clock.monotonic() + self._gateway.limits.ready_timeout_s
        return dict(await self._gateway.run(self._gateway.router.status(deadline=deadline)))


def _too_many(given: int | None, limit: int) -> InvalidDataException:
    what = f"{given} records" if given is not None else "the collection holds more"
    return InvalidDataException(f"a gateway draws at most {limit} vectors, {what}: name some by record_ids")


def _why(reply: object) -> str:
    error = getattr(reply, "error", None)
    return str(error.message) if error is not None else "no answer"


def _labels(rows: Rows, field: str) -> list[Any]:
    values = []
    for metadata in metadata_of(rows.payloads or []):
        found = values_at(metadata, field)
        values.append(next(iter(found), None))
    return values


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < 2**53:
        raise InvalidDataException(f"{what} must be a number from 0 up, got {text[:40]!r}")
    return value
