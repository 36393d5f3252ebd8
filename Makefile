# Every command works on a machine with Python 3.11 and make: the first one makes .venv, no environment needs activating.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

# The stamp is named for this folder, so that a moved or copied checkout gets an environment of its own; an environment
# whose Python has gone is remade too.
STAMP := $(VENV)/ready-$(shell printf '%s' '$(CURDIR)' | cksum | cut -d' ' -f1)
ifneq ($(shell $(PY) -c 'print("works")' 2>/dev/null),works)
$(STAMP): FORCE
endif

.DEFAULT_GOAL := help
.PHONY: help demo test interop check bench clean FORCE

help:
	@echo 'make demo      write a million events exactly once, kill and resume a reader, fence a writer'
	@echo 'make test      the whole Python suite on asyncio and trio; ARGS="-k offset" passes options to pytest'
	@echo 'make interop   the suites and programs of others: official clients, servers, conformance tests'
	@echo 'make check     ruff, mypy --strict, complete public types, import table'
	@echo 'make bench     speed side by side with the peers; ARGS="catch_up --runs 9" chooses'
	@echo 'make clean     remove .venv and caches'

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed, and \
	$(PYTHON) is " + sys.version.split()[0] + "; name another with: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@echo 'making $(VENV) (once, about a minute)'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(VENV)/bin/durable-streams demo

test: $(STAMP)
	@$(PY) -X dev -m pytest -m 'not interop' --dist worksteal --tx '3*popen//execmodel=main_thread_only//python=$(PY) -X dev' $(ARGS)

interop: $(STAMP)
	@$(PY) -m tests.interop.node
	@$(PY) -X dev -m pytest -m interop tests/interop $(ARGS)

check: $(STAMP)
	@$(PY) -m tests.interop.node --only-node
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m pyright --pythonpath $(PY) tests/typing
	$(PY) -m tests.typing.completeness
	$(PY) -m pytest --quiet tests/test_imports.py tests/test_project.py
	@if command -v duplicates >/dev/null; then echo 'duplicates (for information)'; duplicates; fi

bench: $(STAMP)
	@$(PY) -m tests.interop.node
	@$(PY) -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/interop/node_modules
