# make demo        digits from nothing: installs, prepares, trains both stages, samples, checks
# make test        the tests that take seconds;  make test-slow the others;  make lint
# An environment of one's own: make VENV=/path/to/venv test
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
RUN := runs/digits

.PHONY: demo test test-slow lint

demo: $(VENV)/.installed
	$(eval START := $(shell date +%s))
	$(BIN)/jldm prepare digits --data-dir data --if-missing
	$(BIN)/jldm train --config configs/digits.py --workdir $(RUN)
	$(BIN)/jldm sample --workdir $(RUN) --n 1000 --steps 20 --seed 0
	$(BIN)/python benchmarks/digits.py $(RUN)
	@echo "look at $(RUN)/samples/grid.png; $$(( $$(date +%s) - $(START) )) s after installation"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow
	$(BIN)/python -m pytest -n 2 --dist loadfile -m as_shipped

lint: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

$(VENV)/.installed: PACKAGE = .
$(VENV)/.installed-dev: PACKAGE = .[dev]
$(VENV)/.installed $(VENV)/.installed-dev: pyproject.toml
	@set -e; start=$$(date +%s); \
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	$(BIN)/python -m pip install --quiet --editable "$(PACKAGE)"; \
	touch $@; \
	echo "installed in $$(( $$(date +%s) - start )) s"
