"""Pre-segmented text to masked instances: `lert-ds prepare`, and Google BERT's own script.

    python benchmarks/preparing_beside_bert.py --text TEXT.txt --vocabulary vocab.txt
        --bert FOLDER --bert-python ENVIRONMENT/bin/python --output benchmarks/results/…json

FOLDER is a checkout of github.com/google-research/bert at COMMIT, ENVIRONMENT one with
`pip install tensorflow-cpu==2.21.0 six==1.17.0`. Both get the same sentences, cut into words by
jieba beforehand, which nobody is charged for, and make instances of 128 tokens with 18 predictions
of whole words, in one process on one core:

    theirs  reads lines of words, tokenises, masks all `--masks` times (its dupe_factor, by default
            10), writes TFRecords; its whole words are of WordPieces: a Chinese character each
    ours    reads lines of words, checks, tokenises, aligns words and tokens, packs, writes shards
            with their hashes; then masks every instance in as many epochs, which a training does
            on the fly, into batches

They take turns, and what counts is the processor's time of whole processes, with their imports and
without. `prepare` alone is told too: what ours takes until a training can begin.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lert_ds.machine import description

ROOT = Path(__file__).parents[1]
COMMIT = "eedf5716ce1268e56f0a50264a88cafad334ac61"
LENGTH, PREDICTIONS = 128, 18
BATCH = 32
"""Instances of 128 tokens that are masked together: a usual micro-batch."""
Run = dict[str, Any]
OURS, THEIRS = "ours", "create_pretraining_data.py"


def cut_words(text: Path, megabytes: float, folder: Path) -> dict[str, int]:
    """Write the sentences of `text`, in words, for both sides, and return what there is of them.

    A line is a document; the text is repeated until there are `megabytes` of it.
    """
    import jieba

    from lert_ds.corpus.text import is_blank, split_sentences

    jieba.setLogLevel(60)
    documents = [
        [[word for word in jieba.cut(s) if not is_blank(word)] for s in split_sentences(line, 510)]
        for line in text.read_text("utf-8").splitlines()
        if line.strip()
    ]
    documents = [[s for s in sentences if s] for sentences in documents]
    found = {"documents": 0, "sentences": 0, "characters": 0, "bytes": 0}
    with (
        (folder / "words.jsonl").open("w", encoding="utf-8") as ours,
        (folder / "words.txt").open("w", encoding="utf-8") as theirs,
    ):
        while found["bytes"] < megabytes * 1e6:
            for sentences in documents:
                for words in sentences:
                    record = {"words": words, "doc": found["documents"]}
                    ours.write(json.dumps(record, ensure_ascii=False) + "\n")
                    theirs.write(" ".join(words) + "\n")
                    found["characters"] += sum(map(len, words))
                    found["bytes"] += sum(len(word.encode()) for word in words)
                theirs.write("\n")
                found["documents"] += 1
                found["sentences"] += len(sentences)
    return found


def run_ours(folder: Path, vocabulary: Path, masks: int) -> dict[str, float]:
    """Prepare and mask, in this process."""
    from lert_ds import cli
    from lert_ds.data.loader import training_batches
    from lert_ds.data.masking import MaskingConfig
    from lert_ds.data.sampler import MicroBatches
    from lert_ds.data.shards import Corpus

    started = time.process_time()
    config = folder / "prepare.toml"
    config.write_text(
        f'input = "{folder / "words.jsonl"}"\noutput = "{folder / "corpus"}"\n'
        f'tokenizer = "{vocabulary}"\nmax_length = {LENGTH}\noverwrite = true\n'
        'annotator.kind = "precomputed"\nexecutor.workers = 1\n',
        "utf-8",
    )
    cli.main(["prepare", str(config)])
    prepared = time.process_time()
    corpus = Corpus([folder / "corpus"])
    batches = training_batches(
        corpus,
        MaskingConfig(max_predictions=PREDICTIONS),
        MicroBatches(len(corpus), 0, BATCH, BATCH),
    )
    masked = sum(len(next(batches)[1].labels) for _ in range(-(-masks * len(corpus) // BATCH)))
    ended = time.process_time()
    return {
        "all": ended, "until_main": started, "prepare": prepared - started,
        "mask": ended - prepared, "instances": len(corpus), "masked": masked,
    }  # fmt: skip


def run_part(command: list[str]) -> dict[str, float]:
    """Run a process on the first core with one thread, and return the JSON of its last line."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
        "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    done = subprocess.run(
        ["taskset", "--cpu-list", "0", *command],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _all(run: Run) -> float:
    return float(run["all"])


def _work(run: Run) -> float:
    return float(run["all"] - run["until_main"])


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the seconds of both sides and their ratios."""
    vocabulary = options.vocabulary.resolve()
    commands = {
        OURS: [
            sys.executable, __file__, "--part", str(folder),
            "--vocabulary", str(vocabulary),
            "--masks", str(options.masks),
        ],
        THEIRS: [
            str(options.bert_python.absolute()), str(ROOT / "benchmarks/bert_pretraining_data.py"),
            str(options.bert.resolve()), f"--input_file={folder / 'words.txt'}",
            f"--output_file={folder / 'out.tfrecord'}", f"--vocab_file={vocabulary}",
            f"--max_seq_length={LENGTH}", f"--max_predictions_per_seq={PREDICTIONS}",
            "--do_whole_word_mask", f"--dupe_factor={options.masks}",
        ],
    }  # fmt: skip
    taken: dict[str, list[dict[str, float]]] = {side: [] for side in commands}
    for turn in range(options.turns):
        for side, command in commands.items():
            taken[side].append(run_part(command))
            print(f"{turn + 1}/{options.turns}, {side}: {taken[side][-1]}", file=sys.stderr)

    def ratios(of_theirs: Callable[[Run], float], of_ours: Callable[[Run], float]) -> Run:
        values = [
            of_theirs(theirs) / of_ours(ours)
            for ours, theirs in zip(taken[OURS], taken[THEIRS], strict=True)
        ]
        return {
            "ratio_median": round(statistics.median(values), 2),
            "ratio_range": [round(min(values), 2), round(max(values), 2)],
        }

    return {
        **{
            f"{side}, processor seconds": {
                key: round(statistics.median(one[key] for one in runs), 2) for key in runs[0]
            }
            for side, runs in taken.items()
        },
        f"{THEIRS} / {OURS}, whole processes": ratios(_all, _all),
        f"{THEIRS} / {OURS}, without imports": ratios(_work, _work),
        f"{THEIRS} / {OURS}, without imports, prepare alone": ratios(
            _work, lambda run: run["prepare"]
        ),
        "masks": options.masks,
        "turns": options.turns,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="a UTF-8 .txt, a document a line")
    parser.add_argument("--vocabulary", type=Path, required=True, help="a vocab.txt")
    parser.add_argument("--bert", type=Path, help="the folder of Google's script")
    parser.add_argument("--bert-python", type=Path, help="python of an environment with TensorFlow")
    parser.add_argument("--megabytes", type=float, default=12)
    parser.add_argument("--masks", type=int, default=10, help="times that everything is masked")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(run_ours(options.part, options.vocabulary, options.masks)))
        return
    for name in ("text", "bert", "bert_python"):
        if getattr(options, name) is None:
            parser.error(f"--{name.replace('_', '-')} is missing")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = cut_words(options.text, options.megabytes, folder)
        result = {
            "command": " ".join(["python", "benchmarks/preparing_beside_bert.py", *sys.argv[1:]]),
            "machine": description(("tokenizers", "datatrove")),
            "peer": f"github.com/google-research/bert at {COMMIT}, tensorflow-cpu 2.21.0",
            "text": text,
            **measure(options, folder),
        }
    printed = json.dumps(result, indent=2, ensure_ascii=False)
    print(printed)
    if options.output:
        options.output.write_text(printed + "\n", "utf-8")


if __name__ == "__main__":
    main()
