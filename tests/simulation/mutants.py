"""Does the simulator find bugs? ``python -m tests.simulation.mutants [--seeds N] [NAME …]`` plants them one by one.

Each is given up to N seeds. Printed are the seed that caught it and what the checkers said; the exit status says
whether any was missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.simulation.mutants_all import MUTANTS
from tests.simulation.mutations import Mutant
from tests.simulation.run import HASH_SEED, simulate
from tests.support.track_record import record


def hunt(mutant: Mutant, seeds: int, first: int = 0) -> tuple[int, str] | None:
    """Return how many seeds it took to catch the mutant, and what was wrong; None: it was not caught.

    A seed that fails without the bug, too, proves nothing; it is passed over, and said.
    """
    for seed in range(first, first + seeds):
        with mutant.planted():
            problems = outcome(seed)
        if not problems:
            continue
        if outcome(seed):
            print(f"seed {seed} fails without any bug being planted", file=sys.stderr, flush=True)
        else:
            return seed - first + 1, problems[0]
    return None


def outcome(seed: int) -> list[str]:
    """What is wrong with a seed."""
    try:
        return simulate(seed).problems
    except Exception as error:  # the bug broke the harness itself, which counts
        return [f"the simulation broke: {type(error).__name__}: {error}"]


def main() -> int:
    """Hunt the mutants asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which, of: {', '.join(MUTANTS)}")
    parser.add_argument("--seeds", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in MUTANTS]
    if unknown:
        parser.error(f"there is no mutant {unknown[0]!r}; there are: {', '.join(MUTANTS)}")
    wanted = [MUTANTS[name] for name in options.names] or list(MUTANTS.values())
    missed = []
    for mutant in wanted:
        began = time.perf_counter()
        found = hunt(mutant, options.seeds, options.first)
        seconds = time.perf_counter() - began
        if found is None:
            missed.append(mutant.name)
            record("mutants", name=mutant.name, rule=mutant.rule, seeds=options.seeds, caught_after=None, check="")
            print(f"MISSED  {mutant.name}: {mutant.rule} ({options.seeds} seeds, {seconds:.0f} s)", flush=True)
        else:
            line = found[1].strip().splitlines()
            check = line[0][1:].partition("]")[0] if line[0].startswith("[") else "the harness broke"
            record(
                "mutants", name=mutant.name, rule=mutant.rule, seeds=options.seeds, caught_after=found[0], check=check
            )
            print(
                f"caught  {mutant.name} after {found[0]} seeds ({seconds:.0f} s): {line[0][:150]} {line[-1][:80]}",
                flush=True,
            )
    print(f"{len(wanted) - len(missed)} of {len(wanted)} mutants caught; missed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        os.environ["PYTHONHASHSEED"] = HASH_SEED
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation.mutants", *sys.argv[1:]])
    sys.exit(main())
