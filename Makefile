# Two commands for a fresh machine: make demo, make test. Both make their own virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COMPAT := .venv-compat
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-eval test-compat faults check format bench tables clean

help: ## say what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/demo ## the whole story on invented customers, about two minutes after the install
	$(BIN)/sisa demo

test: $(VENV)/dev ## every test but the slow ones, under 20 minutes on 2 cores
	$(BIN)/python -m pytest -m "not slow and not faults" -n 3 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/dev ## the slow tests
	$(BIN)/python -m pytest -m slow

test-eval: $(VENV)/dev $(VENV)/eval ## ask lm-eval's tasks of exported models, and draw figures
	$(BIN)/python -m pytest tests/sisa/test_tasks.py tests/sisa/test_figures.py tests/flows/test_evaluate.py

test-compat: $(VENV)/dev ## read exported models with transformers 4.45.1, in an environment of its own
	rm -rf $(COMPAT)/models
	test -x $(COMPAT)/bin/python || $(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/compat/requirements.txt \
		"torch==$$($(BIN)/python -c 'import torch; print(torch.__version__.split("+")[0])')"
	$(BIN)/python -m tests.compat.export_models $(COMPAT)/models
	$(COMPAT)/bin/python tests/compat/read_models.py $(COMPAT)/models

faults: $(VENV)/dev ## strike every file-system call of a training and a deletion in every way, half an hour
	$(BIN)/python -m pytest -m faults

check: $(VENV)/dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev ## mend what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/dev ## measure; needs BANKING77=a directory with Banking77's train.csv, and DATA=that of both data sets
	@test -n "$(BANKING77)" || { echo "expected BANKING77=DIR with Banking77's train.csv; found nothing; see docs/benchmarks.md"; exit 2; }
	$(BIN)/python -m benchmarks.deletion_cost --data "$(BANKING77)" --out benchmarks/results/deletion_cost.json
	$(BIN)/python -m benchmarks.verify_cost --data "$(BANKING77)" --torch --out benchmarks/results/verify_cost.json
	$(BIN)/python -m benchmarks.coalescing --data "$(BANKING77)"
	$(BIN)/python -m benchmarks.executor_throughput --data "$(BANKING77)"
	$(BIN)/python -m benchmarks.scheduler_simulation
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.leakage --data "$(BANKING77)"
	@test -z "$(DATA)" || $(BIN)/python -m benchmarks.training_speed --data "$(DATA)"
	@test -z "$(DATA)" || $(BIN)/python -m benchmarks.inference_cost --data "$(DATA)"
	@test -z "$(DATA)" || $(BIN)/python -m benchmarks.accuracy_by_shards --data "$(DATA)"
	$(MAKE) tables

tables: $(VENV)/dev ## write the benchmark tables into README.md and docs/
	$(BIN)/python -m benchmarks.tables

$(VENV)/pyvenv.cfg:
	@command -v $(PYTHON) >/dev/null || { echo "expected Python 3.11 or newer as '$(PYTHON)'; found none; install it or run make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "expected Python 3.11 or newer; found $$($(PYTHON) --version); run make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "expected Python's venv module; found none; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo $(VENV)/dev $(VENV)/eval: $(VENV)/%: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	@echo "installing sisa[$*] into $(VENV) (about three minutes the first time)"
	$(PIP_INSTALL) -e '.[$*]' || { echo "expected a package index that pip can reach; see the message above"; exit 1; }
	@touch $@

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) $(COMPAT) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
