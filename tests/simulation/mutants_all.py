"""All planted bugs: importing the modules that hold them enters them into the list."""

from __future__ import annotations

from tests.simulation import mutations_features, mutations_storage
from tests.simulation.mutations import MUTANTS

__all__ = ["MODULES", "MUTANTS"]

MODULES = (mutations_storage.__name__, mutations_features.__name__)
