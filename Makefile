# Everything a fresh machine with Python 3.11 needs: `make quickstart` and `make test` build their own .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Where torch comes from; by default where pip looks. PyPI's build for Linux on x86-64 brings gigabytes of CUDA; the
# CPU's is at https://download.pytorch.org/whl/cpu.
TORCH_INDEX ?=

.PHONY: install quickstart test lint types browser pages bench gpu soak kills cluster versions floors docs docs-images clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/python -W ignore -c "import torch; print('torch', torch.__version__, '(CUDA' if torch.version.cuda else '(for the CPU;', \
	  (torch.version.cuda or 'another build: make install TORCH_INDEX=URL') + ')')"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: install
	$(BIN)/maskery quickstart

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

# The tests of the playground's page need a Chromium; without one they are skipped with a reason.
browser:
	@if [ -n "$$MASKERY_CHROMIUM" ] || command -v chromium chromium-browser google-chrome >/dev/null; then \
	  true; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  { apt-get update --quiet --quiet && \
	    apt-get install --quiet --quiet --yes --no-install-recommends chromium fonts-dejavu-core; } \
	  || echo "Chromium could not be installed: the tests of the playground's page are skipped"; \
	else \
	  echo "no Chromium here, so the tests of the playground's page are skipped: install it as root"; \
	  echo "(apt-get install chromium), or name one in MASKERY_CHROMIUM"; \
	fi

test: lint types browser
	$(BIN)/pytest --numprocesses 2 --quiet

# The pages (playground, reports) as people meet them: contrast, names, keyboard, phones. npm fetches axe-core
# once; without it those checks are skipped with a reason.
AXE := $(HOME)/.cache/maskery-pages
pages: install browser
	@[ -f $(AXE)/package/axe.min.js ] || { mkdir -p $(AXE) && cd $(AXE) && npm pack --silent axe-core@4 \
	  && tar -xzf axe-core-4*.tgz && rm axe-core-4*.tgz; } || echo "npm could not fetch axe-core"
	$(BIN)/pytest --quiet -rs tests/report tests/playground

bench: install
	$(BIN)/python benchmarks/bench

# Checks and figures of one GPU, in at most eight minutes, with whatever Python has the machine's torch.
gpu:
	PYTHONPATH=src $(PYTHON) benchmarks/gpu --out gpu.json

# The site in site/, from docs/, the README and the docstrings; a link that leads nowhere fails it. Then the
# notebooks, run by a kernel on small stand-ins.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/pytest --quiet tests/docs -k kernel
	@echo "open site/index.html; with its search: $(BIN)/python -m http.server --directory site"

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# Draws the README's pictures of a finished run: by default of that which the README shows, on the text that
# `maskery quickstart` writes.
RUN ?= runs/reference
docs-images: install browser
	[ -f $(RUN)/model/config.json ] || $(BIN)/maskery train text runs/quickstart/python_reference.txt --unit paragraph \
	  --mask-rate 0.3 --hidden-dropout 0 --learning-rate 3e-4 --batch-tokens 2048 --epochs 4 --output $(RUN)
	PYTHONPATH=tests/support $(BIN)/python docs/draw_images.py $(RUN)

# Malformed and hostile input, 100,000 cases.
soak: install
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py --cases 100000

# Real runs of three kinds killed 100 times each, at instants that MASKERY_KILLS_SEED decides, and two processes
# of which one is killed, stopped or slow.
kills: install
	MASKERY_KILLS=$${MASKERY_KILLS:-100} $(BIN)/pytest --quiet -rP tests/faults/test_kills.py tests/faults/test_ranks.py

# Shards made on a Ray cluster on this machine and by datatrove, in a local S3, with a worker killed.
cluster: install
	MASKERY_CLUSTER=1 $(BIN)/pytest --quiet tests/data/shards/test_engines.py

# Types on the newer Pythons, and their compilers' warnings where they are installed. Their tests need a build of torch:
# make test PYTHON=python3.13 TORCH_INDEX=URL
versions: install
	for version in 3.12 3.13; do \
	  $(BIN)/mypy --python-version $$version --cache-dir .mypy_cache/$$version || exit 1; \
	  if command -v python$$version; then \
	    PYTHONPYCACHEPREFIX=$(VENV)/pycache python$$version -W error -m compileall -q -f src tests examples || exit 1; fi; \
	done

# The tests with the oldest packages that pyproject.toml allows. Torch stays the pinned build: of its oldest there is
# none for a CPU alone, and the package index would bring gigabytes of CUDA.
FLOORS := .venv-floors
floors:
	$(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/pip install --quiet uv "$$(grep '^torch==' constraints.txt)"
	$(FLOORS)/bin/uv pip compile --quiet --no-header --no-annotate --resolution lowest-direct --extra dev \
	  pyproject.toml | grep -vE '^(torch|triton|nvidia|cuda)' > $(FLOORS)/floors.txt
	$(FLOORS)/bin/pip install --quiet --requirement $(FLOORS)/floors.txt
	$(FLOORS)/bin/pip install --quiet --no-deps --editable .
	$(FLOORS)/bin/pytest --numprocesses 2 --quiet -W 'ignore:`torch.jit.script`:DeprecationWarning'

clean:
	rm -rf $(VENV) $(FLOORS) site .mypy_cache .pytest_cache .ruff_cache
