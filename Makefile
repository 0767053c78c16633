# Each target does its own set-up. PYTHON is the interpreter that the environments are made with.
PYTHON ?= python3
RANKS ?= 2
FAULT ?=
REPORT ?=
KEEP ?=

VENV := .venv
VENV26 := .venv-paddle26
VENV33 := .venv-paddle33
PIP_FLAGS := --quiet --disable-pip-version-check --require-hashes
BENCH := .venv-bench
# Prometheus and Alertmanager where they are not installed: see paddle_exporter/demo/binaries.py
WITH_STACK = PATH="$$($(VENV)/bin/python -m paddle_exporter.demo.binaries):$$PATH"

.PHONY: help check test bench generate demo lock clean

help:
	@echo 'make demo      train a small real model on 2 ranks and watch it  (RANKS=4, FAULT=nan|crash|hang, REPORT=FILE, KEEP=1)'
	@echo 'make test      run every test                                      (ARGS="-k page")'
	@echo 'make check     ruff, mypy, and that generated files are up to date'
	@echo 'make bench     what it costs, beside what others cost'
	@echo 'make generate  write METRICS.md and the tables of settings'
	@echo 'make lock      resolve requirements/*.in anew (needs uv)'

$(VENV)/ready: requirements/dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV) || { echo "On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) -r requirements/dev.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# Paddle as the tests of the hooks have it, each with a Trainer. Paddle 2.6 has wheels for Python up to 3.12.
$(VENV26)/ready: requirements/paddle26.lock requirements/nlp26.lock
	$(PYTHON) -m venv $(VENV26)
	$(VENV26)/bin/python -m pip install $(PIP_FLAGS) --use-pep517 -r requirements/paddle26.lock
	$(VENV26)/bin/python -m pip install $(PIP_FLAGS) --no-deps -r requirements/nlp26.lock
	touch $@

$(VENV33)/ready: requirements/paddle33.lock requirements/formers33.lock
	$(PYTHON) -m venv $(VENV33)
	$(VENV33)/bin/python -m pip install $(PIP_FLAGS) -r requirements/paddle33.lock
	$(VENV33)/bin/python -m pip install $(PIP_FLAGS) --no-deps -r requirements/formers33.lock
	touch $@

$(BENCH)/ready: requirements/bench.lock pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install $(PIP_FLAGS) -r requirements/bench.lock
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

check: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/paddle-exporter generate --check

test: $(VENV)/ready $(VENV26)/ready $(VENV33)/ready
	$(WITH_STACK) TEST_PADDLE26_PYTHON=$(CURDIR)/$(VENV26)/bin/python \
		TEST_PADDLEFORMERS_PYTHON=$(CURDIR)/$(VENV33)/bin/python $(VENV)/bin/python -m pytest $(ARGS)

bench: $(BENCH)/ready
	$(BENCH)/bin/python tests/bench/run.py $(ARGS)

generate: $(VENV)/ready
	$(VENV)/bin/paddle-exporter generate

demo: $(VENV)/ready
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/paddle-exporter demo --ranks $(RANKS) \
		$(if $(FAULT),--fault $(FAULT)) $(if $(REPORT),--report $(REPORT)) $(if $(KEEP),--keep)

LOCK = uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --no-annotate
lock:
	for name in dev bench; do $(LOCK) --python-version 3.9 requirements/$$name.in -o requirements/$$name.lock || exit 1; done
	for name in paddle26 paddle33; do \
		$(LOCK) --python-version 3.10 requirements/$$name.in -o requirements/$$name.lock || exit 1; done
	for name in nlp26 formers33; do \
		$(LOCK) --python-version 3.10 --no-deps requirements/$$name.in -o requirements/$$name.lock || exit 1; done

clean:
	rm -rf $(VENV) $(VENV26) $(VENV33) $(BENCH)
