# Every way into the project. Each target first makes sure that .venv holds the pinned packages.

.DEFAULT_GOAL := help
.PHONY: help install cluster run-all run reproduce audit readme test library-attacks mnist-c lab git-filter bench clean-cache clean
export PYTHON
BIN := .venv/bin

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

install:
	@scripts/install.sh

run-all: install ## run all notebooks, replace each by its new run if it succeeds; then readme
	@$(BIN)/python scripts/run_notebooks.py
	@$(BIN)/cog -r README.md

run: install ## run one: make run NB=01; with PARAMS="-p epochs 2" the result goes to runs/
	@$(BIN)/python scripts/run_notebooks.py --only "$(NB)" $(PARAMS)

reproduce: install ## compute the records in results/ anew; goes on where it was stopped
	@$(BIN)/python scripts/run_notebooks.py --reproduce $(if $(NB),--only "$(NB)")
	@$(BIN)/cog -r README.md

audit: install ## run a tenth of the records again, or AUDIT=all; stamps them with the present code
	@AUDIT=$${AUDIT:-0.1} $(BIN)/python scripts/run_notebooks.py $(if $(NB),--only "$(NB)")

readme: install ## write the results table of README.md from the numbers in figures/ and results/
	@$(BIN)/cog -r README.md

cluster: install ## add Dask, for sweeps over several machines
	@$(BIN)/python -c "import distributed" 2>/dev/null || $(BIN)/python -m pip install --quiet \
		--disable-pip-version-check --constraint constraints.txt distributed >>.venv/install.log 2>&1

test: cluster ## lint, unit tests, and every notebook run again and compared with its outputs
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/python -m pytest

library-attacks: install ## attack the networks of notebook 08 by another library, 15 minutes
	@$(BIN)/python -c "import art" 2>/dev/null || $(BIN)/python -m pip install --quiet \
		--disable-pip-version-check --no-deps adversarial-robustness-toolbox==1.20.1 \
		>>.venv/install.log 2>&1
	@$(BIN)/python scripts/library_attacks.py

mnist-c: install ## download MNIST-C, the corrupted test digits, from Zenodo into data/mnist_c
	@$(BIN)/python scripts/download_mnist_c.py

lab: install git-filter ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks

# Without it, a notebook would count as changed as soon as it is opened. It must not fail without
# git or .venv, and another repository around this folder is none of its business.
STRIP = $(BIN)/nbstripout --keep-output --keep-count --extra-keys '$(shell cat scripts/run_metadata.txt)'
git-filter:
	@[ ! -e .git ] || git config filter.notebook.clean \
		"if [ -x $(BIN)/nbstripout ]; then $(STRIP); else cat; fi" 2>/dev/null || true

bench: install benchmarks/.venv/installed ## time training against its peers, 25 minutes; then run NB=07 and 13
	@$(BIN)/python benchmarks/run.py

# JAX and PyTorch have an environment of their own: the project doesn't depend on them.
benchmarks/.venv/installed: benchmarks/requirements.txt
	@echo "Installing JAX and PyTorch into benchmarks/.venv"
	@rm -rf benchmarks/.venv
	@$(BIN)/python -m venv benchmarks/.venv
	@benchmarks/.venv/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement benchmarks/requirements.txt >>.venv/install.log 2>&1
	@touch $@

clean-cache: ## forget the finished runs, so that the next sweeps train everything again
	@rm -rf cache

clean: clean-cache ## remove .venv and all that runs and tests leave behind
	@rm -rf .venv benchmarks/.venv runs build *.egg-info .pytest_cache .ruff_cache
	@find . -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
