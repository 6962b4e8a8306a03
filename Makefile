# StreamKV on Ray. Every target sets up what it needs: a virtual environment in .venv, nothing global.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
# A server's dozen processes import what one has compiled. Where the shell forbids to keep bytecode each would compile
# torch and transformers anew, which is most of its start.
export PYTHONDONTWRITEBYTECODE :=
TEST_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench model

help:  ## Show the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## Generated streams in, answers out, in a minute or two
	@$(BIN)/streamkv demo

test: $(INSTALLED)  ## All tests, by two workers (TEST_WORKERS), of which one has those that start servers on this machine
	@$(BIN)/python -m pytest -n $(TEST_WORKERS)

lint: $(INSTALLED)  ## Style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(INSTALLED)  ## Frames a second of the whole system against the bare model
	@$(BIN)/python -m bench.ingest

TRAIN = $(BIN)/python -m training.townsquare
model: $(INSTALLED)  ## Train the demo model anew (hours; docs/demo-model.md) into out/ and ship it
	$(TRAIN).tower --out out/tower.pt --minutes 14
	$(TRAIN).decoder --out out/decoder --minutes 40 --contrast 0.2
	$(TRAIN).tower --out out/eyes.pt --from out/tower.pt --like out/decoder/last.pt --minutes 5 --lr 4e-4
	$(TRAIN).bank --eyes out/eyes.pt --out out/bank.pt --worlds 85
	$(TRAIN).decoder --out out/joint --from out/decoder/last.pt --bank out/bank.pt --stage 2 --minutes 120 \
		--table out/decoder/last.pt
	$(TRAIN).ship --eyes out/eyes.pt --decoder out/joint/last.pt
	$(TRAIN).score --scenes 1 4

# `dev` pins torch to the release that has a CPU build; a GPU machine installs '.[gpu]' by itself. Bytecode is compiled as
# modules are first imported, which few of those installed ever are.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); the first time takes a few minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]'
	@touch $@
