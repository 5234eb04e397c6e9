# make demo: set up, then train and evaluate the embedded model.   make test: set up, then run all checks.
# make docs: the documents as a site in build/site.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
# The embedded model's tensors are too small to share between threads.
export OMP_NUM_THREADS ?= 1
TORCH := $(shell grep '^torch==' requirements.lock)

.PHONY: install demo test docs clean
install: $(VENV)/installed

$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: install
	rm -rf $(DEMO)
	set -e; PATH="$(CURDIR)/$(BIN):$$PATH"; \
	data=$$(scorefast prepare data/score.csv --out $(DEMO)/data); \
	scorefast eval base --data $$data --out $(DEMO)/base >/dev/null; \
	stage1=$$(scorefast stage1 --data $$data --out $(DEMO)/stage1); \
	scorefast eval base $$stage1 --data $$data --out $(DEMO)/after-stage1 >/dev/null; \
	stage2=$$(scorefast stage2 --data $$data --from $$stage1 --out $(DEMO)/stage2); \
	scorefast eval base $$stage1 $$stage2 --data $$data --out $(DEMO)/after-stage2 --json > $(DEMO)/summary.json
	@echo "results: $(DEMO)/summary.json   learning curves: $(DEMO)/stage*/curve.png   talk to it: $(BIN)/scorefast chat $(DEMO)/stage2"

test: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -n 2
	TRITON_INTERPRET=1 $(BIN)/pytest -n 2 tests/test_kernels.py -k triton

DOCS := .docs-venv
PAGES := README.md CONTRIBUTING.md CITATION.cff LICENSE data/README.md docs/*.md docs/*.png $(wildcard */results/*.md */results/*.png) tests/harness/results/*.md

docs: $(DOCS)/installed
	rm -rf build/docs build/site && mkdir -p build/docs
	tar cf - $(PAGES) | tar xf - -C build/docs
	$(DOCS)/bin/zensical build --clean --strict

$(DOCS)/installed: docs/requirements.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) $(DOCS) runs build *.egg-info
