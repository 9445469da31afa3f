"""The random examples of the property tests: always the same in the test suite, new ones where they are looked for.

``make test`` must come out the same every time, so there every test draws its examples from a seed of its own (a digest
of its source). ``make explore`` sets ``VECRAFT_EXAMPLES=20``: 20 times as many, other ones each time, and what
fails is kept in ``.hypothesis`` and tried first the next time.

Nothing here depends on how fast the machine is: no example has a deadline, and none is drawn too slowly.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("VECRAFT_EXAMPLES", "0"))
"""How many times as many examples to try as the test suite does; 0: those of the test suite."""

SLOW_IS_WELL = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much)


def load_profile() -> None:
    """Let every property test of this process draw its examples as told above; before the first is imported."""
    settings.register_profile(
        "everywhere",
        deadline=None,
        suppress_health_check=SLOW_IS_WELL,
        max_examples=150 * max(1, TIMES),
        print_blob=True,
    )
    settings.register_profile("same", settings.get_profile("everywhere"), derandomize=True, database=None)
    settings.load_profile("everywhere" if TIMES else "same")


def examples(count: int, **more: Any) -> settings:
    """Settings for ``count`` examples in the test suite, and accordingly more where new ones are looked for."""
    return settings(max_examples=count * max(1, TIMES), **more)
