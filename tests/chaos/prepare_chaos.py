"""`lert-ds prepare` under faults: killed, starved, damaged, and started again; nothing may be lost.

    python tests/chaos/prepare_chaos.py --faults 30 --seed 1

prints a line of JSON a fault, {"fault": …, "moment": …, "outcome": …, "lost": false}, and exits 1
where after any of them
- the same command, started again, made other bytes than an undisturbed run, or none;
- something half-written stood in the corpus' place, or an old corpus went before the new came;
- a process lived on, or a part of a file was left beside the finished corpus;
- the user was told a traceback, or nothing.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
TIMED = {"statistics.md", "statistics.json", "summary.json"}
"""Files of a corpus that tell how long it took."""
HAN = "我爱北京天安门今气很好他来了人在山水春夏秋冬一二三的是不有这个上们大为和国地到"
END_SECONDS = 20
"""In which a run that was told to end, and all of its processes, must be gone."""
STAGES = (
    *("start", "pieces", "learn", "tags", "rank", "sign", "compare"),
    *("annotate", "divide", "assemble", "finish"),
)
SIGNALS: dict[str, tuple[str, signal.Signals]] = {
    "SIGKILL of the main process": ("main", signal.SIGKILL),
    "SIGTERM to the main process": ("main", signal.SIGTERM),
    "SIGKILL of a worker": ("worker", signal.SIGKILL),
    "SIGTERM to a worker": ("worker", signal.SIGTERM),
    "SIGKILL of all processes": ("all", signal.SIGKILL),
    "SIGTERM to all processes": ("all", signal.SIGTERM),
}
DAMAGES = ("a file cut short", "a byte changed", "a file lost", "the plan cut short")
FULL, READ_ONLY = "a full disk", "a disk that cannot be written to"


class LostError(Exception):
    """What must not happen."""


@dataclass
class Reference:
    """What an undisturbed run makes, and how long each of its stages takes."""

    digest: dict[str, str]
    seconds: dict[str, float]
    bytes: int


@dataclass
class Case:
    """One fault: a folder of its own with the input, and the command on it."""

    folder: Path
    source: Path
    preset: Path
    overwrite: bool = False
    log: list[str] = field(default_factory=list)

    @property
    def output(self) -> Path:
        return self.folder / "corpus"

    @property
    def work(self) -> Path:
        return self.folder / "corpus.work"

    def start(self, *keys: str) -> "subprocess.Popen[str]":
        """Start the command in a session of its own, as a scheduler does."""
        command = [sys.executable, "-m", "lert_ds", "prepare", str(self.preset)]
        command += [f"input={self.source}", f"output={self.output}", *keys]
        command += ["overwrite=true"] if self.overwrite else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *keys: str) -> tuple[int, str]:
        """Run the command to its end; its exit code, and what it said."""
        process = self.start(*keys)
        said, _ = process.communicate(timeout=300)
        return process.returncode, said


def write_input(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write annotated sentences, some of them twice, and the configuration of ten stages."""
    generator = random.Random(seed)
    lines = []
    for number in range(800):
        words = [
            "".join(generator.choices(HAN, k=generator.choice((1, 2, 2, 3))))
            for _ in range(generator.randint(3, 18))
        ]
        tags = {"pos": [generator.choice("nvadp") for _ in words], "ner": None, "dep": None}
        lines.append(json.dumps({"words": words, **tags, "doc": number // 5}, ensure_ascii=False))
        if number % 7 == 0:
            lines.append(lines[-1])
    source = folder / "input.jsonl"
    source.write_text("\n".join(lines) + "\n", "utf-8")
    preset = folder / "prepare.toml"
    preset.write_text(
        'tokenizer = "train"\nvocabulary_size = 300\nmax_length = 32\nheld_out = 0.2\n'
        'deduplicate = "exact"\nsplit_megabytes = 0.03\nkeep_annotations = true\n'
        '[annotator]\nkind = "precomputed"\ntag_sets = "collect"\n[executor]\nworkers = 3\n',
        "utf-8",
    )
    return source, preset


def digest(folder: Path) -> dict[str, str]:
    """Return the hash of every file that must be the same bytes; the others must be there."""
    return {
        str(path.relative_to(folder)): "timed"
        if path.name in TIMED
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def measure(case: Case) -> Reference:
    """Run undisturbed, and note when each stage begins."""
    began: dict[str, float] = {"start": time.monotonic()}
    process = case.start()
    while process.poll() is None:
        for stage in STAGES[1:]:
            if stage not in began and (case.work / "logs" / stage).is_dir():
                began[stage] = time.monotonic()
        time.sleep(0.002)
    said = process.stdout.read() if process.stdout else ""
    if process.returncode or set(began) != set(STAGES):
        raise LostError(f"the undisturbed run failed, or a stage was not seen: {said[-500:]}")
    times = [began[stage] for stage in STAGES] + [time.monotonic()]
    seconds = {s: times[n + 1] - times[n] for n, s in enumerate(STAGES)}
    size = sum(path.stat().st_size for path in case.output.rglob("*") if path.is_file())
    return Reference(digest(case.output), seconds, size)


# ------------------------------------------------------------------------------- one fault


def disturb(case: Case, whom: str, number: signal.Signals, stage: str, delay: float) -> str:
    """Start the command, send a signal at a moment, see that all ends; return what came of it."""
    process = case.start()
    reached = _wait_for(process, case, stage, delay)
    sent = reached and _send(psutil.Process(process.pid), whom, number)
    try:
        said, _ = process.communicate(timeout=END_SECONDS if sent and whom != "worker" else 120)
    except subprocess.TimeoutExpired:
        _kill(session(process.pid))
        raise LostError("it did not end") from None
    _, alive = psutil.wait_procs(session(process.pid), END_SECONDS / 2)
    if alive:
        names = [" ".join(p.cmdline()[:4]) for p in alive if p.is_running()]
        _kill(alive)
        raise LostError(f"processes lived on: {names}")
    code = process.returncode
    if "Traceback" in said:
        raise LostError(f"a traceback: {said[-800:]}")
    if code == 0:
        return "it finished first" if not sent or whom != "worker" else "it finished"
    if number == signal.SIGKILL and whom != "worker":
        return "killed"
    if code not in ({2} if whom == "worker" else {143, -15}):
        raise LostError(f"exit {code}: {said[-500:]}")
    last = said.strip().splitlines()[-1:] or [""]
    if code == 2 and "a worker was killed" not in last[0]:
        raise LostError(f"exit {code}, said {last}")
    if code == 143 and "ended by SIGTERM" not in last[0]:
        raise LostError(f"exit {code}, said {last}")
    # -15: before Python had started, when nothing of ours ran yet.
    return "ended at once" if code == -15 else f"exit {code}, one line"


def _wait_for(process: "subprocess.Popen[str]", case: Case, stage: str, delay: float) -> bool:
    """Wait for a stage, or for a file half-written in it; return whether the run still goes on."""
    place = case.work / "logs" / stage
    while process.poll() is None and stage != "start" and not place.is_dir():
        time.sleep(0.001)
    if delay >= 0:
        time.sleep(delay)
    else:
        limit = time.monotonic() + 2
        while process.poll() is None and time.monotonic() < limit:
            with contextlib.suppress(OSError):
                if any(case.work.rglob(".*.part")):
                    break
    return process.poll() is None


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(process.children(recursive=True))
    return []


def session(number: int) -> list[psutil.Process]:
    """Return the processes of a session: all that a command has started, and they in turn."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == number:
                found.append(process)
    return found


def _send(main: psutil.Process, whom: str, number: signal.Signals) -> bool:
    try:
        if whom == "all":
            os.killpg(main.pid, number)
            return True
        if whom == "main":
            main.send_signal(number)
            return True
        # Workers are children of the fork server, which is a child of the main process.
        workers = [p for child in main.children() for p in _children(child)]
        if not workers:
            return False
        random.choice(workers).send_signal(number)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    return True


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def damage(case: Case, kind: str, generator: random.Random) -> str:
    """Spoil a file of the interrupted run; return which."""
    if kind == "the plan cut short":
        files = [case.work / "plan.json"]
    else:
        files = [p for p in case.work.rglob("*") if p.is_file() and p.stat().st_size]
        # Logs are for people, and marks are datatrove's; of the many records one in four.
        spared = {"logs", "done"} if generator.random() < 0.75 else {"logs"}
        files = [p for p in files if not spared & set(p.relative_to(case.work).parts)]
    files = [path for path in files if path.is_file() and path.stat().st_size]
    if not files:
        return ""
    path = generator.choice(sorted(files))
    content = bytearray(path.read_bytes())
    if kind == "a file lost":
        path.unlink()
    elif kind == "a byte changed":
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
    else:
        path.write_bytes(content[: generator.randrange(len(content))])
    return str(path.relative_to(case.work))


def check_place(case: Case, before: dict[str, str] | None, reference: Reference) -> None:
    """See that the corpus' place holds the old corpus, the new one, or nothing."""
    there = digest(case.output) if case.output.exists() else None
    if there not in (before, reference.digest):
        raise LostError(f"neither the old nor the new corpus: {sorted(there or {})[:5]}")


def check_end(case: Case, code: int, said: str, reference: Reference) -> None:
    """See that the last start of the command leaves an undisturbed run's corpus, and no more."""
    finished = code == 2 and "it holds a finished result" in said
    if code and not finished:
        raise LostError(f"started again, exit {code}: {said[-800:]}")
    if not case.output.is_dir():
        raise LostError("no corpus")
    if (found := digest(case.output)) != reference.digest:
        wrong = [n for n in {*found, *reference.digest} if found.get(n) != reference.digest.get(n)]
        raise LostError(f"other bytes: {sorted(wrong)[:5]}")
    left = sorted(p.name for p in case.folder.iterdir() if p != case.output)
    hidden = sorted(str(p.relative_to(case.output)) for p in case.output.rglob(".*"))
    if left or hidden:
        raise LostError(f"left over: {[*left, *hidden][:5]}")


# ------------------------------------------------------------------------------ all of them


@contextlib.contextmanager
def small_disk(place: Path, megabytes: float) -> Iterator[Callable[[str], None]]:
    """Mount a disk of its own at `place`; give what mounts it anew with other options."""
    place.mkdir()
    size = f"size={int(megabytes * 1e6)}"
    _mount("-t", "tmpfs", "-o", size, "tmpfs", str(place))
    try:
        yield lambda options: _mount("-o", f"remount,{options}", str(place))
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def can_mount(folder: Path) -> bool:
    """Return whether this process may mount a disk."""
    try:
        with small_disk(folder / "probe", 1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        (folder / "probe").rmdir()


def full_disk(case: Case, reference: Reference, generator: random.Random) -> tuple[str, str]:
    """Run on a disk that is too small, then on the same disk, enlarged."""
    megabytes = reference.bytes * generator.uniform(0.05, 2.5) / 1e6
    with small_disk(case.folder, megabytes) as remount:
        code, said = case.run()
        outcome = "it was large enough"
        if code:
            line = said.strip().splitlines()[-1]
            if code != 2 or "Traceback" in said or "No space left" not in line:
                raise LostError(f"exit {code}: {said[-800:]}")
            outcome = "exit 2, one line; went on when it was enlarged"
        check_place(case, None, reference)
        remount("size=100m")
        check_end(case, *case.run(), reference)
    return f"{megabytes:.2f} MB", outcome


def read_only(case: Case, reference: Reference, generator: random.Random) -> tuple[str, str]:
    """Interrupt a run, and start it again where nothing can be written, then where it can."""
    stage = generator.choice(STAGES[1:])
    with small_disk(case.folder, 100) as remount:
        disturb(case, "main", signal.SIGKILL, stage, 0.0)
        remount("ro")
        code, said = case.run()
        finished = (case.output / "manifest.json").exists()
        if code != 2 or "Traceback" in said or len(said.strip().splitlines()) != 1:
            raise LostError(f"exit {code}: {said[-800:]}")
        remount("rw")
        check_end(case, *case.run(), reference)
    return stage, "it had finished" if finished else "exit 2, one line; went on when it could"


def one(
    case: Case, fault: str, old: Path, reference: Reference, generator: random.Random
) -> tuple[str, str]:
    """Bring about one fault; return its moment and its outcome."""
    if fault in (FULL, READ_ONLY):
        return (full_disk if fault == FULL else read_only)(case, reference, generator)
    case.folder.mkdir()
    before = None
    if case.overwrite:
        shutil.copytree(old, case.output)
        before = digest(old)
    whom, number = SIGNALS.get(fault, ("main", signal.SIGKILL))
    stage = generator.choice(STAGES)
    delay = generator.uniform(0, reference.seconds[stage])
    if generator.random() < 0.3:
        delay = -1.0
    moment = f"{stage}, {'a file half-written' if delay < 0 else f'after {delay:.2f} s'}"
    outcome = disturb(case, whom, number, stage, delay)
    check_place(case, before, reference)
    if fault in DAMAGES:
        spoilt = damage(case, fault, generator)
        outcome += f"; {spoilt or 'nothing there to spoil'}"
    check_end(case, *case.run(), reference)
    return moment + (", over an old corpus" if case.overwrite else ""), f"{outcome}; same bytes"


def faults_of(count: int, generator: random.Random) -> list[str]:
    """Return the faults to bring about: each kind once before any comes twice."""
    kinds = [*SIGNALS, *DAMAGES, FULL, READ_ONLY]
    chosen: list[str] = []
    while len(chosen) < count:
        generator.shuffle(kinds)
        chosen += kinds
    return chosen[:count]


def run(
    faults: int, seed: int, folder: Path, tell: Callable[[dict[str, Any]], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Bring about `faults` faults in `folder`; return what `tell` is told of each."""
    generator = random.Random(seed)
    random.seed(seed)
    source, preset = write_input(folder)
    (folder / "reference").mkdir()
    undisturbed = Case(folder / "reference", source, preset)
    reference = measure(undisturbed)
    older = Case(folder / "old", source, preset)
    mounts = can_mount(folder)
    told = []
    for number, fault in enumerate(faults_of(faults, generator)):
        case = Case(folder / f"{number:03d}", source, preset, generator.random() < 0.3)
        line: dict[str, Any] = {"fault": fault, "moment": "", "outcome": "", "lost": False}
        if fault in (FULL, READ_ONLY) and not mounts:
            line["outcome"] = "skipped: this user may not mount a disk"
        else:
            case.overwrite = case.overwrite and fault not in (FULL, READ_ONLY)
            if case.overwrite and not older.folder.exists():
                older.folder.mkdir()
                code, said = older.run("max_length=16", "executor.workers=1")
                assert code == 0, said
            try:
                line["moment"], line["outcome"] = one(
                    case, fault, older.output, reference, generator
                )
            except LostError as error:
                line |= {"outcome": str(error), "lost": True}
        tell(line)
        told.append(line)
        if not line["lost"]:
            shutil.rmtree(case.folder, ignore_errors=True)
    return told


def _print(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> None:
    """Run as the arguments say, and exit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep what was lost, to look at")
    arguments = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="prepare-chaos-"))
    try:
        told = run(arguments.faults, arguments.seed, folder, _print)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(any(line["lost"] for line in told))


if __name__ == "__main__":
    main()
