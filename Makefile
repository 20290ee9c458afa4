# The two commands a newcomer needs are `make demo` and `make test`; both make .venv from requirements.lock first.
PYTHON ?= python3
VENV := .venv
BUILD := .venv-build
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 3
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q --tb=short --show-capture=no
QUICK := tests/unit tests/property tests/scenario tests/contract

# Hundreds of processes are started by the tests: none of them should have to compile what another has compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo demo-fleet test check test-chaos test-binary test-browser test-images binary lock clean

demo: $(READY)
	$(BIN)/sd-worker demo $(ARGS)

demo-fleet: $(READY)
	$(BIN)/python -m demo $(ARGS)

# Tracing branches costs half as much again, so only the quick tests are traced: they alone have to reach the gate.
test: check
	$(PYTEST) --cov --cov-report= $(QUICK) $(ARGS)
	$(BIN)/python -m tests.branches
	$(PYTEST) tests/fault tests/process $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.sizes
	test ! -x $(BIN)/hadolint || $(BIN)/hadolint Dockerfile.*

test-chaos: $(READY)
	$(BIN)/python -m pytest -n 2 -o faulthandler_timeout=3600 -m chaos tests/chaos $(ARGS)

# Needs Chromium: apt-get install chromium
test-browser: $(READY)
	$(BIN)/python -m pytest -q --tb=short --show-capture=no -m browser tests/browser $(ARGS)

# One self-contained file, dist/sd-worker, that needs the glibc that this Python was built on: `make binary GLIBC=2.31`
# fails where it would need a later one. The Dockerfiles build it on a base whose glibc is old enough for them all.
binary: $(BUILD)/.ready
	$(BUILD)/bin/python -m bundle --out dist/sd-worker $(if $(GLIBC),--glibc $(GLIBC))

# Needs root and debootstrap (apt-get install debootstrap): it runs in roots of other releases.
test-binary: $(READY) binary
	$(BIN)/python -m pytest -q --tb=short --show-capture=no -m binary tests/binary $(ARGS)

# As root, with: apt-get install buildah debootstrap. Where that cannot be, it says so and is no failure.
test-images: $(READY)
	$(BIN)/python -m tests.images $(ARGS)

lock:
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url pyproject.toml --extra dev --extra dispatcher --extra redis --extra salad -o requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url pyproject.toml --extra redis --extra salad -c requirements.lock -o bundle/requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url bundle/tools.in -c requirements.lock -o bundle/tools.lock

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(BUILD)/.ready: bundle/tools.lock
	$(PYTHON) -m venv $(BUILD)
	$(BUILD)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r bundle/tools.lock
	touch $@

clean:
	rm -rf $(VENV) $(BUILD) dist demo-output .pytest_cache .mypy_cache .ruff_cache .coverage .import_linter_cache
