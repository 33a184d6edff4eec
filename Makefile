# Targets make .venv by themselves; nothing but Python 3.11+, gcc and make has to be there (minimum-check: uv too).
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo evaluate test test-slow test-ray check lint types format supported-models train-shapes bench clean help \
        prose dead-code docs release-check minimum-check

help:
	@echo "make demo         explain scenes and photos with the bundled models, write tokentm-demo.png"
	@echo "make evaluate     measure eight methods on 500 objects, write out/evaluate-shapes/report.html"
	@echo "make test         run the tests"
	@echo "make check        lint, types, spelling, dead code, site, tests: what CI runs"
	@echo "make docs         build the site strictly into build/site"
	@echo "make release-check  build and check wheel and source archive, install the wheel in an empty environment"
	@echo "make minimum-check  install and run with the lowest versions that pyproject.toml allows"
	@echo "make test-slow    run the tests that take minutes"
	@echo "make supported-models  examine every ViT entry of timm, write docs/supported-models.md"
	@echo "make test-ray     run the tests on a real Ray: two workers, two nodes, kills"
	@echo "make train-shapes train the bundled model shapes again, into runs/shapes (up to an hour on two cores)"
	@echo "make bench        time and memory beside peers, write docs/benchmarks.md (half an hour)"
	@echo "make clean        remove everything that these targets made"

demo: $(STAMP)
	$(BIN)/tokentm demo --out tokentm-demo.png

evaluate: $(STAMP)
	$(BIN)/tokentm evaluate shapes:500 --limit 500 --model shapes --explain target \
	  --protocols perturbation,segmentation \
	  --methods tokentm,tokentm/libra,gae,rollout,raw_attention,attcat/libra,random,center \
	  --batch-size 32 --out out/evaluate-shapes

# One process per core; the tests of a file stay together, because they share what is costly to build.
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

test-ray: $(STAMP)
	$(BIN)/python -m pytest -n 0 -m "slow or not slow" tests/test_engine_ray.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# Words, and code that nothing reaches: what is listed under [tool.vulture] in pyproject.toml is reached by a framework.
prose: $(STAMP)
	$(BIN)/codespell

dead-code: $(STAMP)
	$(BIN)/vulture

# Only the search index and the pages themselves: no other host is asked for anything.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

check: lint types prose dead-code docs test

# The wheel is built from the source archive, so that both are tried; then installed where nothing else is.
release-check: $(STAMP)
	rm -rf dist build/empty && mkdir -p build
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/python scripts/check_dist.py dist
	$(call environment,build/empty,-c constraints.txt dist/*.whl)
	cd build && empty/bin/tokentm --version && empty/bin/tokentm demo --out empty/demo.png && empty/bin/tokentm methods >/dev/null

# The lowest versions of what pyproject.toml names, with what those ask for; needs uv, which alone can choose them.
minimum-check: $(STAMP)
	rm -rf build/minimum && mkdir -p build
	uv venv --quiet --python $(PYTHON) build/minimum
	uv pip install --quiet --python build/minimum/bin/python --resolution lowest-direct '.[hf,clip,evaluate]'
	cd build && minimum/bin/tokentm demo --out minimum/demo.png && minimum/bin/tokentm evaluate shapes:4 --limit 4 \
	  --model shapes --methods tokentm,random --protocols segmentation,perturbation --out minimum/run
	build/minimum/bin/tokentm explain --help >/dev/null
	build/minimum/bin/python scripts/smoke.py

# $(1): folder of a new environment; $(2): what is installed there.
define environment
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --python $(PYTHON) $(1) && uv pip install --quiet --python $(1)/bin/python $(2); \
	else \
	  $(PYTHON) -m venv $(1) && $(1)/bin/python -m pip install --quiet --disable-pip-version-check $(2); \
	fi
endef

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

supported-models: $(STAMP)
	$(BIN)/python scripts/supported_models.py

train-shapes: $(STAMP)
	$(BIN)/python scripts/train_shapes.py train

bench: $(STAMP)
	@$(BIN)/python -c "import captum, pytorch_grad_cam, torchcam" 2>/dev/null || \
	  if command -v uv >/dev/null 2>&1; then \
	    uv pip install --quiet --python $(BIN)/python --constraints constraints.txt --editable '.[dev,bench]'; \
	  else $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'; fi
	$(BIN)/python benchmarks/speed.py --out docs/benchmarks.md

# uv where the machine has it, because it is many times faster; else venv and pip.
$(STAMP): pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --allow-existing --python $(PYTHON) .venv && \
	  uv pip install --quiet --python $(BIN)/python --constraints constraints.txt --editable '.[dev]'; \
	else \
	  $(PYTHON) -m venv .venv && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints.txt --editable '.[dev]'; \
	fi
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist runs out tokentm-demo.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
