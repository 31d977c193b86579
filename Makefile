# SPDX-License-Identifier: Apache-2.0
# Needs Python >= 3.10 and make; everything else goes into .venv.
#   make demo PYTHON=python3.12          another interpreter (once, before .venv exists)
#   make demo PIP_ARGS="--index-url …"   anything pip should be told
#   make test PYTEST_ARGS="-k plan -x"   anything pytest should be told

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) --constraint constraints.txt
SOURCES := pyproject.toml constraints.txt

.PHONY: help demo test lint format types docs hooks clean
.DELETE_ON_ERROR:
.NOTPARALLEL: # every step writes the same .venv

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

demo: $(VENV)/.core ## upgrade the embedded network on the embedded digits: a table, and build/demo/report.html
	rm -rf build/demo
	$(BIN)/ghostnets upgrade --out build/demo

test: $(VENV)/.test ## every test that needs neither a GPU nor the network
	$(BIN)/python -m pytest -n logical --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.dev ## ruff, lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev ## let ruff write
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev $(VENV)/.test ## pyright over src and tests
	$(BIN)/pyright

docs: $(VENV)/.docs ## the documentation, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

hooks: $(VENV)/.dev $(VENV)/.test ## run lint and types before every commit
	$(BIN)/pre-commit install

clean: ## forget everything made here
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written after its step succeeded, so an interrupted install is done again.
$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit("ghostnets needs Python 3.10 or newer: make PYTHON=…" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/.core: $(VENV)/.made $(SOURCES)
	@echo "installing ghostnets into $(VENV) (PyTorch is large: minutes, once)"
	$(PIP) --editable .
	touch $@

# torchvision and timm without their dependencies: torch is already there, and nothing else of theirs is used.
$(VENV)/.test: $(VENV)/.core Makefile
	$(PIP) --editable '.[test,bench,hub,datasets,webdataset,tensorboard]'
	$(PIP) --no-deps torchvision timm
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) --editable '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.core
	$(PIP) --editable '.[docs]'
	touch $@
