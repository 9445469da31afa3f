"""The clients. ``operations`` says what each method means; ``vecraft_client`` and ``async_client`` only run it.

Engines (``engine``) are the places a database can be: in this process, on a Ray cluster, behind a REST gateway.
"""
