"""Pre-training speed on one GPU: kernels against each other, and peers; `--smoke` runs on a CPU.

    python benchmarks/gpu.py --output benchmarks/results/gpu-h100.json
    python benchmarks/gpu.py --smoke --output smoke.json     tiny shapes, one step each, any machine

Cases run one after the other, most important first, until `--seconds` are over; each is what
`lert-ds benchmark pretrain` measures, in a process of its own, and every figure of it is kept. The
process of the next case starts and loads its libraries while one is measured.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PLAIN = [
    f"kernels.{name}={value}"
    for name, value in {
        "attention": "plain", "qkv": "plain", "activation": "plain", "residual": "plain",
        "loss": "plain", "compile": "off",
    }.items()
]  # fmt: skip


def of(size: str, micro_batch: int, batch: int, *words: str) -> list[str]:
    """Return the overrides of a case."""
    return [
        f"architecture.size={size}", f"train.micro_batch_size={micro_batch}",
        f"train.batch_size={batch}", *words,
    ]  # fmt: skip


LENGTH_128 = "train.lengths=[[0,128]]"
CASES: dict[str, list[str]] = {
    "large 512": of("large", 64, 256),
    "large 512, batch 1024": of("large", 64, 1024),
    "large 512, plain": of("large", 64, 256, *PLAIN),
    "large 512, 32 a micro-batch": of("large", 32, 256),
    "large 512, 128 a micro-batch": of("large", 128, 256),
    "large 512, fused qkv": of("large", 64, 256, "kernels.qkv=fused"),
    "large 512, fp8": of("large", 64, 256, "kernels.fp8=torchao"),
    "large 512, CUDA graphs": of("large", 64, 256, "kernels.cuda_graphs=true"),
    "large 512, documents apart": of("large", 64, 256, "attend_across_documents=false"),
    "large 512, documents apart, by a mask": of(
        "large", 64, 256, "attend_across_documents=false", "kernels.attention=plain"
    ),
    "large 512, plain loss": of("large", 64, 256, "kernels.loss=plain"),
    "large 512, not compiled": of(
        "large", 64, 256, "kernels.compile=off", "kernels.activation=fused",
        "kernels.residual=fused",
    ),
    "large 512, ZeRO 0": of("large", 64, 256, "deepspeed=ds_configs/zero0_bf16.json"),
    "large 128": of("large", 64, 256, LENGTH_128),
    "large 128, plain": of("large", 64, 256, LENGTH_128, *PLAIN),
    "base 512": of("base", 128, 256),
    "base 512, plain": of("base", 128, 256, *PLAIN),
    "small 512": of("small", 256, 256),
    "small 512, CUDA graphs": of("small", 256, 256, "kernels.cuda_graphs=true"),
    "small 512, plain": of("small", 256, 256, *PLAIN),
}  # fmt: skip
"""In a micro-batch of rows of 128 four times as many as instances."""
PEERS: dict[str, list[str]] = {
    f"{title}, large 512": [name, "--size", "large", "--micro-batch", "64", "--accumulate", "4",
                            *words]
    for title, name, words in (
        ("Trainer", "trainer", []),
        ("DeepSpeed loop", "deepspeed", []),
        ("Trainer compiled", "trainer", ["--compile"]),
    )
}  # fmt: skip
SMOKE = [
    "architecture.layers=2", "architecture.hidden_size=64", "architecture.heads=2",
    "architecture.intermediate_size=128", "train.batch_size=2", "train.micro_batch_size=1",
    "deepspeed=ds_configs/cpu_fp32.json",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no case after that long")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose name has this")
    parser.add_argument("--peers", action="store_true", help="also Trainer and a DeepSpeed loop")
    parser.add_argument("--profile", type=int, default=1, help="so many cases (default: 1)")
    parser.add_argument("--trace", type=Path, help="Chrome trace of the first case")
    parser.add_argument("--smoke", action="store_true", help="tiny, one step, to see that it runs")
    options = parser.parse_args()
    started = time.perf_counter()
    found: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "cases": {},
    }
    names = list(dict.fromkeys(n for part in options.only for n in CASES if part in n))
    for name, words in PEERS.items() if options.peers else ():
        if time.perf_counter() - started > options.seconds:
            print(f"{name}: out of time", flush=True)
            break
        found["cases"][name] = peer(name, words, options)
        keep(found, options.output)
    cases = workers()
    for number, name in enumerate(names):
        worker = next(cases)
        if time.perf_counter() - started > options.seconds:
            print(f"{name}: out of time", flush=True)
            worker.kill()
            break
        found["cases"][name] = case(name, worker, options, number)
        keep(found, options.output)
    cases.close()


def keep(found: dict[str, Any], path: Path) -> None:
    """Write what was found so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


def workers() -> Iterator["subprocess.Popen[str]"]:
    """Yield processes that have loaded their libraries and wait for a case, one ahead."""

    def start() -> "subprocess.Popen[str]":
        code = (
            "import json, sys\n"
            "from lert_ds import cli, pretrain\n"
            "from lert_ds.training_benchmark import run\n"
            "sys.argv[1:] = json.loads(sys.stdin.readline())\n"
            "cli.main(sys.argv[1:])\n"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    ahead = start()
    try:
        while True:
            ready, ahead = ahead, start()
            yield ready
    finally:
        ahead.kill()


def case(
    name: str, worker: "subprocess.Popen[str]", options: argparse.Namespace, number: int
) -> dict[str, Any]:
    """Measure one configuration; what fails says so and does not end the others."""
    begun = time.perf_counter()
    words = CASES[name]
    if options.smoke:
        words = [word for word in words if "fp8" not in word] + SMOKE
    result_path = options.output.with_suffix(".case")
    steps = "1" if options.smoke else str(options.steps)
    profiled = "1" if number < options.profile else "0"
    command = [
        "benchmark", "pretrain", "pretrain-large", *words, "corpus=nowhere", "output=nowhere",
        "--steps", steps, "--warm-up", "1", "--profiled", profiled, "--json", str(result_path),
    ]  # fmt: skip
    if options.trace and number == 0:
        command += ["--trace", str(options.trace)]
    _, errors = worker.communicate(json.dumps(command) + "\n")
    if worker.returncode:
        print(f"{name}: {errors[-2000:]}", flush=True)
        return {"overrides": words, "error": errors.strip().splitlines()[-1][:300]}
    result: dict[str, Any] = json.loads(result_path.read_text("utf-8"))
    result_path.unlink()
    parts = ", ".join(f"{part} {1e3 * s:.1f}" for part, s in result["part_seconds"].items())
    kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in result["operation_shares"].items())
    print(
        f"{name}: {result['tokens_per_second']:,.0f} tokens/s, "
        f"{result['instances_per_second']:,.1f} instances/s, "
        f"{result['flops_per_second'] / 1e12:.1f} of "
        f"{result['matrix_flops_per_second'] / 1e12:.0f} T"
        f" = {result['mfu']:.1%}, {result['peak_memory_bytes'] / 2**30:.1f} GiB, first step "
        f"{result['first_step_seconds']:.0f} s, ms: {parts}; {kinds}; in all "
        f"{time.perf_counter() - begun:.0f} s",
        flush=True,
    )
    return {"overrides": words, **result}


def peer(name: str, words: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Measure a peer."""
    command = [
        sys.executable, str(ROOT / "benchmarks/pretraining_peers.py"), *words,
        "--precision", "bf16", "--steps", "1" if options.smoke else str(options.steps),
    ]  # fmt: skip
    if options.smoke:
        command = [{"large": "small", "64": "1"}.get(word, word) for word in command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name}: {done.stderr[-2000:]}", flush=True)
        return {"error": done.stderr.strip().splitlines()[-1][:300]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    seconds = sorted(result["step_seconds"])[len(result["step_seconds"]) // 2]
    result["tokens_per_second"] = result["tokens_per_step"] / seconds
    print(f"{name}: {result['tokens_per_second']:,.0f} tokens/s", flush=True)
    return {"words": words, **result}


if __name__ == "__main__":
    main()
