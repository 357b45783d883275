# make quickstart              raw text → corpus → LERT pre-trained by two processes → report, on a CPU
# make quickstart CORPUS=text  the same on your own text (UTF-8 .txt, .jsonl, .parquet, plain, .gz, .zst)
# make test | check | bench    each makes .venv first when it is needed
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
export DS_ACCELERATOR ?= cpu
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false

PROCESSES ?= 2
RUN ?= runs/quickstart
ifdef CORPUS
SOURCE := input="$(CORPUS)"
NAME := $(basename $(notdir $(CORPUS)))
CORPORA ?= corpora/quickstart-$(NAME)
# With a text of one's own: a run of up to half an hour.
STEPS ?= 6000
else
SOURCE :=
CORPORA ?= corpora/quickstart
STEPS ?= 300
endif

.PHONY: quickstart test check setup bench clean

setup: $(READY)

$(READY): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	$(PYTHON) -m venv $(VENV)
	# torch first and exactly: any looser demand brings gigabytes of CUDA to a machine without it.
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt setuptools wheel ninja
	$(BIN)/pip install --quiet -c constraints.txt -e '.[ltp,tracking,distill,prune,dev]'
	# textpruner's own requirements cannot be met on Python 3.10 and later (see pyproject.toml).
	$(BIN)/pip install --quiet --no-deps -c constraints.txt textpruner==1.1.post2
	touch $@

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(READY)
	$(BIN)/pytest -q $(PYTEST)

quickstart: $(READY)
	@echo; echo "1/4  raw text → corpus: words, parts of speech, entities"
	$(BIN)/lert-ds prepare prepare-quickstart output=$(CORPORA) $(SOURCE) overwrite=true
	@echo; echo "2/4  sentences annotated by hand → corpus: dependency relations"
	$(BIN)/lert-ds prepare prepare-quickstart-annotated \
		tokenizer=$(CORPORA) output=$(CORPORA)-annotated overwrite=true
	@echo; echo "3/4  pre-training, $(PROCESSES) processes, ZeRO-2"
	$(BIN)/deepspeed --num_gpus $(PROCESSES) --module lert_ds pretrain pretrain-quickstart \
		output=$(RUN) corpus='["$(CORPORA)", "$(CORPORA)-annotated"]' \
		train.steps=$(STEPS) overwrite=true
	@echo; echo "4/4  the curves, and a masked sentence"
	$(BIN)/lert-ds report $(RUN)
	$(BIN)/lert-ds predict $(RUN)/model "中国的首都是[MASK]京。" --top-k 3
	@echo; echo "curves: $(RUN)/report.html   model: $(RUN)/model   corpus: $(CORPORA)/statistics.md"

clean:
	rm -rf $(VENV) build *.egg-info
