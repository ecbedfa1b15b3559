# `make help` lists the targets. GNU make 4 and Python 3.11 or newer are all that must be there before.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

PROFILE ?= mini
ONLY ?=
DATA ?=
APM_RESULTS ?=
export DATA APM_RESULTS
RESULTS := $(or $(APM_RESULTS),results)
# conda, mamba or micromamba makes the environment where there is one; ENV=venv asks for a virtual environment instead.
CONDA := $(if $(filter venv,$(ENV)),,$(firstword $(foreach c,micromamba mamba conda,$(shell command -v $(c) 2>/dev/null))))
BIN := $(if $(CONDA),.conda/bin,.venv/bin)
PYTHON := $(BIN)/python
ENVIRONMENT := .make/$(if $(CONDA),conda,venv)
PYTHON3 ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,$(shell $(p) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && command -v $(p))))
UV := $(shell sed -n 's/^\(uv==[0-9.]*\).*/\1/p' requirements.lock)
# executed notebooks that `make test` runs again, comparing the outputs of their checked cells and all of their numbers; 01, 02
# and 05 take longest without records: tests recompute a slice of 02 and the numbers of 05
NBVAL ?= 00_quickstart 03_cross_dataset 04_compute 06_islands 07_field 08_claims_audit

export JUPYTER_PREFER_ENV_PATH := 1
# threads that wait sleep: spinning ones slow a machine that others use too several times, and gain a third at most on an idle one
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PROFILES := $(patsubst profiles/%/common.yaml,%,$(wildcard profiles/*/common.yaml))
ifeq ($(filter $(PROFILE),$(PROFILES)),)
$(error unknown profile '$(PROFILE)'. Known: $(PROFILES))
endif

.PHONY: help
help: ## this list
	@echo "make TARGET [PROFILE=$(PROFILE)] [ONLY=02_corruptions]      profiles: $(PROFILES)"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 18

# ------------------------------------------------------------------------------------------------------- environment

.PHONY: env
env: $(ENVIRONMENT) ## the environment: conda where present, else .venv with the lock file

$(ENVIRONMENT): requirements.lock environment.yml pyproject.toml
	@mkdir -p .make
ifneq ($(CONDA),)
	@if [ -x $(PYTHON) ]; then $(CONDA) env update --prefix $(CURDIR)/.conda --file environment.yml; \
	elif [ "$(notdir $(CONDA))" = micromamba ]; then $(CONDA) create --yes --prefix $(CURDIR)/.conda --file environment.yml; \
	else $(CONDA) env create --yes --prefix $(CURDIR)/.conda --file environment.yml; fi
	@$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .
else
	@if [ -z "$(PYTHON3)" ]; then echo "no Python 3.11, 3.12 or 3.13 found on PATH: install one, or name it: make env PYTHON3=/path/to/python3" >&2; exit 2; fi
	@echo "environment: .venv from requirements.lock ($$($(PYTHON3) --version))"
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON3) -m venv --clear .venv || { echo "python3 -m venv failed: install your system's package for it, such as python3-venv" >&2; exit 2; }
	@$(PYTHON) -m pip install --quiet $(UV) 2>&1 | { grep -v 'is ignored' || true; }
	@$(BIN)/uv pip install --quiet --python $(PYTHON) --compile-bytecode --requirement requirements.lock
	@$(BIN)/uv pip install --quiet --python $(PYTHON) --no-deps --no-build-isolation --editable .
endif
	@touch $@

# extras of pyproject.toml that notebooks and tests need; hf (transformers) is left to those who want it
LOCKED := notebooks cluster dev

.PHONY: lock
lock: $(ENVIRONMENT) ## remake requirements.lock from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command "make lock" --python-version 3.11 $(LOCKED:%=--extra %) --output-file requirements.lock pyproject.toml

# --------------------------------------------------------------------------------------------------------- notebooks

WANTS_NOTEBOOKS := $(filter reproduce report,$(MAKECMDGOALS))
ifneq ($(WANTS_NOTEBOOKS),)
include .make/$(PROFILE)/rules.mk
endif

# at every start: which notebooks the profile has and which results are stale, by contents (see apm/project/depends.py)
.make/$(PROFILE)/rules.mk: FORCE | $(ENVIRONMENT)
	@mkdir -p $(@D)
	@$(PYTHON) -m apm.project.depends $(PROFILE) > $@.$$$$; if cmp -s $@.$$$$ $@; then rm $@.$$$$; else mv $@.$$$$ $@; fi

.PHONY: FORCE
FORCE:

ifneq ($(ONLY),)
ifneq ($(NOTEBOOKS),)
ifneq ($(filter-out $(NOTEBOOKS),$(ONLY)),)
$(error unknown notebook '$(filter-out $(NOTEBOOKS),$(ONLY))'. Known: $(NOTEBOOKS))
endif
endif
endif

.PHONY: reproduce
reproduce: $(foreach n,$(or $(ONLY),$(NOTEBOOKS)),.make/$(PROFILE)/$(n).done) ## environment, every notebook of the profile, report
	@echo "up to date: $(RESULTS)/$(PROFILE)/notebooks, tables, figures; the page to read: $(RESULTS)/$(PROFILE)/report.html"
	@$(if $(ONLY),,$(PYTHON) -m apm.analysis.verify --profile $(PROFILE) || true)

.PHONY: verify
verify: $(ENVIRONMENT) ## every number of PROFILE's results against the expected ones in data/expected
	@$(PYTHON) -m apm.analysis.verify --profile $(PROFILE)

.PHONY: accept
accept: $(ENVIRONMENT) ## make the present numbers of PROFILE the expected ones, and show what changes
	@$(PYTHON) -m apm.analysis.verify --profile $(PROFILE) --accept

.PHONY: report
report: .make/$(PROFILE)/99_report.done ## the report page, and what it needs

.make/$(PROFILE)/%.done: | $(ENVIRONMENT)
	@$(PYTHON) -m apm.project.run --profile $(PROFILE) --stamp $@ $*

.PHONY: lab
lab: $(ENVIRONMENT) ## JupyterLab on the notebooks, for this machine only and with Jupyter's token
	$(BIN)/jupyter lab --ip 127.0.0.1 notebooks

# ------------------------------------------------------------------------------------------------- tests and checks

.PHONY: test
test: $(ENVIRONMENT) ## unit and property tests, the executed notebooks under nbval, then their numbers against the expected ones
	@# one process per core with one thread each: threads that wait for each other's cores cost more than they bring
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests -n auto --dist loadfile
	@# under nbval: in a results folder of their own, with the records that exist
	results=$$(mktemp -d); trap 'rm -rf "$$results"' EXIT; mkdir -p $$results/mini; \
	[ ! -d results/mini/records ] || ln -s "$$PWD/results/mini/records" $$results/mini/records; \
	APM_RESULTS=$$results $(PYTHON) -m pytest --nbval-lax --nbval-current-env -p no:cacheprovider $(NBVAL:%=results/mini/notebooks/%.ipynb); \
	APM_RESULTS=$$results $(PYTHON) -m apm.analysis.verify --made

.PHONY: lint
lint: $(ENVIRONMENT) ## ruff: lint and format, notebooks included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(ENVIRONMENT) ## mypy on apm/
	$(BIN)/mypy

.PHONY: rehearse
rehearse: $(ENVIRONMENT) ## profile paper from end to end on small trees with random teachers: no data, no weights
	$(PYTHON) tests/rehearsal.py

.PHONY: bench
bench: $(ENVIRONMENT) ## speed as ratios in one run, into results/bench/
	env -u OMP_WAIT_POLICY $(PYTHON) tests/bench.py

.PHONY: data
data: $(ENVIRONMENT) ## what torchvision can download of PROFILE's sets, into DATA=folder; mini needs none
	@$(PYTHON) -m apm.data.check --profile $(PROFILE) --download

.PHONY: check-data
check-data: $(ENVIRONMENT) ## which of PROFILE's datasets are in DATA=folder: found, missing, wrong
	@$(PYTHON) -m apm.data.check --profile $(PROFILE)

.PHONY: teacher
teacher: $(ENVIRONMENT) ## train the teacher of PROFILE anew, as its teacher.yaml says, and compare it with the shipped one
	@$(PYTHON) -m apm.teachers.train --profile $(PROFILE)

# ----------------------------------------------------------------------------------------------------------- cleaning

.PHONY: clean
clean: ## forget what was run (stamps, test caches); keeps environment, records and results
	rm -rf .make/*/ .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find apm tests -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: clean-records
clean-records: ## delete the records of PROFILE and all cached teachers and features: the next run computes anew
	rm -rf "$(RESULTS)/$(PROFILE)/records" data/cache .make/$(PROFILE)
