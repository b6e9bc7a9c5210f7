# Everything runs from `.venv`, which the first target creates; only Python >= 3.11 with pip and venv must be there.
# Other Python: make test PYTHON=python3.12

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(if $(shell $(name) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),$(name))))
VENV := .venv
OLDEST_VENV := .venv-5.17
RUN := $(VENV)/bin
PROJECT_FILES := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow test-oldest check lint types docs format bench clean

help:
	@echo "make quickstart   train a small model on the text in the package, look at it, and let it write"
	@echo "make test         all tests but the slow ones"
	@echo "make test-slow    the slow ones"
	@echo "make test-oldest  the tests that touch transformers, on the oldest supported release"
	@echo "make check        lint, format, types, documentation, tests: what CI runs"
	@echo "make bench        how fast it is on this machine, beside transformers 4.35 (about an hour)"
	@echo "make format       let ruff rewrite the code"

quickstart: $(VENV)/.installed
	$(RUN)/transformer-xl quickstart

test: $(VENV)/.installed-dev
	$(RUN)/python -m pytest

test-slow: $(VENV)/.installed-dev
	$(RUN)/python -m pytest -m slow

test-oldest: $(OLDEST_VENV)/.installed-dev
	$(OLDEST_VENV)/bin/python -m pytest -p no:cacheprovider $(OLDEST_TESTS)

check: lint types docs test test-oldest

lint: $(VENV)/.installed-dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(RUN)/mypy

docs: $(VENV)/.installed-dev
	$(RUN)/python scripts/check_docs.py

format: $(VENV)/.installed-dev
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

bench: $(VENV)/.installed-dev
	$(RUN)/python benchmarks/compare.py

# The tests of what depends on the release of transformers.
OLDEST_TESTS = $(wildcard $(addprefix tests/test_,configuration.py memory.py modeling.py ecosystem*.py tokenization.py \
	unhappy_inputs.py reference_examples.py generation.py sampling.py cli_quickstart.py))

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "transformer-xl needs Python 3.11 or newer as python3, or: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(PROJECT_FILES) | $(VENV)/bin/python
	$(RUN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[plots]'
	@touch $@

$(VENV)/.installed-dev: $(PROJECT_FILES) | $(VENV)/bin/python
	$(RUN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(OLDEST_VENV)/.installed-dev: $(PROJECT_FILES) constraints-oldest.txt
	@test -n "$(PYTHON)" || { echo "transformer-xl needs Python 3.11 or newer as python3, or: make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(OLDEST_VENV)/bin/python || $(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints-oldest.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(OLDEST_VENV) .venv-4.35 dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
