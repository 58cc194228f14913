# The project's commands. Each does all its set-up: a .venv with the pinned development requirements and the native build.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
CPP_FILES := $(shell find csrc tests/cpp tools/cuda_on_cpu -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
NATIVE := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f)
ARGS ?=

PART ?=
RESULTS ?=
OLDEST_TRITON := triton==3.6.0
# Examples that a launcher starts; Python runs the others.
ON_RANKS := examples/ddp.py examples/tensor_parallel.py
ACCELERATED := examples/accelerate_accumulation.py

# Where it is set, each of the many processes of the tests compiles all that it imports, torch too: seconds every time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help train study test ctest ctest-more cross docs check-more faults bench gpu lint format setup clean

help: ## what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s%s\n", $$1, $$2 }' Makefile

train: setup ## train on real data: cross-entropy beside TOAST (ARGS="--help" for the options)
	$(PY) python/train.py $(ARGS)

study: setup ## does it help accuracy? the runs of docs/study.md that are missing, then the page (hours; ARGS="--hours 1")
	$(PY) python/study.py $(ARGS)

test: setup ctest ## the whole test suite, and the C++ tests under sanitizers
	$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

# A folder and what is built there: the C++ kernels and their tests, under sanitizers.
define run-ctest
	$(VENV)/bin/cmake --log-level=WARNING -S . -B $(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja \
		-DTOAST_TESTS=ON -DTOAST_SANITIZE=ON $(2)
	MAKEFLAGS= $(VENV)/bin/cmake --build $(1)  # ninja does not take jobs from this make
	$(VENV)/bin/ctest --test-dir $(1) --output-on-failure --parallel 2
endef

ctest: $(VENV)/.build-tools ## the C++ tests under AddressSanitizer and UBSan, with the instructions of this processor
	$(call run-ctest,build/sanitize,-DTOAST_SIMD=OFF -DTOAST_FLAGS_generic=$(if $(filter x86_64,$(shell uname -m)),-march=native))

ctest-more: $(VENV)/.build-tools ## the same with each instruction set that the kernels are built for
	$(call run-ctest,build/sanitize-more,-DTOAST_MORE_TESTS=ON)

cross: $(VENV)/.requirements ## compile csrc for ARM, musl and macOS with ziglang, and run its tests on musl with libc++
	$(PY) -m pip install --quiet -r requirements-cross.txt
	$(PY) tools/cross_build.py $(ARGS)

docs: setup $(VENV)/.more ## the documentation, into build/docs
	$(PY) -m sphinx -q -W --keep-going -b html docs build/docs

check-more: docs cross ctest-more ## what a release wants besides `make test` and `make lint`: documentation, examples, cross builds, all instruction sets, the oldest Triton
	$(PY) -m pytest -q docs
	for example in $(filter-out $(ON_RANKS) $(ACCELERATED),$(wildcard examples/*.py)); do \
		echo "$$example"; $(PY) $$example || exit 1; done
	for example in $(ON_RANKS); do $(PY) -m torch.distributed.run --nproc-per-node 2 $$example || exit 1; done
	$(PY) -m accelerate.commands.launch --num_processes 2 --cpu $(ACCELERATED)
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(PY) -m pip install --quiet --no-deps --upgrade --target build/oldest-triton $(OLDEST_TRITON)
	$(PY) -m pip install --quiet --no-build-isolation --no-deps --config-settings editable_mode=compat -e .  # for all GPUs
	$(PY) -m pytest -n 2 --dist loadfile -q -m more tests
	$(PY) -m pytest -q tests/compiled/test_cuda_compiles.py
	PYTHONPATH=build/oldest-triton $(PY) -m pytest -q -m "" tests/compiled/test_compile_targets.py

faults: setup ## break the code in some 580 ways, one at a time, and see a test fail each time (hours; ARGS="--only TEXT")
	$(PY) tools/seeded_faults.py $(ARGS)

# glibc keeps freed memory, for ours and the peers alike: the page faults of fresh memory cost as much as a loss.
bench: setup $(VENV)/.more ## kernel microbenchmarks against their peers, then the READMEs' tables and plots from the results
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000 TOAST_BENCH_RESULTS=$(RESULTS) \
		$(PY) -m pytest -s -W ignore::DeprecationWarning --benchmark-disable-gc bench $(ARGS)
	TOAST_BENCH_RESULTS=$(RESULTS) $(PY) bench/report.py

# With the Python that has PyTorch for the GPU, and not the .venv.
gpu: ## on a machine with a GPU: a test of every kernel, then the benchmarks, within nine minutes (PART=gate|loss|medoids|step|linear|tests|checkers, RESULTS=folder)
	$(PYTHON) tools/gpu.py $(if $(PART),--part $(PART)) $(if $(RESULTS),--results $(RESULTS))

lint: setup ## what `make test` does not look at: ruff, mypy, clang-format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy --strict --follow-imports=silent --cache-dir build/mypy tests/package/typed_snippet.py
	$(VENV)/bin/clang-format --dry-run --Werror $(CPP_FILES)

format: setup ## most of what lint wants
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CPP_FILES)

setup: $(VENV)/.requirements $(VENV)/.built ## .venv and the native build, which the others make for themselves

$(VENV)/.build-tools: requirements-build.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"make needs Python 3.11 or newer, {sys.version.split()[0]} is {sys.executable}: make PYTHON=..."'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --no-compile -r requirements-build.txt
	touch $@

$(VENV)/.requirements: requirements-dev.txt $(VENV)/.build-tools
	$(PY) -m pip install --quiet --no-compile -r requirements-dev.txt  # half of it is never imported
	touch $@

$(VENV)/.more: requirements-more.txt $(VENV)/.requirements
	$(PY) -m pip install --quiet --no-compile -r requirements-more.txt
	touch $@

# The CUDA kernels for one architecture, in half the time, and without warnings; `pip install` has more of both.
$(VENV)/.built: $(VENV)/.build-tools $(NATIVE)
	NVCC_APPEND_FLAGS=-Werror=all-warnings TOAST_CUDA_ARCHITECTURES=$${TOAST_CUDA_ARCHITECTURES-90} \
		$(PY) -m pip install --quiet --no-build-isolation --no-deps --config-settings editable_mode=compat -e .
	touch $@

clean: ## remove .venv and all that was built
	rm -rf $(VENV) build dist *.egg-info toast_kernels/_C.* toast_kernels/_cuda.*
