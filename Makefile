# make quickstart                      raw text → LERT → distilled → pruned → int8, on a CPU
# make quickstart CORPUS=text          on your own text (UTF-8 .txt, .jsonl, .parquet; .gz, .zst)
# make quickstart CORPUS=a VALID=b     evaluated on a text of yours, not on a tenth of the first
# make test | test-slow | test-tf | check | chaos | bench | bench-gpu | bench-tasks      each makes .venv first when it is needed
# make host-tools                      Debian packages for the tests of several hosts (root)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
export DS_ACCELERATOR ?= cpu
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE ?= 1

# Debian packages for the tests of several hosts (tests/launch/cluster.py), which skip without them.
HOST_TOOLS := openssh-server openssh-client pdsh iproute2 iptables util-linux slurmctld slurmd slurm-client

PROCESSES ?= 2
FAULTS ?= 105
SEED ?= 1
# Where the processor multiplies bf16 matrices itself, that takes two thirds of the time of fp32.
PRECISION ?= $(if $(shell grep -m 1 -E 'avx512_bf16|amx_bf16' /proc/cpuinfo),bf16,fp32)
RUN ?= runs/quickstart
STUDENT := $(RUN)-student
PRUNED := $(RUN)-pruned
RECOVERED := $(RUN)-recovered
EDGE := $(RUN)-edge
CORPORA ?= corpora/quickstart
ifdef CORPUS
SOURCE := input="$(CORPUS)"
STEPS ?= 9000
STUDENT_STEPS ?= 2000
RECOVERY_STEPS ?= 1000
EVERY := train.report_every=100 train.evaluate_every=1000
else
SOURCE :=
STEPS ?= 600
STUDENT_STEPS ?= 300
RECOVERY_STEPS ?= 150
endif
# Text and vocabulary of the benchmarks: those of the tests' data, beside the project.
BENCH_TEXT ?= ../shared/data/text/wiki_train.txt
BENCH_VOCABULARY ?= ../shared/data/vocab.txt
BENCH_VALID ?= ../shared/data/text/wiki_valid.txt
TASKS ?= ../shared/data/tasks
# A trained model of LERT-small's shape, for what depends on weights; without it they are random.
SMALL ?=
ifdef VALID
HELD_OUT := held_out=0
EVALUATED := corpus_valid="$(CORPORA)-valid"
endif

TRAIN = $(BIN)/deepspeed --log_level warning --num_gpus $(PROCESSES) --module lert_ds
TEXT = corpus='["$(CORPORA)", "$(CORPORA)-annotated"]' $(EVALUATED)
ON = $(TEXT) $(EVERY) \
	deepspeed=ds_configs/cpu_$(PRECISION).json overwrite=true

.PHONY: quickstart test test-slow test-tf check setup chaos bench bench-bert bench-gpu bench-tasks host-tools clean

setup: $(READY)

$(READY): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	$(PYTHON) -m venv $(VENV)
	# torch first and exactly: any looser demand brings gigabytes of CUDA to a machine without it.
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt setuptools wheel ninja
	$(BIN)/pip install --quiet -c constraints.txt -e '.[ltp,tracking,distill,prune,export,dev]'
	# textpruner's own requirements cannot be met on Python 3.10 and later (see pyproject.toml).
	$(BIN)/pip install --quiet --no-deps -c constraints.txt textpruner==1.1.post2
	touch $@

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(READY)
	$(BIN)/pytest -q -n $(PROCESSES) --dist loadfile -m "not slow" $(PYTEST)

# What takes long: launches that fail in every way, several hosts, every layout of a resume.
test-slow: $(READY)
	$(BIN)/pytest -q -n $(PROCESSES) --dist loadfile -m slow $(PYTEST)

# The tests of TensorFlow checkpoints, in an environment of their own: docs/convert.md.
test-tf:
	$(PYTHON) -m venv .venv-tf
	.venv-tf/bin/pip install --quiet -c constraints.txt torch==2.13.0
	.venv-tf/bin/pip install --quiet -c constraints.txt -e '.[tf,export,dev]'
	.venv-tf/bin/pytest -q tests/lert_ds/convert tests/lert_ds/reference

# A hundred faults in trainings, then thirty in `prepare`: about half an hour on two quiet cores.
chaos: $(READY)
	$(BIN)/python tests/chaos/training_chaos.py --faults $(FAULTS) --seed $(SEED) \
		--output benchmarks/results/chaos.json
	$(BIN)/python tests/chaos/prepare_chaos.py --faults 30 --seed $(SEED)

quickstart: $(READY)
	@echo "1/8  raw text → corpus: words, parts of speech, entities"
	$(BIN)/lert-ds prepare prepare-quickstart output="$(CORPORA)" $(SOURCE) $(HELD_OUT) overwrite=true
ifdef VALID
	$(BIN)/lert-ds prepare prepare-quickstart input="$(VALID)" tokenizer="$(CORPORA)" held_out=0 \
		output="$(CORPORA)-valid" overwrite=true
endif
	@echo; echo "2/8  sentences annotated by hand → corpus: dependency relations"
	$(BIN)/lert-ds prepare prepare-quickstart-annotated \
		tokenizer="$(CORPORA)" output="$(CORPORA)-annotated" overwrite=true
	@echo; echo "3/8  pre-training: $(STEPS) steps, $(PROCESSES) processes, ZeRO-2"
	$(TRAIN) pretrain pretrain-quickstart output="$(RUN)" $(ON) train.steps=$(STEPS)
	@echo; echo "4/8  distillation: $(STUDENT_STEPS) steps of a smaller one, with its teacher and without"
	$(TRAIN) distill distill-quickstart teacher="$(RUN)/model" output="$(STUDENT)" $(ON) \
		train.steps=$(STUDENT_STEPS)
	$(TRAIN) distill distill-quickstart teacher="$(RUN)/model" output="$(STUDENT)-alone" $(ON) \
		train.steps=$(STUDENT_STEPS) labels_only=true
	@echo; echo "5/8  pruning of the student: half of its heads and neurons, the words of the text"
	$(BIN)/lert-ds prune prune-quickstart model="$(STUDENT)/model" output="$(PRUNED)" $(TEXT) \
		overwrite=true
	@echo; echo "6/8  recovery: $(RECOVERY_STEPS) steps, the student teaches what is left of it"
	$(TRAIN) recover recover-quickstart model="$(PRUNED)/model" output="$(RECOVERED)" $(ON) \
		train.steps=$(RECOVERY_STEPS)
	@echo; echo "7/8  export: ONNX, fp32 and int8"
	$(BIN)/lert-ds export export-int8 model="$(RECOVERED)/model" output="$(EDGE)" overwrite=true
	@echo; echo "8/8  the curves, a masked sentence, and one table from teacher to int8"
	$(BIN)/lert-ds report "$(RUN)" "$(STUDENT)" "$(STUDENT)-alone" "$(RECOVERED)" \
		--output "$(RUN)/report.html"
	$(BIN)/lert-ds predict "$(RUN)/model" "他在中国的一[MASK]大学工作。" --top-k 3
	$(BIN)/lert-ds predict "$(EDGE)" "他在中国的一[MASK]大学工作。" --top-k 3
	$(BIN)/lert-ds benchmark benchmark-quickstart output="$(RUN)-benchmark" overwrite=true \
		models='["$(RUN)/model", "$(STUDENT)/model", "$(PRUNED)/model", "$(RECOVERED)/model", "$(EDGE)"]' \
		names='["teacher", "student", "pruned", "recovered", "edge"]' \
		corpus_valid="$(or $(if $(VALID),$(CORPORA)-valid),$(CORPORA)/held_out)"
	$(BIN)/lert-ds report "$(RUN)-benchmark"
	@echo; echo "corpus: $(CORPORA)/statistics.md   curves: $(RUN)/report.html"
	@echo "model: $(RUN)/model   for the edge: $(EDGE)   table: $(RUN)-benchmark/report.html"

# Google BERT's script, at a fixed commit, in an environment of its own.
BERT := runs/google-bert
bench-bert: $(READY)
	test -d $(BERT)/code || git clone https://github.com/google-research/bert $(BERT)/code
	git -C $(BERT)/code checkout --quiet eedf5716ce1268e56f0a50264a88cafad334ac61
	test -d $(BERT)/venv || python3 -m venv $(BERT)/venv
	$(BERT)/venv/bin/pip install --quiet tensorflow-cpu==2.21.0 six==1.17.0
	$(BIN)/python benchmarks/preparing_beside_bert.py --text "$(BENCH_TEXT)" \
		--vocabulary "$(BENCH_VOCABULARY)" --bert $(BERT)/code \
		--bert-python $(BERT)/venv/bin/python --output benchmarks/results/preparing-bert.json

bench: $(READY)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/lert-ds prepare prepare-quickstart input="$(BENCH_TEXT)" tokenizer="$(BENCH_VOCABULARY)" \
		held_out=0 max_length=512 output=corpora/bench overwrite=true
	$(BIN)/lert-ds prepare prepare-quickstart input="$(BENCH_TEXT)" tokenizer="$(BENCH_VOCABULARY)" \
		held_out=0 max_length=128 output=corpora/bench-128 overwrite=true
	$(BIN)/python benchmarks/pretraining.py --corpus corpora/bench \
		--output benchmarks/results/pretraining.json
	$(BIN)/lert-ds prepare prepare-quickstart input="$(BENCH_TEXT)" tokenizer="$(BENCH_VOCABULARY)" \
		max_length=128 output=corpora/losses overwrite=true
	$(BIN)/python benchmarks/kernel_losses.py --corpus corpora/losses \
		--output benchmarks/results/kernel-losses.json
	$(BIN)/python benchmarks/growth.py --text "$(BENCH_TEXT)" --vocabulary "$(BENCH_VOCABULARY)" \
		--output benchmarks/results/growth.json
	$(BIN)/python benchmarks/preparing.py --text "$(BENCH_TEXT)" \
		--vocabulary "$(BENCH_VOCABULARY)" --output benchmarks/results/preparing.json
	$(BIN)/python benchmarks/loader.py --corpus corpora/bench > benchmarks/results/loader.json
	$(BIN)/python benchmarks/distilling.py --corpus corpora/bench-128 \
		--output benchmarks/results/distilling-128.json
	$(BIN)/python benchmarks/distilling.py --corpus corpora/bench --steps 4 \
		--pair "LERT-base → LERT-small" --output benchmarks/results/distilling-512.json
	$(BIN)/python benchmarks/distilling.py --corpus corpora/bench-128 --kd \
		--pair "LERT-base → LERT-small" --output benchmarks/results/distilling-128-kd.json
	$(BIN)/python benchmarks/teacher_options.py --teacher $(RUN)/model --corpus $(CORPORA) \
		--output benchmarks/results/teacher-options.json
	$(BIN)/python benchmarks/ltp_batches.py --text "$(BENCH_TEXT)" \
		--output benchmarks/results/ltp-batches.json
	$(BIN)/python benchmarks/distilling.py --corpus corpora/bench-128 --parity \
		--output benchmarks/results/distilling-parity.json
	$(BIN)/python benchmarks/textpruner_parity.py --model $(RUN)/model --corpus $(CORPORA)/held_out \
		--output benchmarks/results/textpruner-parity.json
	$(BIN)/python benchmarks/pruning.py scores --model $(RUN)/model --corpus $(CORPORA) \
		--corpus-valid $(CORPORA)/held_out --output benchmarks/results/pruning-scores.json
	$(BIN)/python benchmarks/pruning.py curve --model $(STUDENT)/model --corpus $(CORPORA) \
		--corpus-valid $(CORPORA)/held_out --output benchmarks/results/pruning-curve.json
	$(BIN)/python benchmarks/pruning.py cost --model $(or $(SMALL),$(RUN)/model) \
		--corpus $(CORPORA) --corpus-valid $(CORPORA)/held_out \
		--output benchmarks/results/pruning-cost.json
	$(BIN)/python benchmarks/edge.py --text "$(BENCH_TEXT)" --valid "$(BENCH_VALID)" \
		$(if $(SMALL),--model "$(SMALL)",--vocabulary "$(BENCH_VOCABULARY)") \
		--output benchmarks/results/edge.json

# Pre-training on one GPU, kernels and peers side by side: about a quarter of an hour.
bench-gpu:
	$(PYTHON) benchmarks/gpu.py --peers --output benchmarks/results/gpu.json

# Scores on tasks: TASKS has a folder a task (docs/tasks.md).
bench-tasks: $(READY)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/ablation.py --text "$(dir $(BENCH_TEXT))" --tasks "$(TASKS)" \
		--work runs/ablation --output benchmarks/results/ablation.json
	$(BIN)/python benchmarks/finetuning.py speed --tasks "$(TASKS)" \
		--vocabulary "$(BENCH_VOCABULARY)" --output benchmarks/results/finetuning-speed.json
	$(BIN)/python benchmarks/finetuning.py scores --tasks "$(TASKS)" \
		--model runs/ablation/pretrained/pos-ner-1/model \
		--output benchmarks/results/finetuning-scores.json

host-tools:
	@test "$$(id -u)" = 0 || { echo "to be root is needed for: apt-get install $(HOST_TOOLS)"; exit 1; }
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(HOST_TOOLS)

clean:
	rm -rf $(VENV) build *.egg-info
