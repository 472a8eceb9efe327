# Everything that a person or CI does here; `make help` lists it.
VENV   := .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow lint format docs ci sweep tensorboard bench bench-generate clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## create .venv and install the package with the pinned versions

# The constraints keep pip from backtracking for minutes and everyone on the same versions.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "midigenre needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

train: setup ## set up, prepare the embedded corpus, train, evaluate (ARGS="tokenizer=cp")
	$(BIN)/midigenre train $(ARGS)

# The property tests draw the same examples each time, so that a failure comes from the change.
test: setup ## set up, run the tests (ARGS="-k encoder")
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --hypothesis-profile=ci $(ARGS)

test-slow: setup ## run the long tests too, property tests with new examples
	$(BIN)/python -m pytest $(ARGS)

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup ## build the documentation, a warning is an error: build/site/index.html
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees -c docs . build/site

ci: lint test ## what .ci/run runs

sweep: setup ## three tokenizers over three seeds (ARGS="corpus=toy")
	$(BIN)/midigenre train -m sweep=tokenizers $(ARGS)

tensorboard: setup ## look at the runs in the browser (RUNS=runs/sweep/WHEN: at one sweep)
	$(BIN)/tensorboard --logdir "$(or $(RUNS),$${MIDIGENRE_HOME:-.}/runs)"

# The extra is installed on every call: pip finds it in seconds, and only this target wants it.
bench: setup ## time a training step beside Hugging Face's (experiments/speed; ARGS="--repeats 3")
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,bench]"
	$(BIN)/python experiments/speed/bench.py $(ARGS)

bench-generate: setup ## time generation beside Hugging Face's (ARGS="--run runs/NAME/WHEN")
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,bench]"
	$(BIN)/python experiments/02_generation_speed/bench.py $(ARGS)

clean: ## remove the environment, caches and builds; runs/, shards/ and corpora/ stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
