"""Which kind of engine a client gets. Each kind has a module of its own; only the one that is needed is imported::

    root=      vecraft_db.embedded             shards in this process
    address=   vecraft_db.client.ray_engine    actors on a Ray cluster
    url=       vecraft_db.client.rest_engine   a REST gateway
"""

from __future__ import annotations

from typing import Any

from vecraft_data_model.errors import InvalidDataException
from vecraft_db.client.engine import Engine
from vecraft_db.config import DEFAULT_ROOT, Settings


def open_engine(settings: Settings) -> Engine:
    """Open the place that the settings name: ``url``, else ``address``, else ``root`` (by default ``./vecraft-data``).

    Raises:
        InvalidDataException: Places that exclude each other.
    """
    if settings.url is not None:
        others = [name for name in ("root", "address", "shards") if getattr(settings, name) is not None]
        if others:
            raise InvalidDataException(f"url= names a gateway, which has its own data; {others[0]}= cannot go with it")
        from vecraft_db.client.rest_engine import open_rest

        return open_rest(settings)
    if settings.address is not None:
        from vecraft_db.client.ray_engine import open_ray

        return open_ray(settings)
    from vecraft_db.embedded import open_embedded

    return open_embedded(settings, settings.root or DEFAULT_ROOT)


def settings_for_client(settings: Settings | None, **arguments: Any) -> Settings:
    """Return the settings a client goes by: its arguments over ``settings`` over file and environment.

    A place given as an argument stands alone: ``url=`` is not refused because the environment names a root.
    """
    if settings is None:
        settings = Settings.load()
    given = {name: value for name, value in arguments.items() if value is not None}
    if "url" in given:
        settings = settings.without("address", "root", "shards")
    elif "address" in given:
        settings = settings.without("url")
    elif "root" in given:
        settings = settings.without("url", "address")
    return settings.merged(given)
