# One target per purpose; CI calls the same ones. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 4

.DEFAULT_GOAL := help
.PHONY: help demo demo-kafka kafka test bench-check coverage quick crash fuzz check bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

.venv/test: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,check]'
	@touch $@

demo: .venv/demo ## install, then train on seven years of street sensors, compress, prove, serve (3 minutes)
	$(BIN)/headrace run --fresh deploy/pipelines/pedestrians.toml
	$(BIN)/headrace run --fresh deploy/pipelines/pedestrians-serve.toml

demo-kafka: .venv/test ## install, start Apache Kafka (Java 17, Maven), learn from late labels, publish, swap, predict
	$(BIN)/python deploy/kafka/demo.py

kafka: .venv/test ## a broker of one's own until Ctrl-C, with topics (TOPICS="payments scored"; Java 17 and Maven)
	$(BIN)/python -m tests.broker $(TOPICS)

test: .venv/test ## install, then pass the tests (HEADRACE_TESTS=full: all, as CI; of the benchmarks: bench-check)
	$(BIN)/pytest -n $(JOBS) --dist worksteal --ignore tests/bench

bench-check: .venv/test ## every benchmark once, small: they run and leave their figures (2 minutes)
	$(BIN)/pytest tests/bench

coverage: .venv/test ## all tests, and which lines they reach (half as slow again)
	$(BIN)/pytest -n $(JOBS) --dist worksteal --cov --cov-report=term

quick: .venv/test ## the tests that take less than ten seconds each
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m 'not slow'

crash: .venv/test ## the failure kit at full size: 80 kills, 40 signals, 50 rebalances, 5 restarts of the broker (15 minutes)
	HEADRACE_CRASH=full $(BIN)/pytest tests/crash tests/pipelines/runs/test_crash.py tests/pipelines/runs/test_process.py -s

fuzz: .venv/test ## 100,000 damaged inputs of every kind: no signal, panic, traceback or hang (tests/fuzz)
	$(BIN)/python -m tests.fuzz

check: .venv/test ## ruff, its formatter, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	$(BIN)/lint-imports

bench: .venv/test ## every benchmark, interleaved; raw figures go to runs/bench
	$(BIN)/python -m tests.bench

clean: ## remove what runs left behind; the environment stays
	rm -rf runs build dist htmlcov .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
