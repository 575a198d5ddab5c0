# make quickstart      train and evaluate the bundled ten-language picture set on the CPU (minutes)
# make quickstart-15   the same with a longer plan
# make serve           open a page that searches with the quickstart's model (SERVE="images=[folder] port=8001")
# make test            run the test suite
# make lint            check the style
#
# Each target sets up .venv by itself and works without network once that is done. Variables: PYTHON (3.10 or newer),
# VENV (where the environment goes), REQUIREMENTS (requirements.lock installs the versions tested together).
PYTHON ?= python3
VENV ?= .venv
REQUIREMENTS ?= requirements.txt
EXTRA = requirements-serve.txt
PEERS = requirements-peers.txt
INSTALLED = $(VENV)/.installed-$(notdir $(REQUIREMENTS))
RUN = $(VENV)/bin/python run.py --task pretrain
OPEN = run.py --task serve --checkpoint output/quickstart

.PHONY: help quickstart quickstart-15 serve test lint
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -9

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Python 3.10 or newer is needed, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)"; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { \
	  echo "$(PYTHON) lacks the venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(INSTALLED): $(REQUIREMENTS) $(VENV)/.created
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(REQUIREMENTS)
	@touch $@

$(VENV)/.installed-serve: $(EXTRA) $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(EXTRA)
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-search.txt $(PEERS) $(EXTRA) $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $(PEERS)
	@touch $@

quickstart: $(INSTALLED)
	$(RUN) --config configs/quickstart.yaml --output_dir output/quickstart
	@echo
	@echo "Search with it in your browser:  make serve"
	@echo "or, with $(EXTRA) installed:  python3 $(OPEN)"

quickstart-15: $(INSTALLED)
	$(RUN) --config configs/quickstart_15min.yaml --output_dir output/quickstart-15

serve: $(VENV)/.installed-serve
	$(VENV)/bin/python $(OPEN) $(SERVE)

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.installed-dev
	$(VENV)/bin/python -m ruff check .
