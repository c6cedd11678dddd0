# Every target works on a machine that has only Python 3.11 or newer and make: it builds its own .venv here.
.DEFAULT_GOAL := help
.PHONY: help dist
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
DIST   := .venv-dist
PY     := $(VENV)/bin/python
PLAIN  := .venv-lint
TRITON := .triton
BESIDE := .beside
DOCS   := .venv-docs
LOCKER := .venv-lock
LOCK   := lock.txt
# Each version that is installed comes from the lock, and so does each that builds a package.
LOCKED := PIP_CONSTRAINT=$(CURDIR)/$(LOCK) PIP_BUILD_CONSTRAINT=$(CURDIR)/$(LOCK)
RESOLVE = $(LOCKER)/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate
PIP    := -m pip install --quiet --no-compile
# Two more than two cores: ranks wait for each other.
WORKERS ?= 4
# A run leaves its bytecode to the next, and to its own workers: pytest alone needs 6 s to rewrite the assertions.
unexport PYTHONDONTWRITEBYTECODE
# The tests' ranks and Inductor's builds must not oversubscribe the machine.
export OMP_NUM_THREADS ?= 1

.PHONY: demo examples pages test test-all test-deep lint lock docs links bench gpu zoo compat newest vllm fuzz clean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1|\2/p' $(MAKEFILE_LIST) | sort -u | awk -F'|' '{ printf "%-14s%s\n", $$1, $$2 }'

$(VENV)/.installed: pyproject.toml $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "farskip-compile needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(LOCKED) $(PY) $(PIP) --upgrade pip
	# compiled when it is imported: most of torch and transformers never is
	$(LOCKED) $(PY) $(PIP) --editable '.[dev]'
	# its models and its trainer are tested, its other half (loggers, datasets: 577 MB) is not needed for that
	$(LOCKED) $(PY) $(PIP) --no-deps torchtitan
	touch $@

# Triton compiles for GPUs without one; a folder of its own, so that all other tests run without it, as on CPUs.
$(TRITON)/.installed: $(VENV)/.installed
	$(LOCKED) $(PY) $(PIP) --no-deps --upgrade --target $(TRITON) triton
	touch $@

# What transformers imports wherever it is installed, and what then talks on stderr: for the processes of its own tests.
$(BESIDE)/torchao.installed: $(VENV)/.installed
	$(LOCKED) $(PY) $(PIP) --no-deps --upgrade --target $(BESIDE)/torchao torchao
	touch $@

# A source distribution that imports torch; without the kernels that it compiles for GPUs.
$(BESIDE)/deepspeed.installed: $(VENV)/.installed
	DS_BUILD_OPS=0 $(LOCKED) $(PY) $(PIP) --no-deps --upgrade --no-build-isolation --target $(BESIDE)/deepspeed \
	  deepspeed hjson ninja py-cpuinfo msgpack einops
	touch $@

demo: $(VENV)/.installed ## rewire real models on two ranks of this machine, check them, write a report
	$(VENV)/bin/farskip demo

# As examples/README.md says it. The notebooks are held to the outputs that stand in them.
examples: $(VENV)/.installed ## the scripts and notebooks of examples/
	$(PY) examples/rewire_transformers.py
	$(VENV)/bin/torchrun --nproc-per-node 2 examples/train_two_ranks.py
	$(PY) examples/heal_and_evaluate.py
	$(VENV)/bin/torchrun --nproc-per-node 2 examples/regional_fsdp2.py
	$(PY) examples/serve.py
	$(PY) -m tests.examples.notebooks

# tests/tiers says what `test` leaves to `test-all`, and that to `test-deep`.
test: $(VENV)/.installed ## the quick tests
	$(PY) -m pytest -n $(WORKERS) --dist loadgroup -m "not whole"

test-all: $(VENV)/.installed $(TRITON)/.installed ## what a change must pass, with `make lint`
	$(PY) -m pytest -n $(WORKERS) --dist loadgroup -m "not deep"

# Every test, each property on all its examples: before a release.
test-deep: export FARSKIP_TESTS := deep
test-deep: $(VENV)/.installed $(TRITON)/.installed $(addprefix $(BESIDE)/,torchao.installed deepspeed.installed) ## every test: before a release
	$(PY) -m pytest -n $(WORKERS) --dist loadgroup

# mypy can not see the package-dir mapping of an editable install, so it gets the tree as it is installed, which is what
# tests/structure/test_wheel.py finds in the wheel.
lint: $(VENV)/.installed ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	rm -rf $(PLAIN) && mkdir -p $(PLAIN)
	cp -R farskip_compile $(PLAIN) && cp -R passes models $(PLAIN)/farskip_compile
	cd $(PLAIN) && MYPYPATH=. ../$(PY) -m mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache -p farskip_compile

# What `test-all` leaves out of three folders, too: it runs beside it, with each change.
pages: export FARSKIP_TESTS := deep
pages: $(VENV)/.installed $(addprefix $(BESIDE)/,torchao.installed deepspeed.installed) ## each program of docs/
	$(PY) -m pytest -n $(WORKERS) --dist loadgroup tests/docs tests/examples tests/integrations

# The newest releases within our ranges, for every Python that is supported. torch stays at the minor version on which
# figures are measured (the group `lock` in pyproject.toml).
lock: ## write lock.txt anew: each version that the targets install
	test -x $(LOCKER)/bin/uv || { $(PYTHON) -m venv $(LOCKER) && $(LOCKED) $(LOCKER)/bin/python $(PIP) uv; }
	$(RESOLVE) --extra dev --group docs --group lock --output-file $(LOCK).new pyproject.toml
	$(RESOLVE) --no-deps --constraint $(LOCK).new --group apart --output-file $(LOCK).apart
	{ echo '# Written by `make lock`; the Makefile installs from nothing else.'; cat $(LOCK).new; \
	  echo '# Each of these is installed without its requirements.'; cat $(LOCK).apart; } > $(LOCK)
	rm $(LOCK).new $(LOCK).apart

# The site, in site/. It needs no torch: sources are read, not imported. `$(DOCS)/bin/mkdocs serve` shows it while it is
# written.
$(DOCS)/.installed: pyproject.toml $(LOCK)
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(LOCKED) $(DOCS)/bin/python $(PIP) --upgrade pip
	$(LOCKED) $(DOCS)/bin/python $(PIP) --group docs
	touch $@

docs: export NO_MKDOCS_2_WARNING := 1
docs: $(DOCS)/.installed ## the documentation site: site/index.html
	$(DOCS)/bin/mkdocs build --strict

# Every link of the built site, those to other hosts included: needs the network, so no test runs it.
links: docs ## every link of the site, those to other hosts included
	$(DOCS)/bin/linkchecker --check-extern --no-status site/index.html

bench: $(VENV)/.installed ## the benchmarks, in short
	$(PY) benchmarks/compile_cost.py
	$(PY) benchmarks/overlap.py --quick
	$(PY) benchmarks/distillation.py --quick

# On a machine with a GPU, as it comes: its own Python with its own torch, nothing is installed; 8 minutes. GPU="--dry-run"
# goes through everything on a CPU. Writes docs/gpu_figures.json and .md.
gpu: ## what a machine with a GPU can show: docs/gpu_figures.md
	python benchmarks/gpu.py $(GPU)

# Every MoE family of the installed transformers; writes docs/zoo.md and fails where a family was better before.
zoo: $(VENV)/.installed ## every MoE family of the installed transformers: docs/zoo.md
	$(VENV)/bin/farskip check families --against docs/zoo.json --page docs/zoo.md

# The core tests on other versions of torch and transformers, in environments of their own (gigabytes each, removed at
# once); writes docs/compat.json and the table in docs/compat.md. COMPAT="--only torch-2.11 --keep" for one of them.
compat: ## the core tests on other versions of torch and transformers: docs/compat.json
	$(PYTHON) -m tests.compat --workers $(WORKERS) $(COMPAT)

# The newest release of everything within our ranges, without the lock: what meets other people's code, one compile with
# each supported torch, one model served by vLLM. At most 25 minutes; a release begins with it.
newest: ## the newest releases within our ranges: what holds, what fails
	$(PYTHON) -m tests.compat.newest --workers $(WORKERS) $(NEWEST)

# The real vLLM, in environments of its own: what it serves and what it refuses, on each version that is supported; the
# table in docs/serving.md and that of `make compat`. COMPAT="--only vllm-0.32 --keep" for one of them.
vllm: ## the real vLLM: docs/serving.md
	$(PYTHON) -m tests.compat $(or $(COMPAT),--only vllm-0.31 --only vllm-0.32)
	$(PYTHON) -m tests.vllm.page

# Generated graphs and models in any number: FUZZ="--seconds 600 --seed 7" for another, shorter run.
fuzz: $(VENV)/.installed ## generated graphs and models
	$(PY) -m tests.fuzz --jobs $(WORKERS) $(FUZZ)

# What is published: an sdist, the wheel made of it, and what PyPI says of both. An environment of its own, with nothing in
# it that a release does not need.
dist: ## sdist and wheel in dist/, checked
	test -x $(DIST)/bin/twine || { $(PYTHON) -m venv $(DIST) && $(LOCKED) $(DIST)/bin/python $(PIP) build twine; }
	rm -rf dist
	$(DIST)/bin/python -m build
	$(DIST)/bin/twine check --strict dist/*

clean: ## remove all that these targets have made here
	rm -rf $(VENV) $(PLAIN) $(DIST) $(LOCKER) $(TRITON) $(BESIDE) $(DOCS) .compat build dist out site *.egg-info
