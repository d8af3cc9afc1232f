# Every target sets up first where needed; `make demo` works from a bare clone.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all fuzz check bench docs clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(READY)  ## make .venv with everything that is locked

$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q uv
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -r requirements.lock -e '.[onnx,timm,hf,sdp,dev]'
	touch $(READY)

demo: $(READY)  ## train, audit, harden, audit again, compare: runs/demo
	$(BIN)/holdfast demo --out runs/demo

test: $(READY)  ## the tests that take seconds
	$(BIN)/pytest -n auto --maxprocesses 4 -m 'not slow and not parity'

test-all: $(READY)  ## all tests, the slow ones and the comparisons with peers included
	$(BIN)/pytest

fuzz: $(READY)  ## 3,000 random graphs against every bound; SEED=N repeats a run, GRAPHS=N tries another number
	$(BIN)/python tests/fuzz/run.py --graphs $(or $(GRAPHS),3000) $(if $(SEED),--seed $(SEED))

check: $(READY)  ## format, lint, types, floors of the house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(READY)  ## every benchmark; one of them: make bench-NAME
	set -e; for file in benchmarks/[a-z]*.py; do echo "$$file"; $(BIN)/python "$$file"; done

bench-%: $(READY)
	$(BIN)/python benchmarks/$(subst -,_,$*).py

docs: $(READY)  ## the generated pages in docs/
	$(BIN)/python -m holdfast.cli.docs docs
	$(BIN)/python -m holdfast.audits.document > docs/report.schema.json

clean:  ## remove what was generated, .venv included
	rm -rf .venv runs .pytest_cache .ruff_cache .import_linter_cache
