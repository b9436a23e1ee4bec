# `make` runs the quick study, `make full` all of its test rows, `make test` the tests.
# Each sets up .venv first. PYTHON names another interpreter: `make PYTHON=python3.12`.

PYTHON ?= python3.11
BIN := .venv/bin
STUDY := $(BIN)/snakemake --cores all

.PHONY: study full test lint

study: .venv/installed
	$(STUDY)

full: .venv/installed
	$(STUDY) --configfile config/full.yaml

test: lint
	$(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]' --constraint constraints.txt
	touch $@
