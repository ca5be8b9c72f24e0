PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo app test fuzz reliability lint types format install clean docs docs-serve check-docs screenshots

demo: install  ## the main job on the embedded synthetic faces: runs/demo/report.html
	rm -rf runs/demo
	$(BIN)/facessl pretrain --config fra/demo --out runs/demo
	@echo "open runs/demo/report.html"

app: install  ## a local page to look at the demo's run and synthetic faces
	test -f runs/demo/backbone.safetensors || $(MAKE) demo
	$(BIN)/facessl app runs/demo 'synthetic:?n=500&size=96&seed=2'

test: install  ## everything that needs no network and no data, on up to 4 cores; make test JOBS=0 for one process
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(or $(JOBS),logical) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

fuzz: install  ## damaged files for every reader: make fuzz MINUTES=20; failing inputs lie in runs/fuzz
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.fuzz.engine $(or $(MINUTES),20)

reliability: install  ## docs/reliability.md from the marks of the tests
	$(BIN)/python tests/reliability.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "facessl needs Python 3.11 or newer, and $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 1; }
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis site

docs: install  ## the documentation site: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: install  ## the same at http://127.0.0.1:8000, rebuilt as files change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

check-docs: install  ## runs every command of the guides and compares the output that they show
	$(BIN)/python docs/check.py

screenshots: install  ## docs/app-*.png anew, in Debian's chromium
	$(BIN)/python docs/_screenshots.py
