"""Run the simulator: ``python -m tests.simulation SEEDS [FIRST]``, or one seed with ``--trace``.

A failing seed is printed with the command that replays it; the exit status says whether there was any.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections import Counter
from contextlib import nullcontext

from tests.simulation.mutants_all import MUTANTS
from tests.simulation.run import HASH_SEED, Result, simulate
from tests.support.track_record import record


def main() -> int:
    """Run the seeds asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seeds", type=int, help="how many")
    parser.add_argument("first", type=int, nargs="?", default=0, help="the first one")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument("--stop", action="store_true", help="stop at the first seed that fails")
    parser.add_argument("--quiet", action="store_true", help="only failures and the summary")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="plant this bug")
    options = parser.parse_args()
    with MUTANTS[options.mutant].planted() if options.mutant else nullcontext():
        return run(options)


def run(options: argparse.Namespace) -> int:
    """Run the seeds, and sum up. Returns the exit status."""
    began, worked, failed, skewed = time.perf_counter(), time.process_time(), [], 0
    totals: Counter[str] = Counter()
    for seed in range(options.first, options.first + options.seeds):
        result = simulate(seed, trace=options.trace)
        totals.update(commits=result.commits, reads=result.reads, faults=result.faults, events=result.events)
        skewed += result.write_skew
        report(result, options.quiet, options.mutant)
        if options.quiet and (seed - options.first) % 100 == 99:
            print(f"{seed + 1 - options.first} seeds", file=sys.stderr, flush=True)
        if result.problems:
            failed.append(seed)
            if options.stop:
                break
    seconds, cpu = time.perf_counter() - began, time.process_time() - worked
    print(
        f"{options.seeds} seeds in {seconds:.1f} s ({options.seeds / cpu:.1f} per second of one core), "
        f"{len(failed)} failed {failed[:20]}; "
        f"{totals['commits']} commits, {totals['reads']} reads, {totals['faults']} faults, {totals['events']} events; "
        f"write skew in {skewed}"
    )
    if options.mutant:
        return 1 if failed else 0
    record(
        "simulator",
        first=options.first,
        seeds=options.seeds,
        failed=failed,
        **totals,
        write_skew=skewed,
        cpu_seconds=round(cpu, 1),
    )
    return 1 if failed else 0


def report(result: Result, quiet: bool, mutant: str | None) -> None:
    """Print what is wrong with a seed, and how to see it again."""
    for line in result.trace:
        print(line)
    if result.trace:
        everything = "\n".join(result.trace).encode()
        print(f"trace {hashlib.sha256(everything).hexdigest()[:16]}")
    if result.problems:
        planted = f" ARGS='--mutant {mutant}'" if mutant else ""
        replay = f"make simulate SEED={result.seed} TRACE=1{planted}"
        print(f"seed {result.seed} FAILED, digest {result.digest}; replay: {replay}")
        for problem in result.problems[:8]:
            print(f"    {problem}")
    elif not quiet:
        print(f"seed {result.seed} ok, digest {result.digest}, {result.commits} commits, {result.faults} faults")
    sys.stdout.flush()


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        # Sets of strings are walked in an order that depends on this; a replay must not.
        os.environ["PYTHONHASHSEED"] = HASH_SEED
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    sys.exit(main())
