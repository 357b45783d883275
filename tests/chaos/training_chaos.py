"""Trainings under faults: killed, starved, damaged, and started again; nothing may be lost.

    python tests/chaos/training_chaos.py --faults 105 --seed 1 --output chaos.json

A tiny pre-training, distillation and recovery, two processes each under the `deepspeed` launcher,
run once undisturbed and once with a fault in every start. A line of JSON a fault tells what was
done, when, and what came of it; exit 1 where
- the next start did not go on from the newest whole checkpoint (judged here, by its hashes), or
  passed one over without a word;
- a process lived on, or a failed run exited 0 by itself;
- at the end the losses of any step, the final weights or the stream of samples differ from those of
  the undisturbed run: bit for bit.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
from prepare_chaos import session
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
BATCH = 8
SAVE_EVERY = 7
PACE_SECONDS = 0.02
"""A micro-batch, of which each process takes two a step."""
TIMEOUT_SECONDS = 12.0
END_SECONDS = 90.0
"""In which all processes must be gone: the timeout, and the 30 s that the launcher gives them."""
TIMED = ("time", "tokens_per_second", "mfu", "memory_gib", "data_wait_share")

COMMANDS = ("pretrain", "distill", "recover")
KILLS = {
    "SIGKILL of a rank": ("rank", signal.SIGKILL),
    "SIGKILL of the launcher": ("launcher", signal.SIGKILL),
    "SIGKILL of all processes": ("all", signal.SIGKILL),
    "SIGTERM to a rank": ("rank", signal.SIGTERM),
    "SIGTERM to the launcher": ("launcher", signal.SIGTERM),
    "SIGUSR1 to a rank": ("rank", signal.SIGUSR1),
    "SIGSTOP of a rank": ("rank", signal.SIGSTOP),
}
IN_SAVE = ("SIGKILL of a rank inside a save", "SIGKILL of all processes inside a save")
DAMAGES = (
    "a file of the newest checkpoint cut short",
    "a byte of the newest checkpoint changed",
    "a file of the newest checkpoint lost",
    "the newest checkpoint's manifest lost",
    "latest names nothing",
)
CORPUS = ("a byte of a corpus shard changed", "a corpus shard lost")
FULL = "a full disk"
RARE = ("SIGSTOP of a rank",)
"""Takes a minute each: once in three rounds."""


class LostError(Exception):
    """What must not happen."""


def load(path: Path) -> ModuleType:
    """Return a test module or script of this project; the tests are no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Training:
    """One training: its folder, and how it is started."""

    command: str
    tree: dict[str, Any]
    folder: Path
    starts: int = 0
    expected: int | None = None
    """Step that the next start must go on from; None before the first checkpoint."""
    reasons: list[str] = field(default_factory=list)

    @property
    def output(self) -> Path:
        return Path(self.tree["output"])

    @property
    def checkpoints(self) -> Path:
        return self.output / "checkpoints"

    def start(self) -> "Start":
        """Start the command in a session of its own, as a scheduler does."""
        self.starts += 1
        runs = self.folder / f"runs-{self.starts}.json"
        stream = str(self.folder / f"stream-{self.starts:03d}")
        runs.write_text(
            json.dumps([[self.command, self.tree, {"stream": stream, "pace": PACE_SECONDS}]]),
            "utf-8",
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        launcher = Path(sys.executable).with_name("deepspeed")
        command = [str(launcher), "--num_gpus", "2", "--master_port", port]
        log = self.folder / f"log-{self.starts:03d}"
        process = subprocess.Popen(
            [*command, "tests/launch/training_matrix.py", str(runs)],
            cwd=ROOT,
            env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return Start(process, log, len(self.lines()))

    def lines(self) -> list[dict[str, Any]]:
        """Return metrics.jsonl."""
        with contextlib.suppress(OSError, ValueError):
            text = (self.output / "metrics.jsonl").read_text("utf-8")
            return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]
        return []

    def step(self, start: "Start") -> int:
        """Return the step that a start reported last, 0 where it has reported none."""
        lines = self.lines()[start.lines_before :]
        return max([line["step"] for line in lines if line["kind"] == "train"], default=0)

    def finished(self) -> bool:
        return (self.output / "model/config.json").is_file()

    def whole(self) -> list[int]:
        """Return the steps of the checkpoints whose every file has its hash, the newest first."""
        found = []
        for folder in self.checkpoints.glob("step-*"):
            with contextlib.suppress(OSError, ValueError):
                files = json.loads((folder / "manifest.json").read_text())["files"]
                if all(
                    hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]
                    for name, entry in files.items()
                ):
                    found.append(int(folder.name.removeprefix("step-")))
        return sorted(found, reverse=True)


@dataclass
class Start:
    """A training that was started."""

    process: subprocess.Popen[bytes]
    log: Path
    lines_before: int

    def ranks(self) -> list[psutil.Process]:
        """Return the processes that train."""
        found = {}
        for process in session(self.process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                words, parent = process.cmdline(), process.parent()
                rank = next((w for w in words if w.startswith("--local_rank=")), None)
                if rank and parent is not None and rank not in parent.cmdline():
                    found[rank] = process
        return [found[rank] for rank in sorted(found)]

    def launcher(self) -> psutil.Process | None:
        """Return DeepSpeed's launcher on this host, the parent of the ranks."""
        ranks = self.ranks()
        return ranks[0].parent() if ranks else None

    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")


def wait(
    start: Start, reached: Callable[[], bool], seconds: float = 240, poll: float = 0.02
) -> bool:
    """Wait until something is reached; False where the training ended before."""
    end = time.monotonic() + seconds
    while not reached():
        if start.process.poll() is not None:
            return False
        if time.monotonic() > end:
            raise LostError(f"it did not move: {start.said()[-800:]}")
        time.sleep(poll)
    return True


def all_gone(start: Start) -> float:
    """Wait until every process of a start has ended; return how long it took."""
    began = time.monotonic()
    while time.monotonic() < began + END_SECONDS:
        start.process.poll()
        alive = [p for p in session(start.process.pid) if p.is_running()]
        alive = [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
        if not alive:
            return time.monotonic() - began
        time.sleep(0.1)
    told = [" ".join(p.cmdline()[:5]) for p in alive]
    for process in alive:
        process.kill()
    raise LostError(f"lived on for {END_SECONDS:g} s: {told}; {start.said()[-500:]}")


# ------------------------------------------------------------------------------- one fault


def check_start(training: Training, start: Start) -> None:
    """See that a start went on from the newest whole checkpoint and told what it passed over."""
    told = [line for line in training.lines()[start.lines_before :] if line["kind"] == "event"]
    messages = [line["message"] for line in told]
    resumed = [m for m in messages if m.startswith("resumed from")]
    wanted = [f"resumed from step-{training.expected}"] if training.expected else []
    if resumed != wanted:
        raise LostError(f"{resumed} where {wanted} was due: {start.said()[-800:]}")
    for reason in training.reasons:
        if not any(m.startswith(f"passed over {reason}") for m in messages):
            raise LostError(f"silent about {reason}: {messages}")
    training.reasons = []


def send(start: Start, whom: str, number: signal.Signals, generator: random.Random) -> bool:
    """Send a signal; False where nobody was there to take it."""
    with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
        if whom == "all":
            os.killpg(start.process.pid, number)
            return True
        ranks = start.ranks()
        if not ranks:
            return False
        target = generator.choice(ranks) if whom == "rank" else ranks[0].parent()
        target.send_signal(number)
        return True
    return False


def spoil(training: Training, kind: str, generator: random.Random) -> str:
    """Damage the newest checkpoint of a run that has ended; return what was done."""
    whole = training.whole()
    if kind == "latest names nothing":
        (training.checkpoints / "latest").write_text("step-999999")
        return "latest"
    if len(whole) < 2:
        return ""
    folder = training.checkpoints / f"step-{whole[0]}"
    path = folder / "manifest.json"
    if "manifest" not in kind:
        path = generator.choice(sorted(p for p in folder.iterdir() if p.name != "manifest.json"))
    content = bytearray(path.read_bytes())
    if "lost" in kind:
        path.unlink()
    elif "changed" in kind:
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
    else:
        path.write_bytes(content[: generator.randrange(len(content))])
    training.reasons.append(f"step-{whole[0]}")
    return f"{path.name} of step-{whole[0]}"


def fill(training: Training, start: Start) -> str:
    """Fill the disk until a save is refused, then make room; the training must go on."""
    filler = training.output / "filler"
    before = len(training.lines())
    room = shutil.disk_usage(training.output).free
    filler.write_bytes(b"\0" * max(room - 40_000, 1))

    def refused() -> bool:
        return "could not be written" in start.said() or "wait for room" in start.said()

    try:
        if not wait(start, refused, 60):
            return "ended before"
    finally:
        filler.unlink()
    goal = training.step(start) + 3 * SAVE_EVERY
    if not wait(start, lambda: training.step(start) >= goal or training.finished(), 60):
        return "a save was refused; finished"
    told = training.lines()[before:]
    if not any("could not be written" in line.get("message", "") for line in told):
        raise LostError(f"a full disk that nobody told of: {told[-3:]}")
    return "a save was refused and told, training went on and saved again"


def without_corpus(training: Training, fault: str, generator: random.Random) -> tuple[str, str]:
    """Start on a corpus that is damaged, then mend it: the start must refuse it by name."""
    path = generator.choice(sorted(Path(training.tree["corpus"]).glob("shards/*.npy")))
    content = path.read_bytes()
    if "lost" in fault:
        path.unlink()
    else:
        place = generator.randrange(len(content))
        flipped = content[place] ^ 1 << generator.randrange(8)
        path.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
    try:
        start = training.start()
        code = start.process.wait(240)
        all_gone(start)
    finally:
        path.write_bytes(content)
    if code != 2 or path.name not in start.said() or "Traceback" in start.said():
        raise LostError(f"exit {code} on a damaged corpus: {start.said()[-1500:]}")
    return "before the start", f"refused, exit 2, {path.name} named; goes on when it is mended"


def one(training: Training, fault: str, generator: random.Random) -> tuple[str, str]:
    """Start the training, bring about a fault; return its moment and its outcome."""
    if fault in CORPUS:
        return without_corpus(training, fault, generator)
    start = training.start()
    first = (training.expected or 0) + generator.randint(1, 18)
    if fault in DAMAGES:  # two at least: one to spoil, and one to go on from
        first = max(first, 3 * SAVE_EVERY)
    alive = wait(start, lambda: training.step(start) >= first or training.finished())
    check_start(training, start)
    outcome, whom, number = "", "all", signal.SIGKILL
    if fault == FULL:
        outcome = fill(training, start) if alive else "finished first"
    elif fault in IN_SAVE:
        whom = "rank" if "a rank" in fault else "all"
        parts = lambda: any(training.checkpoints.glob(".step-*"))  # noqa: E731
        alive = alive and wait(start, parts, poll=0.0)
        time.sleep(generator.choice((0.0, 0.001, 0.003, 0.01)))
    elif fault in KILLS:
        whom, number = KILLS[fault]
    step = training.step(start)
    sent = alive and send(start, whom, number, generator)
    seconds = all_gone(start)
    code = start.process.wait(END_SECONDS)
    if training.finished():
        return f"step {step}", f"finished{f', {outcome}' if outcome else ''}"
    if not sent:
        raise LostError(f"ended by itself, exit {code}: {start.said()[-1500:]}")
    outcome = _judge(fault, code, start.said(), outcome)
    if fault in DAMAGES:
        spoilt = spoil(training, fault, generator)
        outcome += f"; spoilt {spoilt}" if spoilt else "; too few checkpoints to spoil one"
    training.expected = next(iter(training.whole()), None)
    return f"step {step}", f"{outcome}, all ended in {seconds:.0f} s"


def _judge(fault: str, code: int, said: str, outcome: str) -> str:
    """Return what came of a fault, in words; refuse what was silent."""
    asked = fault in ("SIGTERM to a rank", "SIGUSR1 to a rank")
    stopped = "saved and stopped by" in said
    if asked and (code != 0 or not stopped):
        raise LostError(f"asked to stop: exit {code}: {said[-1500:]}")
    if fault == "SIGTERM to the launcher" and not stopped:
        raise LostError(f"it did not save: {said[-1500:]}")
    if fault == "SIGSTOP of a rank" and (code == 0 or "not heard of for" not in said):
        raise LostError(f"a hang without a word: exit {code}: {said[-1500:]}")
    if fault == "SIGKILL of a rank" and code == 0:
        raise LostError(f"a dead rank and exit 0: {said[-1500:]}")
    how = "saved and stopped" if stopped else "ended"
    return f"{outcome + ', ' if outcome else ''}{how}, exit {code}"


# ------------------------------------------------------------------------------ all of them


def results(training: Training) -> dict[tuple[str, int], dict[str, Any]]:
    """Return what was reported last for each step, less what the clock decides."""
    found = {}
    for line in training.lines():
        if line["kind"] != "event":
            kept = {key: value for key, value in line.items() if key not in TIMED}
            found[line["kind"], line["step"]] = kept
    return found


def check_end(training: Training, reference: Training, steps: int) -> None:
    """See that a disturbed training ended as the undisturbed one did."""
    expected, found = results(reference), results(training)
    wrong = [key for key, value in expected.items() if found.get(key) != value]
    if wrong or found.keys() != expected.keys():
        raise LostError(f"{len(wrong)} reports differ, the first {wrong[:1]}")
    first, second = (load_file(t.output / "model/model.safetensors") for t in (reference, training))
    if first.keys() != second.keys() or any((w != second[k]).any() for k, w in first.items()):
        raise LostError("the final weights differ")
    taken: set[int] = set()
    for number in range(1, training.starts + 1):
        mine: list[int] = []
        for path in training.folder.glob(f"stream-{number:03d}-*"):
            for line in path.read_text().splitlines():
                begin, count = map(int, line.split())
                mine += range(begin, begin + count)
        if sorted(mine) != sorted(set(mine)):
            raise LostError(f"start {number} took a sample twice")
        taken.update(mine)
    if taken != set(range(steps * BATCH)):
        missing = sorted(set(range(steps * BATCH)) - taken)
        raise LostError(f"samples of the stream differ: {len(missing)} missing {missing[:5]}")


def faults_of(count: int, generator: random.Random) -> list[str]:
    """Return the faults to bring about: each kind once before any comes twice."""
    kinds = [*KILLS, *IN_SAVE, *IN_SAVE, *DAMAGES, *CORPUS, FULL]
    chosen: list[str] = []
    rounds = 0
    while len(chosen) < count:
        generator.shuffle(kinds)
        chosen += [kind for kind in kinds if kind not in RARE or rounds % 3 == 0]
        rounds += 1
    return chosen[:count]


def trainings(folder: Path, steps: int) -> dict[str, dict[str, Any]]:
    """Return the configurations of the three trainings, by command, less their output."""
    import torch

    from lert_ds import model_dir
    from lert_ds.configuration_lert import LertConfig
    from lert_ds.labels import LTP_TAGS
    from lert_ds.modeling_lert import LertForPreTraining

    write = load(ROOT / "tests/conftest.py").write_tiny_corpus
    corpus = write(folder / "corpus", instances=64, seed=0)
    tags = {task: list(names) for task, names in LTP_TAGS.items()}
    for name, size in (("teacher", 64), ("pruned", 32)):
        torch.manual_seed(0)
        shape = LertConfig(
            vocab_size=45, num_hidden_layers=2, hidden_size=32, num_attention_heads=2,
            intermediate_size=size, max_position_embeddings=32, tag_sets=tags,
        )  # fmt: skip
        model_dir.save(LertForPreTraining(shape), corpus, folder / name)
    train = {
        "steps": steps, "batch_size": BATCH, "micro_batch_size": 2, "learning_rate": 1e-3,
        "report_every": 1, "evaluate_every": 0, "save_every": SAVE_EVERY, "keep_checkpoints": 3,
        "data_workers": 1, "timeout_seconds": TIMEOUT_SECONDS,
    }  # fmt: skip
    shape = {"layers": 2, "hidden_size": 32, "heads": 2, "intermediate_size": 32, "positions": 32}
    match = {"feature": "hidden", "loss": "hidden_mse", "layers": "uniform"}
    common = {"schedule": {"warmup_steps": 2}, "train": train}
    taught = common | {
        "teacher": str(folder / "teacher"),
        "teacher_precision": "fp32",
        "distillation": {"intermediate_matches": [match]},
    }
    trees: dict[str, dict[str, Any]] = {
        "pretrain": common | {"architecture": shape, "deepspeed": "ds_configs/zero2_bf16.json"},
        "distill": taught | {"student": shape, "deepspeed": "ds_configs/zero1_fp32.json"},
        "recover": taught
        | {"model": str(folder / "pruned"), "deepspeed": "ds_configs/zero3_bf16.json"},
    }
    for command, tree in trees.items():  # each its own: they are damaged
        tree["corpus"] = str(shutil.copytree(corpus, folder / f"corpus-{command}"))
    return trees


def disturb(
    command: str,
    tree: dict[str, Any],
    folder: Path,
    faults: Sequence[str],
    steps: int,
    generator: random.Random,
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """Run one training undisturbed, then with a fault a start, and compare the two."""

    def training_in(name: str) -> Training:
        output = folder / name / "run"
        output.mkdir(parents=True)
        return Training(command, tree | {"output": str(output)}, folder / name)

    reference, training = training_in("whole"), training_in("disturbed")
    start = reference.start()
    if start.process.wait() or not reference.finished():
        tell({"training": command, "fault": "none", "outcome": start.said()[-1500:], "lost": True})
        return
    small = Disk(training.output) if FULL in faults else contextlib.nullcontext()
    line: dict[str, Any] = {}
    with small:
        try:
            for fault in faults:
                line = {"training": command, "fault": fault, "moment": "", "lost": False}
                line["moment"], line["outcome"] = one(training, fault, generator)
                if training.finished():
                    raise LostError(f"{steps} steps are too few for {len(faults)} faults")
                tell(line)
            start = training.start()
            start.process.wait()
            line = {
                "training": command,
                "fault": "none: the last start",
                "moment": "",
                "lost": False,
            }
            check_start(training, start)
            all_gone(start)
            check_end(training, reference, steps)
        except LostError as error:
            tell(line | {"outcome": str(error), "lost": True})
            return
        same = f"{training.starts} starts: losses of all {steps} steps, weights and samples equal"
        tell(line | {"outcome": same})


class Disk:
    """A small disk of its own at a folder, where this user may mount one."""

    def __init__(self, place: Path, megabytes: int = 24) -> None:
        self._place, self._megabytes = place, megabytes

    def __enter__(self) -> None:
        size = f"size={self._megabytes}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(self._place)], check=True)

    def __exit__(self, *_: object) -> None:
        kept = self._place.with_name("kept")
        shutil.copytree(self._place, kept)
        subprocess.run(["umount", "-l", str(self._place)], check=False)


def run(
    faults: int,
    seed: int,
    folder: Path,
    tell: Callable[[dict[str, Any]], None],
    only: Sequence[str] = COMMANDS,
) -> list[dict[str, Any]]:
    """Bring about `faults` faults, a third in each training, of those in `only`.

    Return what was told of each.
    """
    told: list[dict[str, Any]] = []
    lock = threading.Lock()

    def both(line: dict[str, Any]) -> None:
        with lock:
            told.append(line)
            tell(line)

    share = -(-faults // 3)
    steps = 60 + 24 * share

    def through(item: tuple[str, dict[str, Any]]) -> None:
        command, tree = item
        generator = random.Random(f"{seed} {command}")
        chosen = faults_of(share, generator)
        if os.geteuid() != 0:
            both({"training": command, "fault": FULL, "outcome": "skipped: needs root to mount"})
            chosen = [fault for fault in chosen if fault != FULL]
        disturb(command, tree, folder / command, chosen, steps, generator, both)

    # At once: much of a fault is waiting until a launcher or a timeout is through with it.
    with ThreadPoolExecutor(3) as pool:
        chosen = [item for item in trainings(folder, steps).items() if item[0] in only]
        list(pool.map(through, chosen))
    return told


def table(told: Sequence[Mapping[str, Any]]) -> str:
    """Return what was told as Markdown: a row a fault, how often, and what came of it."""
    outcomes: dict[str, Counter[str]] = {}
    for line in told:
        text = re.sub(r", all ended in \d+ s", "", line["outcome"])
        text = re.sub(r"spoilt .*", "spoilt", re.sub(r"\S+\.npy", "the shard", text))
        text = "LOST: " + text if line.get("lost") else text
        outcomes.setdefault(line["fault"], Counter())[text] += 1
    rows = ["| fault | times | what came of it |", "|---|---|---|"]
    for fault, counts in sorted(outcomes.items()):
        what = "; ".join(
            text if len(counts) == 1 else f"{text} ({n})" for text, n in counts.items()
        )
        rows.append(f"| {fault} | {counts.total()} | {what} |")
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run as the arguments say, and exit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=105)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=COMMANDS, metavar="COMMAND")
    parser.add_argument("--output", type=Path, help="write all lines to this JSON file too")
    parser.add_argument("--keep", action="store_true", help="keep the folders, to look at")
    arguments = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="training-chaos-"))

    def tell(line: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    try:
        told = run(arguments.faults, arguments.seed, folder, tell, arguments.only)
    finally:
        if arguments.keep:
            sys.stdout.write(f"{folder}\n")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    sys.stdout.write(f"\n{table(told)}\n")
    sys.exit(any(line.get("lost") for line in told))


if __name__ == "__main__":
    main()
