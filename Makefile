# One target per purpose; CI calls the same ones. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo kafka test quick check bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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

kafka: .venv/test ## a broker of one's own until Ctrl-C (Java 17 and Maven)
	$(BIN)/python -m tests.broker

test: .venv/test ## install, then pass all tests, with coverage
	$(BIN)/pytest -n $(JOBS) --dist worksteal --cov --cov-report=term

quick: .venv/test ## the tests that take less than ten seconds each
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m 'not slow'

check: .venv/test ## ruff, its formatter, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	$(BIN)/lint-imports

bench: .venv/test ## every benchmark, interleaved; raw figures go to runs/bench
	$(BIN)/python -m tests.bench

clean: ## remove what runs left behind; the environment stays
	rm -rf runs build dist htmlcov .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
