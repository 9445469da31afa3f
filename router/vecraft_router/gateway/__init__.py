"""The REST gateway: the only place that knows FastAPI.

``app.create_app(engine)`` is its door from Python; ``door`` is its door from the network. A request passes through::

    protocol   bounded heads                    auth      who may call
    door       ids, limits, problems, counts    body      bounded, strict JSON
    context    what the headers say             schemas   which keys a body has
    routes     one flow of the router each      records, vectors, columns, cursors   forms on the wire

This module imports nothing, so that clients can use the wire forms without FastAPI.
"""
