# The two commands a newcomer needs are `make demo` and `make test`. Each sets up .venv the first time and only then.
# Overridable: PYTHON (the interpreter that .venv is made from), SEED (repeats the test order of an earlier run), and for
# the demo OUT (where to write) and FILES (real rasters of one place, and options of `a2mae demo`), and for stssd, nano and
# tiny DATA (the folder that docs/recipes/open_imagery.yaml describes).

PYTHON ?= python3
SEED := $(or $(SEED),$(shell date +%s))
OUT ?= out
DATA ?= ../shared/data
BIN := .venv/bin
PIP_INSTALL ?= $(BIN)/python -m pip install --quiet --disable-pip-version-check
# What the weights of the package were trained with, besides their size.
TASK := --set pooling=mean_std --set feature_targets=true --set contrastive_weight=1 --set geographic_level=0
# Tests never reach the Hub, and two workers of one thread each do not fight over the cores.
TEST_ENVIRONMENT := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo stssd pretraining nano tiny test lint format bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

# Written last, so that a half-finished installation is taken up again.
.venv/.installed: setup.cfg pyproject.toml Makefile
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit("a2mae-hub needs Python 3.10 or newer; name one: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	@test -x $(BIN)/pip || { echo "Creating .venv"; $(PYTHON) -m venv .venv; }
	@echo "Installing a2mae-hub and what it needs into .venv (torch brings about 6 GB: a few minutes the first time)"
	@$(PIP_INSTALL) -e ".[test]"
	@touch $@

demo: .venv/.installed ## Encode and reconstruct a two-sensor, two-date image set; figures land in out/
	@$(BIN)/a2mae demo $(FILES) --out $(OUT)

stssd: .venv/.installed ## Build image sets from the open imagery in DATA, and inspect them, into out/stssd
	@$(BIN)/a2mae stssd build docs/recipes/open_imagery.yaml --root $(DATA) -o $(OUT)/stssd
	@$(BIN)/a2mae stssd inspect $(OUT)/stssd -o $(OUT)/stssd-report

pretraining: .venv/.installed ## Build the image sets that the weights of the package learned from, out of the open imagery in DATA
	@test -e $(OUT)/pretraining/eurosat-rgb || $(BIN)/python docs/recipes/eurosat_rgb.py $(DATA)/eurosat_rgb/train.parquet $(OUT)/pretraining/eurosat-rgb
	@$(BIN)/a2mae stssd build docs/recipes/open_imagery.yaml --root $(DATA) -o $(OUT)/pretraining/open

nano: pretraining ## Repeat the pre-training of a2mae-nano, and judge it, into out/
	@$(BIN)/a2mae pretrain $(OUT)/pretraining -o $(OUT)/a2mae-nano-1 --size nano $(TASK) --steps 7500 --batch-size 64 --learning-rate 1.5e-3 --workers 1
	@$(BIN)/a2mae pretrain $(OUT)/pretraining -o $(OUT)/a2mae-nano-2 --from $(OUT)/a2mae-nano-1 --steps 9000 --batch-size 64 --learning-rate 1.5e-3 --workers 1
	@$(BIN)/a2mae pretrain $(OUT)/pretraining -o $(OUT)/a2mae-nano --from $(OUT)/a2mae-nano-2 --steps 3000 --batch-size 64 --learning-rate 8e-4 --workers 1
	@$(BIN)/a2mae evaluate $(OUT)/a2mae-nano docs/recipes/open_evaluation.yaml --root $(DATA) -o $(OUT)/a2mae-nano/report.json

tiny: pretraining ## The same of a2mae-tiny
	@$(BIN)/a2mae pretrain $(OUT)/pretraining -o $(OUT)/a2mae-tiny-1 --size tiny $(TASK) --steps 3000 --batch-size 64 --learning-rate 1e-3 --workers 1
	@$(BIN)/a2mae pretrain $(OUT)/pretraining -o $(OUT)/a2mae-tiny --from $(OUT)/a2mae-tiny-1 --steps 4500 --batch-size 64 --learning-rate 1e-3 --workers 1
	@$(BIN)/a2mae evaluate $(OUT)/a2mae-tiny docs/recipes/open_evaluation.yaml --root $(DATA) -o $(OUT)/a2mae-tiny/report.json

test: lint ## Lint, type check, and run every test in random order
	@$(BIN)/python tests/transformers_common/sdist.py || echo "Going on without the common model tests of transformers."
	@echo "Testing in random order; repeat it with: make test SEED=$(SEED)"
	@$(TEST_ENVIRONMENT) $(BIN)/pytest -n 2 --randomly-seed=$(SEED)

lint: .venv/.installed ## Check style and types, change nothing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: .venv/.installed ## Sort imports and format the code
	@$(BIN)/ruff check --fix --select I .
	@$(BIN)/ruff format .

bench: .venv/.installed ## Measure every figure of speed and memory that the README and docs/performance.md quote
	@for script in benchmarks/process.py benchmarks/encode.py benchmarks/pretrain_step.py benchmarks/finetune.py benchmarks/stream.py benchmarks/build.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done
	@$(BIN)/python benchmarks/scene.py --data $(DATA) --work $(OUT)/scene-benchmark -o $(OUT)/scene.json --page docs/performance.md

clean: ## Remove what was built, drawn and cached; .venv stays
	@rm -rf build dist $(OUT) .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
