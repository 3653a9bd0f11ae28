# make demo: build, then LeNet on real digits: float, pruned and quantized, integers, ONNX, a report.
# make test: every test but those of make accuracy, which train networks with many seeds.
# make docs: the site of the docs, in .venv-docs. make bench-peers: other tools, in .venv-peers.
# Each sets up what it needs.
.PHONY: build cpp-tests test accuracy demo bench bench-peers format lint asan fuzz docs wheel test-newest clean

TORCH ?= 2.11.0
NEWEST_TORCH ?= 2.15.0
VENV ?= .venv
BUILD ?= build/package
REQUIREMENTS ?= tools/requirements.txt tools/requirements-models.txt
PY := $(VENV)/bin/python
# nproc, as long as each job has 3 GiB
JOBS := $(shell python3 -c "import os; f = [int(l.split()[1]) >> 20 for l in open('/proc/meminfo') if l.startswith('MemAvailable')][0]; print(max(1, min(os.cpu_count(), f // 3)))" 2>/dev/null || echo 2)
CMAKE := $(VENV)/bin/cmake
TIDY = $(VENV)/bin/clang-tidy -quiet -p $(BUILD) --extra-arg=-fno-openmp
export PATH := $(abspath $(VENV)/bin):$(PATH)

build:
	@bash tools/setup.sh $(VENV) $(TORCH) $(REQUIREMENTS)
	@BITPARE_BUILD_DIR=$(abspath $(BUILD)) $(PY) setup.py -q build_ext --inplace
	@[ $(VENV)/.installed -nt pyproject.toml ] || (BITPARE_BUILD_DIR=$(abspath $(BUILD)) $(PY) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e . && touch $(VENV)/.installed)
	@$(PY) -m bitpare doctor --brief

cpp-tests: build
	@$(CMAKE) -S . -B $(BUILD) -DBITPARE_TESTS=ON > $(BUILD)/configure.log || (cat $(BUILD)/configure.log; exit 1)
	@$(PY) tools/progress.py build $(BUILD) $(JOBS)

test: cpp-tests
	$(VENV)/bin/ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS)
	$(PY) -m pytest -q -m "not accuracy"

accuracy: build
	$(PY) -m pytest -q -m accuracy

# The newest torch: the build, the ops and every case.
test-newest:
	@$(MAKE) --no-print-directory build TORCH=$(NEWEST_TORCH) VENV=.venv-newest BUILD=build/newest REQUIREMENTS=tools/requirements.txt
	.venv-newest/bin/python -m pytest -q tests/python/test_ops.py

demo: build
	@echo "LeNet on real digits, which takes about ten seconds; python examples/NAME.py --help has more"
	$(PY) examples/lenet_digits.py

bench: build
	$(PY) benchmarks/run.py
	$(PY) benchmarks/tables.py

# Other tools beside bitpare: half an hour on a quiet machine.
bench-peers: build
	@bash tools/setup.sh .venv-peers $(TORCH) tools/requirements-peers.txt
	PYTHONPATH=python .venv-peers/bin/python benchmarks/peers/run.py --save
	$(PY) benchmarks/tables.py

format:
	@bash tools/setup.sh $(VENV) $(TORCH) $(REQUIREMENTS) tools/requirements-lint.txt
	$(VENV)/bin/clang-format -i $$(git ls-files 'csrc/*' 'tests/cpp/*' 'tests/fuzz/*' 'examples/cpp/*' | grep -E '\.(h|cpp|cu)$$')
	$(VENV)/bin/ruff format -q . && $(VENV)/bin/ruff check -q --fix .

# Kernels without the analyzer: it follows every path of unrolled, inlined vector code for many
# minutes. make asan stands in for it.
lint: build docs
	@bash tools/setup.sh $(VENV) $(TORCH) $(REQUIREMENTS) tools/requirements-lint.txt
	$(VENV)/bin/clang-format --dry-run -Werror $$(git ls-files 'csrc/*' 'tests/cpp/*' 'tests/fuzz/*' 'examples/cpp/*' | grep -E '\.(h|cpp|cu)$$')
	$(VENV)/bin/ruff format -q --check . && $(VENV)/bin/ruff check -q .
	$(VENV)/bin/mypy
	$(PY) tools/check_layers.py
	$(PY) tools/check_language.py
	ls csrc/kernels/cpu/*.cpp | xargs -P $(JOBS) -n 3 $(TIDY) --checks='-clang-analyzer-*'
	ls csrc/ops/*.cpp csrc/integer/*.cpp csrc/module.cpp | xargs -P $(JOBS) -n 3 $(TIDY)

asan:
	@bash tools/setup.sh $(VENV) $(TORCH) $(REQUIREMENTS)
	@bash tools/asan.sh $(VENV) build/asan $(JOBS)

# Random calls, changed models and libFuzzer: what may not crash. FUZZ_SEED=1 tries others.
FUZZ_SECONDS ?= 600
FUZZ_SEED ?= 0
fuzz: build
	@bash tools/fuzz.sh $(VENV) build/fuzz $(FUZZ_SECONDS) $(FUZZ_SEED)

docs:
	@bash tools/setup.sh .venv-docs none tools/requirements-docs.txt
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build -q
	@echo "written: build/docs/index.html; .venv-docs/bin/mkdocs serve adds the search"

wheel: build
	$(PY) -m pip wheel -q --no-build-isolation --no-deps -w dist .
	@ls dist/*.whl

clean:
	rm -rf build dist .venv .venv-docs .venv-newest .venv-peers python/bitpare/*.so python/bitpare/_build_info.py
