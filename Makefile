# One command for each thing. Every target makes the virtual environment itself when it is missing or out of date.
#   make demo     a Ray cluster on this machine, real embeddings, transactions, a killed shard: the tour
#   make test     the whole test suite, real Ray included
#   make serve    the REST server, on 127.0.0.1:8000        (ARGS='--port 9000 --root ./data')
#   make check    ruff, mypy --strict, import layers, the fast tests
#   make simulate the real shards and routers on virtual time, with faults (SEEDS=1000, or SEED=7 TRACE=1 to see one)
#   make blackbox clients on a Ray cluster whose processes are killed and stopped (TRANSACTIONS=200000)
#   make mutants  planted bugs: that the simulator finds each of them (MUTANTS='name …', SEEDS=5000)
#   make explore  the property tests on new random examples, 20 times as many (EXAMPLES=100)
#   make torture  all of that at length, for hours, with a record (SEEDS=, TRANSACTIONS=, VECRAFT_KILLS=, VECRAFT_DAMAGES= …)
#   make bench    speed, against references measured in the same run
#   make clean    removes what these made, but never a data directory

PY := .venv/bin/python
ARGS ?=

.PHONY: demo test serve check simulate blackbox mutants explore torture bench lint types layers venv clean help
help:
	@sed -n 's/^#   //p' Makefile

.venv/.installed: pyproject.toml constraints.txt scripts/make-venv
	@./scripts/make-venv

venv: .venv/.installed

demo: .venv/.installed
	@$(PY) -m examples.demo $(ARGS)

test: .venv/.installed
	$(PY) -m pytest $(ARGS)

serve: .venv/.installed
	@exec $(PY) -m vecraft_db.server $(ARGS)

lint: .venv/.installed
	$(PY) -m ruff check .

types: .venv/.installed
	$(PY) -m mypy
	$(PY) -m mypy examples benchmarks

layers: .venv/.installed
	.venv/bin/lint-imports

check: lint types layers
	$(PY) -m pytest -q -m "not slow and not ray" tests/unit tests/architecture $(ARGS)

simulate: .venv/.installed
	@$(PY) -m tests.simulation $(if $(SEED),1 $(SEED),$(or $(SEEDS),1000) --quiet) $(if $(TRACE),--trace) $(ARGS)

blackbox: .venv/.installed
	@$(PY) -m tests.blackbox --transactions $(or $(TRANSACTIONS),20000) $(ARGS)

mutants: .venv/.installed
	@$(PY) -m tests.simulation.mutants --seeds $(or $(SEEDS),5000) $(MUTANTS)

explore: .venv/.installed
	VECRAFT_EXAMPLES=$(or $(EXAMPLES),20) $(PY) -m pytest -m hypothesis --timeout 0 $(ARGS)

torture: export VECRAFT_RECORD := 1
torture: export VECRAFT_KILLS ?= 600
torture: export VECRAFT_SHARD_KILLS ?= 300
torture: export VECRAFT_DAMAGES ?= 2000
torture: export VECRAFT_CRASH_STATES ?= 10000
torture: export VECRAFT_FAILING_CALLS ?= 500
torture: .venv/.installed
	$(PY) -m tests.simulation $(or $(SEEDS),20000) $(or $(FIRST),$(shell date +%s)) --quiet
	$(PY) -m tests.simulation.mutants --seeds 5000
	VECRAFT_EXAMPLES=$(or $(EXAMPLES),20) $(PY) -m pytest -m hypothesis --timeout 0
	$(PY) -m pytest tests/crash tests/ray/test_shard_kills.py
	$(PY) -m tests.blackbox --transactions $(or $(TRANSACTIONS),200000) --record reliability/blackbox.jsonl
	$(PY) -m tests.blackbox --transactions 20000 --rpc-failures 3 --no-kills --record reliability/blackbox.jsonl
	$(PY) scripts/reliability.py

bench: .venv/.installed
	@$(PY) -m benchmarks $(ARGS)

clean:
	rm -rf .venv build dist demo-output benchmarks/results .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
