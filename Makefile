# `make help` lists the targets. GNU make 4 and Python 3.11 or newer are all that must be there before.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

# Notebooks that run at a time, with the cores shared out between them; one where processes or a GPU are shared out already
CORES := $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
JOBS ?= $(if $(or $(WORKERS),$(SCHEDULER),$(ONLY),$(filter 1,$(CORES)),$(shell command -v nvidia-smi)),1,2)
ifneq ($(JOBS),1)
MAKEFLAGS += -j$(JOBS)
endif

PROFILE ?= mini
ONLY ?=
DATA ?=
APM_RESULTS ?=
export DATA APM_RESULTS
# a look beside the results: one notebook, or base and some lines of the ablations. From the command line only: shells have a LINES too
ifeq ($(origin LINES),command line)
export APM_LINES := $(LINES)
endif
BESIDE := results/by-hand
LAB ?=
# conda, mamba or micromamba makes the environment where there is one; ENV=venv asks for a virtual environment instead.
CONDA := $(if $(filter venv,$(ENV)),,$(firstword $(foreach c,micromamba mamba conda,$(shell command -v $(c) 2>/dev/null))))
BIN := $(if $(CONDA),.conda/bin,.venv/bin)
PYTHON := $(BIN)/python
APM := $(PYTHON) -P -m apm# no file that lies here is taken for a library
ENVIRONMENT := .make/$(if $(CONDA),conda,venv)
# what is run and installed here follows this file, whatever the shell and pip are set to; `make lab` keeps what its user has
ifneq ($(MAKECMDGOALS),lab)
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONOPTIMIZE PYTHONWARNINGS BASH_ENV
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_CONSTRAINT PIP_REQUIRE_HASHES PIP_REQUIRE_VIRTUALENV UV_CONSTRAINT UV_OVERRIDE
export PYTHONNOUSERSITE := 1
export PIP_USER := 0
endif
PYTHON3 ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,$(shell $(p) -E -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && command -v $(p))))
UV := $(shell sed -n 's/^\(uv==[0-9.]*\).*/\1/p' requirements.lock)
# executed notebooks that `make test` runs again, comparing the outputs of their checked cells and all of their numbers; 01, 02
# and 05 take longest without records: tests recompute a slice of 02 and the numbers of 05
NBVAL ?= 00_quickstart 03_cross_dataset 04_compute 06_islands 07_field 08_claims_audit

export JUPYTER_PREFER_ENV_PATH := 1
# threads that wait sleep: spinning ones slow a machine that others use too several times, and gain a third at most on an idle one
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PROFILES := $(patsubst profiles/%/common.yaml,%,$(filter profiles/%/common.yaml,$(wildcard profiles/*/common.yaml)))
override PROFILE := $(strip $(PROFILE))
# equal as text: one word, and no pattern
ifeq ($(strip $(foreach p,$(PROFILES),$(and $(findstring =$(p)=,=$(PROFILE)=),$(findstring =$(PROFILE)=,=$(p)=)))),)
$(error unknown profile '$(PROFILE)'. Known, one at a time: $(PROFILES))
endif

# profiles whose sets torchvision has: what is missing is fetched before the notebooks run, into data/sets without a DATA
ifneq ($(filter clip,$(PROFILE)),)
DATA := $(or $(DATA),data/sets)
FETCHED := data
endif

.PHONY: help
help: ## this list
	@echo "make TARGET [PROFILE=$(PROFILE)] [ONLY=02_corruptions]      profiles: $(PROFILES)"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 18
	@sed -n 's/^# \([A-Z_]*=[^ ]*\) *\(.*\)/  \1\t\2/p' Makefile | expand -t 26

# What can be set, as in make reproduce PROFILE=paper DATA=/data (`make help` shows these lines):
# PROFILE=mini            whose settings: a folder of profiles/
# ONLY=02_corruptions     this notebook alone
# LINES=mine              lines of 05_ablations: this part or name, and the base; results in results/by-hand
# DATA=FOLDER             where datasets are
# WORKERS=4               processes (one GPU each where there are GPUs), for large sets: docs/larger-profiles.md says when
# JOBS=2                  notebooks at a time, each with its share of the cores; 1 where there is a GPU, workers or one core
# SCHEDULER=tls://HOST:P  an existing dask cluster instead
# APM_RESULTS=FOLDER      results here instead of results/
# APM_CACHE=FOLDER        features and trained teachers here instead of data/cache
# ENV=venv                .venv even where there is conda
# LAB=OPTIONS             options for make lab, such as "--port 8890 --no-browser"

# ------------------------------------------------------------------------------------------------------- environment

.PHONY: env
env: $(ENVIRONMENT) ## the environment: conda where present, else .venv with the lock file

# an environment that is gone, or was made for a clone elsewhere, is made again
HERE := import os, sys, apm; sys.exit(not os.path.samefile(os.path.dirname(apm.__path__[0]), os.getcwd()))
$(ENVIRONMENT): requirements.lock environment.yml pyproject.toml $(shell env -u PYTHONPATH -u PYTHONHOME $(PYTHON) -P -c '$(HERE)' 2>/dev/null || echo FORCE)
	@mkdir -p .make
ifneq ($(CONDA),)
	@if [ -x $(PYTHON) ]; then $(CONDA) env update --prefix $(CURDIR)/.conda --file environment.yml; \
	elif [ "$(notdir $(CONDA))" = micromamba ]; then $(CONDA) create --yes --prefix $(CURDIR)/.conda --file environment.yml; \
	else $(CONDA) env create --yes --prefix $(CURDIR)/.conda --file environment.yml; fi
	@$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .
else
	@if [ -z "$(PYTHON3)" ]; then echo "no Python 3.11, 3.12 or 3.13 found on PATH: install one, or name it: make env PYTHON3=/path/to/python3" >&2; exit 2; fi
	@echo "environment: .venv from requirements.lock ($$($(PYTHON3) --version))"
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m ensurepip >/dev/null 2>&1 || { [ ! -L .venv ] && $(PYTHON3) -m venv --clear .venv; } || \
	{ echo "no .venv: install your system's package for python3 -m venv, such as python3-venv; a link of that name must lead to an environment" >&2; exit 2; }
	@$(PYTHON) -m pip install --quiet $(UV) 2>&1 | { grep -v 'is ignored' || true; }
	@$(PYTHON) -m uv pip install --quiet --python $(PYTHON) --compile-bytecode --requirement requirements.lock
	@$(PYTHON) -m uv pip install --quiet --python $(PYTHON) --no-deps --no-build-isolation --editable .
endif
	@touch $@

# extras of pyproject.toml that notebooks and tests need; hf (transformers) is left to those who want it
LOCKED := notebooks cluster dev

.PHONY: lock
lock: $(ENVIRONMENT) ## remake requirements.lock from pyproject.toml
	$(PYTHON) -m uv pip compile --quiet --universal --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command "make lock" --python-version 3.11 $(LOCKED:%=--extra %) --output-file requirements.lock pyproject.toml

# --------------------------------------------------------------------------------------------------------- notebooks

WANTS_NOTEBOOKS := $(if $(APM_LINES),,$(filter reproduce report,$(MAKECMDGOALS)))
RULES := .make/$(PROFILE)/rules.mk
ifneq ($(WANTS_NOTEBOOKS),)
$(if $(MAKE_RESTARTS),,$(shell rm -f $(RULES)))
include $(RULES)
endif

# at every start: which notebooks the profile has and which results are stale, by contents (see apm/project/depends.py)
$(RULES): | $(ENVIRONMENT)
	@mkdir -p $(@D)
	@$(APM).project.depends $(PROFILE) > $@.$$$$ && mv $@.$$$$ $@ || { rm -f $@.$$$$; exit 2; }

.PHONY: FORCE
FORCE:

ifneq ($(ONLY),)
ifneq ($(NOTEBOOKS),)
ifneq ($(filter-out $(NOTEBOOKS),$(ONLY)),)
$(error unknown notebook '$(filter-out $(NOTEBOOKS),$(ONLY))'. Known: $(NOTEBOOKS))
endif
endif
endif

# they start first, so that no core waits for them at the end
LONG := 02_% 05_%
ifneq ($(APM_LINES),)
.PHONY: reproduce
reproduce: $(ENVIRONMENT) $(FETCHED)
	@APM_RESULTS=$(BESIDE) $(APM).project.run --profile $(PROFILE) 05_ablations
else
.PHONY: reproduce
reproduce: $(foreach n,$(or $(ONLY),$(filter $(LONG),$(NOTEBOOKS)) $(filter-out $(LONG),$(NOTEBOOKS))),.make/$(PROFILE)/$(n).done) ## environment, every notebook of the profile, report
	@folder="$${APM_RESULTS:-results}/$(PROFILE)"; [ ! -f "$$folder/report.html" ] || page="; the page to read: $$folder/report.html"; \
	echo "up to date: $$folder/notebooks, tables, figures$${page:-}"
	@$(if $(ONLY),,$(APM).analysis.verify --profile $(PROFILE) || true)
endif

.PHONY: quickstart
quickstart: $(ENVIRONMENT) $(FETCHED) ## one image, by hand (a minute): into results/by-hand, which git ignores
	@APM_RESULTS=$(BESIDE) $(APM).project.run --profile $(PROFILE) 00_quickstart

.PHONY: verify
verify: $(ENVIRONMENT) ## every number of PROFILE's results against the expected ones in data/expected
	@$(APM).analysis.verify --profile $(PROFILE)

.PHONY: accept
accept: $(ENVIRONMENT) ## make the present numbers of PROFILE the expected ones, and show what changes
	@$(APM).analysis.verify --profile $(PROFILE) --accept

.PHONY: report
report: .make/$(PROFILE)/99_report.done ## the report page, and what it needs

# 04 measures times: alone, after the others, with all cores
.make/$(PROFILE)/04_compute.done: private THREADS := $(CORES)
ifeq ($(ONLY),)
.make/$(PROFILE)/04_compute.done: | $(patsubst %,.make/$(PROFILE)/%.done,$(filter-out 04_% 08_% 99_%,$(NOTEBOOKS)))
endif
# one of several that are stale: its share of the cores; the only one: all
SHARE := $(shell echo $$(( $(CORES) > $(JOBS) ? $(CORES) / $(JOBS) : 1 )))
THREADS = $(if $(word 2,$(filter-out 04_% 08_% 99_%,$(STALE))),$(SHARE),$(CORES))
# lines instead of bars that would overwrite each other
ONE_OF_MANY = $(if $(filter-out 1,$(JOBS)), 2> >(trap "" INT; exec cat >&2))
.make/$(PROFILE)/%.done: | $(ENVIRONMENT) $(FETCHED)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(THREADS)} $(APM).project.run --profile $(PROFILE) --stamp $@ $*$(ONE_OF_MANY)

# Jupyter refuses root: in a container there is often nobody else
, := ,
ROOT_INSIDE = $(and $(filter 0,$(shell id -u)),$(or $(container),$(KUBERNETES_SERVICE_HOST),$(wildcard /.dockerenv /run/.containerenv)))
.PHONY: lab
lab: $(ENVIRONMENT) ## JupyterLab on the notebooks, for this machine only and with Jupyter's token
	@$(if $(ROOT_INSIDE),echo "root in a container: Jupyter starts with --allow-root$(,) on 127.0.0.1 and with its token")
	$(PYTHON) -m jupyter lab --ip 127.0.0.1 $(if $(ROOT_INSIDE),--allow-root) --LabApp.default_url=/lab/tree/notebooks/start.ipynb $(LAB)

# ------------------------------------------------------------------------------------------------- tests and checks

.PHONY: test
test: $(ENVIRONMENT) ## unit and property tests, the executed notebooks under nbval, then their numbers against the expected ones
	@# one process per core with one thread each: threads that wait for each other's cores cost more than they bring
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests -n auto --dist loadfile
	@# under nbval: in a results folder of their own, with the records that exist
	rm -rf .make/nbval; mkdir -p .make/nbval/mini .make/nbval/ipython
	[ ! -d results/mini/records ] || ln -s "$$PWD/results/mini/records" .make/nbval/mini/records
	export APM_RUN=1 APM_RESULTS=.make/nbval IPYTHONDIR="$$PWD/.make/nbval/ipython" MATPLOTLIBRC=/dev/null; \
	OMP_NUM_THREADS=$(SHARE) $(PYTHON) -m pytest --nbval-lax --nbval-current-env -p no:cacheprovider -n $(JOBS) --dist loadfile \
	  $(NBVAL:%=results/mini/notebooks/%.ipynb); \
	$(APM).analysis.verify --made
	rm -rf .make/nbval

.PHONY: test-browser
test-browser: $(ENVIRONMENT) ## notebooks 10 and 05 in JupyterLab and a real browser, where there is a Chromium; screenshots in .make/browser
	$(PYTHON) -m pytest tests/test_browser.py -m browser -rs

.PHONY: lint
lint: $(ENVIRONMENT) ## ruff: lint and format, notebooks included
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

.PHONY: types
types: $(ENVIRONMENT) ## mypy on apm/
	$(PYTHON) -m mypy

.PHONY: rehearse
rehearse: $(ENVIRONMENT) ## profiles paper and clip from end to end on small trees with random teachers: no data, no weights
	$(PYTHON) tests/rehearsal.py

.PHONY: bench
bench: $(ENVIRONMENT) ## speed as ratios in one run, into results/bench/
	env -u OMP_WAIT_POLICY $(PYTHON) tests/bench.py

.PHONY: data
data: $(ENVIRONMENT) ## what torchvision can download of PROFILE's sets, into DATA=folder; mini needs none
	@$(APM).data.check --profile $(PROFILE) --download

.PHONY: check-data
check-data: $(ENVIRONMENT) ## which of PROFILE's datasets are in DATA=folder: found, missing, wrong
	@$(APM).data.check --profile $(PROFILE)

.PHONY: teacher
teacher: $(ENVIRONMENT) ## train the teacher of PROFILE anew, as its teacher.yaml says, and compare it with the shipped one
	@$(APM).teachers.train --profile $(PROFILE)

# ----------------------------------------------------------------------------------------------------------- cleaning

.PHONY: clean
clean: ## forget what was run (stamps, test caches); keeps environment, records and results
	rm -rf .make/*/ .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find apm tests -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: clean-records
clean-records: $(ENVIRONMENT) ## delete the records of PROFILE and all cached teachers and features (APM_CACHE): the next run computes anew
	@$(APM).project.clean $(PROFILE)
