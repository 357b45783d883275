"""Pre-training speed on one GPU: kernels against each other, and peers; `--smoke` runs on a CPU.

    python benchmarks/gpu.py --output benchmarks/results/gpu-h100.json
    python benchmarks/gpu.py --smoke --output smoke.json     tiny shapes, one step each, any machine

Cases run one after the other, most important first, until `--seconds` are over; each is what
`lert-ds benchmark pretrain` measures, and every figure of it is kept. One process throughout: a
start of Python and CUDA for each would take most of the time.
"""

import argparse
import gc
import json
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from lert_ds import config as configuration
from lert_ds import pretrain, run_folder
from lert_ds.training_benchmark import run as benchmark

ROOT = Path(__file__).parents[1]
LARGE = ["architecture.size=large", "train.micro_batch_size=32", "train.batch_size=64"]
LARGE_128 = [
    "architecture.size=large", "train.micro_batch_size=128", "train.batch_size=256",
    "train.lengths=[[0,128]]",
]  # fmt: skip
BASE = ["architecture.size=base", "train.micro_batch_size=64", "train.batch_size=128"]
SMALL = ["architecture.size=small", "train.micro_batch_size=128", "train.batch_size=128"]
PLAIN = [
    f"kernels.{name}={value}"
    for name, value in {
        "attention": "plain", "qkv": "plain", "activation": "plain", "residual": "plain",
        "loss": "plain", "compile": "off",
    }.items()
]  # fmt: skip
CASES: dict[str, list[str]] = {
    "large 512, default": LARGE,
    "large 512, plain": LARGE + PLAIN,
    "large 512, fused qkv": [*LARGE, "kernels.qkv=fused"],
    "large 512, plain loss": [*LARGE, "kernels.loss=plain"],
    "large 512, not compiled": [
        *LARGE, "kernels.compile=off", "kernels.activation=fused", "kernels.residual=fused",
    ],
    "large 512, 64 a micro-batch": [*LARGE[:1], "train.micro_batch_size=64", "train.batch_size=64"],
    "large 512, fp8": [*LARGE, "kernels.fp8=torchao"],
    "large 512, documents apart": [*LARGE, "attend_across_documents=false"],
    "large 512, documents apart, a mask": [
        *LARGE, "attend_across_documents=false", "kernels.attention=plain",
    ],
    "large 512, ZeRO 0": [*LARGE, "deepspeed=ds_configs/zero0_bf16.json"],
    "large 128, default": LARGE_128,
    "large 128, plain": LARGE_128 + PLAIN,
    "base 512, default": BASE,
    "base 512, plain": BASE + PLAIN,
    "small 512, default": SMALL,
    "small 512, CUDA graphs": [*SMALL, "kernels.cuda_graphs=true"],
    "small 512, plain": SMALL + PLAIN,
}  # fmt: skip
PEERS: dict[str, list[str]] = {
    "Trainer, large 512": ["trainer", "--size", "large", "--micro-batch", "32"],
    "DeepSpeed loop, large 512": ["deepspeed", "--size", "large", "--micro-batch", "32"],
    "Trainer compiled, large 512": [
        "trainer",
        "--size",
        "large",
        "--micro-batch",
        "32",
        "--compile",
    ],
}
SMOKE = [
    "architecture.layers=2", "architecture.hidden_size=64", "architecture.heads=2",
    "architecture.intermediate_size=128", "train.batch_size=2", "train.micro_batch_size=1",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no case after that long")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", help="cases whose name has this")
    parser.add_argument("--peers", action="store_true", help="also Trainer and a DeepSpeed loop")
    parser.add_argument("--trace", type=Path, help="Chrome trace of the first case")
    parser.add_argument("--smoke", action="store_true", help="tiny, one step, to see that it runs")
    options = parser.parse_args()
    started = time.perf_counter()
    found: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "cases": {},
    }
    with run_folder.joined(1800.0):
        for name, words in CASES.items():
            if options.only and options.only not in name:
                continue
            if time.perf_counter() - started > options.seconds:
                print(f"{name}: out of time", flush=True)
                continue
            found["cases"][name] = case(name, words, options)
            options.trace = None
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(found, indent=1, ensure_ascii=False), "utf-8")
    for name, words in PEERS.items() if options.peers else ():
        if time.perf_counter() - started > options.seconds:
            print(f"{name}: out of time", flush=True)
            continue
        found["cases"][name] = peer(name, words, options)
        options.output.write_text(json.dumps(found, indent=1, ensure_ascii=False), "utf-8")


def case(name: str, words: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Measure one configuration; what fails says so and does not end the others."""
    arguments = argparse.Namespace(
        steps=1 if options.smoke else options.steps,
        warm_up=1 if options.smoke else 3,
        largest=False,
        trace=options.trace,
    )
    path = Path(pretrain.__file__).parent / "configs/pretrain-large.toml"
    overrides = [*words, "corpus=nowhere", "output=nowhere"]
    if options.smoke:
        overrides += [*SMOKE, "deepspeed=ds_configs/cpu_fp32.json"]
        overrides = [word for word in overrides if not word.startswith("kernels.fp8")]
    begun = time.perf_counter()
    try:
        result = benchmark.measure(
            configuration.load(pretrain.PretrainRun, path, overrides), arguments
        )
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        print(f"{name}: {type(error).__name__}: {error}"[:300], flush=True)
        return {"overrides": words, "error": f"{type(error).__name__}: {error}"[:300]}
    finally:
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
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
    """Measure a peer in a process of its own."""
    command = [
        sys.executable, str(ROOT / "benchmarks/pretraining_peers.py"), *words,
        "--precision", "bf16", "--steps", "1" if options.smoke else str(options.steps),
    ]  # fmt: skip
    if options.smoke:
        command = [word.replace("large", "small").replace("32", "1") for word in command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name}: {done.stderr[-1500:]}", flush=True)
        return {"error": done.stderr[-500:]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    seconds = sorted(result["step_seconds"])[len(result["step_seconds"]) // 2]
    result["tokens_per_second"] = 32 * 512 / seconds
    print(f"{name}: {result['tokens_per_second']:,.0f} tokens/s", flush=True)
    return result


if __name__ == "__main__":
    main()
