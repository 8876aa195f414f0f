# One command set for people and CI. Everything happens in .venv; nothing outside this folder is touched.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
OUT ?= demo-out
ROOMS := train export calibrate runtime evaluate serve

.PHONY: help setup demo wheel test test-wheel test-serve test-ray test-spark test-lowest test-newest lint format types fuzz bench gpu-check clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready ## create .venv with the package (editable) and everything to develop it

BUILT_FROM := pyproject.toml constraints-dev.txt CMakeLists.txt $(wildcard cmake/* runtime/src/*/* runtime/include/wgap/*.h runtime/include/wgap/kernel/*)

.venv/.ready: $(BUILT_FROM)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints-dev.txt torch==$$(sed -n 's/^torch==//p' constraints-dev.txt)
	$(BIN)/pip install -q -c constraints-dev.txt -C cmake.define.WGAP_WERROR=ON -e '.[cpu,openvino,train,calibrate,rtx,cuda,nvcc,shards,dev]'
	touch $@

demo: setup ## train, export, check, localize and evaluate on generated images; pictures and report.md in demo-out/
	$(BIN)/wgap demo --out $(OUT) --force

test: setup ## the test suite against the editable tree
	$(BIN)/python -m pytest --durations=25 -n auto --maxprocesses 4 --dist loadfile

wheel: setup ## a wheel with the C++ runtime, and a module for each engine whose headers are found, in dist/
	-cmake/fetch-headers.sh
	$(BIN)/python -m build --wheel --no-isolation --outdir dist -Cbuild-dir='build/wheel/{wheel_tag}' -Ccmake.define.WGAP_RUNTIME=ON $(WHEEL_FLAGS) >/dev/null

test-wheel: wheel ## run the runtime tests against that wheel, installed, away from the tree
	$(BIN)/python tests/wheel.py

test-serve: setup ## the tests of serving with a real tritonserver, in an environment of its own
	$(BIN)/python tests/serving.py

test-lowest: setup ## the tests on the lowest Python here with the declared minimums; EXTRAS=cpu,calibrate,train adds PyTorch
	$(BIN)/python tests/versions.py lowest $(EXTRAS)

test-newest: setup ## the tests on the newest Python here with the newest packages
	$(BIN)/python tests/versions.py newest $(EXTRAS)

# Ray and Spark are large, and choose versions of their own: each has its own environment.
NEEDS_ray = '.[cpu,ray]' 'ray[serve]' pillow
NEEDS_spark = '.[cpu]' pyspark pyarrow 'pandas<3'
.venv-ray/.ready .venv-spark/.ready: .venv-%/.ready: $(BUILT_FROM)
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install -q -c constraints-dev.txt -C build-dir='build/$*' -e $(NEEDS_$*) pytest
	touch $@

test-ray: setup .venv-ray/.ready ## Datasets, shards and a deployment on a cluster of Ray on this machine
	$(BIN)/python tests/apart.py .venv-ray/bin/python tests/ray

test-spark: setup .venv-spark/.ready ## docs/ray.md's ways into Spark; needs Java 17
	$(BIN)/python tests/apart.py .venv-spark/bin/python tests/ray

SECONDS ?= 60
fuzz: setup ## damaged manifests, checkpoints, images and kernel calls for SECONDS
	$(BIN)/python -m tests.faults.fuzz $(SECONDS)

lint: setup types ## ruff, clang-format and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.h' '*.hpp' '*.cpp' '*.c' '*.inl')

types: setup
	rm -rf build/typed && mkdir -p build/typed/wgap
	cd build/typed/wgap && ln -s ../../../src/wgap/* $(addprefix ../../../,$(ROOMS)) .
	MYPYPATH=build/typed $(BIN)/mypy -p wgap

format: setup ## rewrite sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.h' '*.hpp' '*.cpp' '*.c' '*.inl')

bench: setup ## the kernel against OpenCV and PyTorch, interleaved
	$(BIN)/python benchmarks/postprocess.py --stages

gpu-check: ## on a machine with an NVIDIA GPU: every GPU test, parity, timings, profile; BUNDLE=, DATA= optional
	test -x .venv-gpu/bin/python || $(PYTHON) -m venv --system-site-packages .venv-gpu
	.venv-gpu/bin/pip install -q $(PIP_FLAGS) -e '.[calibrate,cuda,gpu-check]'
	.venv-gpu/bin/python -m benchmarks.gpu_check $(if $(BUNDLE),--bundle $(BUNDLE)) $(if $(DATA),--data $(DATA)) $(CHECK_FLAGS)

clean: ## remove what make made
	rm -rf .venv .venv-gpu .venv-serve .venv-ray .venv-spark build $(OUT)
