# Everything a fresh machine needs is python3, pip and make. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help install demo test test-all check docs bench dist dist-check clean
help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(STAMP)  ## create .venv with the exact versions of constraints.txt
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0  # first, by its exact pin: a CPU build where one is at hand
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: install  ## pretrain OneRec on the simulator's log, align it, judge it by the true users (about 5 minutes)
	$(BIN)/feedgym demo

# A process a core, each on one thread: the tests' networks are too small to gain by more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test: install  ## the test suite without its slow part
	$(PYTEST) -m "not slow"

test-all: install  ## every test
	$(PYTEST)

check: install  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile
	$(BIN)/mypy

DOCS := $(VENV)/.docs
$(DOCS): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $(DOCS)

SITE := DISABLE_MKDOCS_2_WARNING=true NO_MKDOCS_2_WARNING=1 PYTHONWARNINGS=ignore:IProgress OMP_NUM_THREADS=1 \
	WANDB_MODE=disabled PATH="$(CURDIR)/$(BIN):$$PATH"
# EXECUTE=false shows the tutorials without their outputs: half a minute instead of three.
export EXECUTE ?= true
docs: $(DOCS)  ## the documentation's site in site/: tutorials executed, links checked, no network
	$(SITE) $(BIN)/mkdocs build

bench: install  ## speed, as ratios of both sides in one run
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

dist: install  ## build wheel and sdist into dist/ and check them
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*

# Outside the repository, so that nothing is found there by accident.
TRIAL := /tmp/feedgym-trial
STEP = import gymnasium as gym, feedgym; env = gym.make("$(1)"); env.reset(seed=0); print(env.spec.id, env.step(env.action_space.sample())[1])
dist-check: dist  ## install the wheel in new environments: environments alone, a plug-in, then a whole small experiment
	rm -rf $(TRIAL)
	$(PYTHON) -m venv $(TRIAL)/env && $(PYTHON) -m venv $(TRIAL)/train
	$(TRIAL)/env/bin/pip install --quiet "$$(ls $(CURDIR)/dist/*.whl)[env]"
	cd $(TRIAL) && env/bin/python -c '$(call STEP,feedgym/ShortVideo-v1)'
	$(TRIAL)/env/bin/pip install --quiet $(CURDIR)/examples/plugin
	cd $(TRIAL) && env/bin/python -c '$(call STEP,teens/Teens-v0)'
	$(TRIAL)/train/bin/pip install --quiet torch==2.13.0
	$(TRIAL)/train/bin/pip install --quiet -c constraints.txt "$$(ls $(CURDIR)/dist/*.whl)[train]"
	cd $(TRIAL) && train/bin/feedgym run onerec-ipa-smoke --run $(TRIAL)/run
	rm -rf $(TRIAL)

clean:  ## remove the virtual environment and caches (never your runs)
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache build *.egg-info
