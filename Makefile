# `make` runs the quick study, `make full` runs it with three seeds, `make test` runs the tests and
# `make docs` builds the documentation into site/. `make fuzz` feeds random input to every reader for
# an hour, `make faults` fills docs/faults.md, `make test-study` runs the paper's study in small, and
# `make test-cluster` runs a small study on a Slurm of its own (docs/clusters.md). Each sets up .venv
# first.
# PYTHON selects the interpreter: `make PYTHON=python3.12`.

PYTHON ?= python3.11
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: study full test test-study test-cluster lint docs fuzz faults

study: .venv/installed
	snakemake --cores all

full: .venv/installed
	snakemake --cores all --configfile config/full.yaml

test: lint docs
	pytest

test-study: .venv/installed
	pytest -n0 -m study tests/test_paper_in_small.py

test-cluster: .venv/installed
	pip install --quiet --editable '.[cluster]' --constraint constraints.txt
	pytest -n0 -m cluster tests/cluster

lint: .venv/installed
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check Snakefile workflow
	snakemake --lint

docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

fuzz: .venv/installed
	end=$$(($$(date +%s) + 3600)); while [ $$(date +%s) -lt $$end ]; do \
		pytest --hypothesis-profile=fuzz -m fuzz || exit; \
	done

faults: .venv/installed
	python tests/faults/matrix.py docs/faults.md

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	pip install --quiet --editable '.[dev]' --constraint constraints.txt
	touch $@
