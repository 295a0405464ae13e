# Two commands: `make serve` answers over HTTP, `make test` proves it. Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
ARGS ?=

export HF_HUB_DISABLE_TELEMETRY := 1
export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false

.PHONY: help serve test test-slow test-browser check format clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing pasta-ray and what it needs: about 2 GB, a few minutes without a word"
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing pasta-ray and what its tests need: about 2 GB, a few minutes without a word"
	$(PIP) --editable '.[dev,docs]'
	touch $@ $(VENV)/.serve

serve: $(VENV)/.serve ## serve the default model with the PASTA adapters; ARGS="--port 9000 …"
	$(BIN)/pasta-ray serve $(ARGS)

test: $(VENV)/.dev ## all tests but the slow ones
	$(BIN)/pytest -m "not slow" $(ARGS)

test-slow: $(VENV)/.dev ## the slow tests
	$(BIN)/pytest -m slow $(ARGS)

test-browser: $(VENV)/.dev ## the playground in a real Chromium
	$(PIP) --editable '.[browser,dev]'
	@which chromium chromium-browser google-chrome google-chrome-stable | grep -q . || \
		echo "No Chromium found. Install one: apt-get install chromium, or $(BIN)/playwright install chromium"
	$(BIN)/pytest -m "browser and not slow" -rs $(ARGS)

check: $(VENV)/.dev ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: docs package
docs: $(VENV)/.dev ## the documentation as a site, in site/; fails at a link that leads nowhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

package: $(VENV)/.dev ## wheel and sdist, in dist/
	$(BIN)/python -m build

clean: ## remove what `make` has made
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
