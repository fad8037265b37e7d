# make setup      virtual environment in .venv with everything (no root, no GPU)
# make demo       the whole pipeline on one task; ARGS="key=value ..." passes overrides
# make test       style, types and quick tests on all cores;  make test-slow: the slow tests
#                 TEST_WORKERS=0 runs them in one process (debugger, -s);  ARGS="tests/runs -x" chooses tests
# make docs       the documentation as a site in site/ (installs the `docs` extra; a warning is an error)
# make resolve    pip finds versions for every combination of extras (network)
# PYTHON=/path/to/python chooses the interpreter, VENV=folder the place.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
CONSTRAINTS := constraints/py311.txt
ARGS ?=
# One torch thread in tests: more of them on a busy machine can be many times slower.
TEST_ENV := OMP_NUM_THREADS=1
# Test processes: one a core (quotas of containers counted), at most 4 as each needs about 1 GB; a single core has none
# but pytest's own. A file stays in one process, so that what its tests share is made once. Files in their order: sorted by
# their number of tests, those with few long ones come last and leave a core idle. A process that dies is not made anew, for
# xdist may then wait for ever.
TEST_WORKERS ?= $$($(BIN)/python -c 'from robot_rl.workbench.cores import usable_cores; n = int(usable_cores()); print(min(n, 4) if n > 1 else 0)')
PYTEST = $(TEST_ENV) $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: setup demo test test-slow lint docs resolve clean

setup: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS) constraints/ros2-jazzy.txt
	@python=""; \
	for name in $(PYTHON) python3.11 python3.12 python3; do \
	  if "$$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; \
	  then python="$$name"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "robot-rl: no suitable Python. Needed: 3.11 or 3.12 with venv (on Debian and Ubuntu: apt install python3.11-venv)." >&2; \
	  echo "robot-rl: looked for: $(PYTHON) python3.11 python3.12 python3. Use PYTHON=/path/to/python make setup." >&2; \
	  exit 1; \
	fi; \
	echo "robot-rl: $$("$$python" --version) -> $(VENV) (about 4 GB with torch for the CPU, more with CUDA; minutes to half an hour, in which pip says nothing)"; \
	"$$python" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[train,sim,pusht,export,openvino,baselines,vla,data,ros2,teleop,ray,slurm,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -r constraints/ros2-jazzy.txt
	$(BIN)/python -m pip check
	@echo "robot-rl: ready; 'source $(VENV)/bin/activate' puts robot-rl on the PATH of this terminal"
	@touch $@

demo: setup
	$(BIN)/robot-rl pipeline experiment=pick_cube $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(PYTEST) -m "not slow" --durations=40 --durations-min=4 $(ARGS)

test-slow: setup
	$(PYTEST) -m slow -o timeout=3600 $(ARGS)

docs: setup
	@$(BIN)/python -c 'import mkdocs, material, mkdocstrings, latex2mathml' 2>/dev/null \
	  || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

# Every extra together with those it may meet: pip must find versions (network, about a minute, nothing is installed).
# `tensorrt` is left out: its PyPI package is a source stub that fetches wheels from NVIDIA while pip resolves.
resolve: setup
	@for extras in train,sim,pusht,export,dev,docs train,pusht,export-gpu,dev train,sim,pusht,export,baselines,track,teleop,dev \
	    ros2,export ros2,teleop train,ros2,teleop; do \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --dry-run ".[$$extras]" >/dev/null 2>.resolve.log \
	    && echo "ok      $$extras" || { echo "FAILED  $$extras"; cat .resolve.log; exit 1; }; \
	done; rm -f .resolve.log

clean:
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache *.egg-info
