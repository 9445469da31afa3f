"""Hypothesis in these tests is seeded by the test itself: the same examples everywhere, no database left behind."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "model", derandomize=True, database=None, deadline=None, max_examples=150,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("model")
