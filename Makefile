# The two commands of the README are `make run` and `make test`. Each sets up .venv by itself; once the packages
# are in, neither needs a network.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PRESET ?= quickstart
STAMP := $(VENV)/.installed

export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export TOKENIZERS_PARALLELISM ?= true

.PHONY: run test test-slow lint clean

run: $(STAMP)
	$(BIN)/genret run $(PRESET)

test: $(STAMP) lint
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(None if sys.version_info >= (3, 11) else f'genret needs Python 3.11 or newer, found {sys.version.split()[0]}; set PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) runs build *.egg-info
