"""Does the simulator find bugs? ``python -m tests.simulation.mutants [--seeds N] [NAME …]`` plants them one by one.

Each is given up to N seeds; a bug that names a focus is looked for in those of them that have it. Printed are the seed
that caught it and what the checkers said; the exit status says whether any was missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass

from tests.simulation.log import Log
from tests.simulation.mutants_all import MUTANTS
from tests.simulation.mutations import Mutant
from tests.simulation.run import HASH_SEED, simulate
from tests.simulation.swarm import Swarm
from tests.support.track_record import record


@dataclass(frozen=True, slots=True)
class Hunt:
    """How a hunt ended.

    Attributes:
        caught_after: How many seeds, one after the other, a plain run would have needed at most; None: not caught.
        simulated: How many of them were run. Those that are about something else were passed over.
        problem: What was wrong.
    """

    caught_after: int | None
    simulated: int
    problem: str = ""


def hunt(mutant: Mutant, seeds: int, first: int = 0) -> Hunt:
    """Look for the bug.

    A seed that fails without the bug, too, proves nothing; it is passed over, and said.
    """
    simulated = 0
    for seed in range(first, first + seeds):
        if mutant.focus and Swarm.of(seed).focus != mutant.focus:
            continue
        simulated += 1
        with mutant.planted():
            problems = outcome(mutant, seed)
        if not problems:
            continue
        if outcome(mutant, seed):
            print(f"seed {seed} fails without any bug being planted", file=sys.stderr, flush=True)
        else:
            return Hunt(seed - first + 1, simulated, problems[0])
    return Hunt(None, simulated)


def outcome(mutant: Mutant, seed: int) -> list[str]:
    """What is wrong with a seed, as far as it can show this bug."""
    try:
        return Log(seed).run() if mutant.log_alone else simulate(seed).problems
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
        spent = f"{found.simulated} simulated, {time.perf_counter() - began:.0f} s"
        said = found.problem.strip().splitlines() or [""]
        check = said[0][1:].partition("]")[0] if said[0].startswith("[") else "the harness broke" if said[0] else ""
        record(
            "mutants",
            name=mutant.name,
            rule=mutant.rule,
            seeds=options.seeds,
            simulated=found.simulated,
            caught_after=found.caught_after,
            check=check,
        )
        if found.caught_after is None:
            missed.append(mutant.name)
            print(f"MISSED  {mutant.name}: {mutant.rule} ({options.seeds} seeds, {spent})", flush=True)
        else:
            print(
                f"caught  {mutant.name} after {found.caught_after} seeds ({spent}): {said[0][:150]} {said[-1][:80]}",
                flush=True,
            )
    print(f"{len(wanted) - len(missed)} of {len(wanted)} mutants caught; missed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        os.environ["PYTHONHASHSEED"] = HASH_SEED
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation.mutants", *sys.argv[1:]])
    sys.exit(main())
