"""What the hosts' software says: versions, places, accelerators, compilers and ops, variables."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from lert_ds.doctor.plan import Plan
from lert_ds.doctor.row import Row

Facts = Mapping[str, Mapping[str, Any]]
"""Host to what it knows of itself."""

STALE_LOCK_SECONDS = 600
"""Building an op takes a minute or two; an older lock was left by a build that was killed."""


def check_versions(facts: Facts) -> list[Row]:
    """Compare every version with that of most hosts."""
    every = list(dict.fromkeys(name for each in facts.values() for name in each["versions"]))
    usual = {
        name: _commonest(each["versions"].get(name, "none") for each in facts.values())
        for name in every
    }
    rows = []
    for host, each in facts.items():
        missing = [n for n, value in each["versions"].items() if value == "missing"]
        missing = [name for name in missing if name != "lert-ds"]  # it runs from a checkout too
        other = {
            name: each["versions"].get(name, "none")
            for name in every
            if each["versions"].get(name, "none") != usual[name]
        }
        if missing:
            rows.append(
                Row(
                    "versions",
                    "FAIL",
                    f"{', '.join(missing)} not installed for {each['interpreter']}",
                    "install the same environment on every host",
                    (host,),
                )
            )
        elif other:
            told = ", ".join(f"{n} {value} (elsewhere {usual[n]})" for n, value in other.items())
            rows.append(
                Row(
                    "versions",
                    "FAIL",
                    told,
                    "install the same environment and the same checkout of "
                    "this project on every host",
                    (host,),
                )
            )
        else:
            told = ", ".join(f"{name} {value}" for name, value in each["versions"].items())
            rows.append(Row("versions", "OK", told, hosts=(host,)))
    return rows


def check_folder(facts: Facts, folder: str) -> list[Row]:
    """Check that each host is in the working folder: where there is none, DeepSpeed goes on."""
    return [
        Row("working folder", "OK", folder, hosts=(host,))
        if each["folder"] == folder
        else Row(
            "working folder",
            "FAIL",
            f"{folder} is not there; a run would start in {each['folder']}",
            "put the project at the same path on every host",
            (host,),
        )
        for host, each in facts.items()
    ]


def check_accelerator(facts: Facts, slots: Mapping[str, int]) -> list[Row]:
    """Check that each host has the accelerator of the others, and as many devices as slots."""
    usual = _commonest(each["accelerator"]["name"] for each in facts.values())
    rows = []
    for host, each in facts.items():
        name, devices = each["accelerator"]["name"], each["accelerator"]["devices"]
        cores, needed = each["processor"]["cores"], slots[host]
        status, remedy = "OK", ""
        if name == "cuda":
            kinds = Counter(device["name"] for device in devices)
            found = ", ".join(f"{count} × {kind}" for kind, count in kinds.items())
            found += f", {needed} used"
            if needed > len(devices):
                status, remedy = "FAIL", f"slots={len(devices)}, or make more devices visible"
        else:
            found = f"{name}: {each['processor']['name']}, {cores} cores, {_counted(needed)}"
            if needed > cores:
                status, remedy = "WARN", f"start {cores} processes or fewer: they share the cores"
        if each["accelerator"]["problem"]:
            status, found = "FAIL", each["accelerator"]["problem"]
            remedy = "install the build of torch that fits the driver, or set DS_ACCELERATOR=cpu"
        elif name != usual:
            status, found = "FAIL", f"{name}, elsewhere {usual}"
            remedy = "give every host the same accelerator, or set DS_ACCELERATOR on all"
        rows.append(Row("accelerator", status, found, remedy, (host,)))  # type: ignore[arg-type]
    return rows


def ops_of(accelerator: str, plan: Plan | None) -> list[str]:
    """Return the ops that DeepSpeed would load for a run, by default one with AdamW."""
    optimizer = "adamw" if plan is None else plan.config["optimizer"]["name"]
    offload = plan is not None and plan.offload
    ops = ["deepspeed_shm_comm"] if accelerator == "cpu" else []
    if optimizer == "adamw":
        ops.append("cpu_adam" if offload else "fused_adam")
    elif optimizer == "lion" and offload:
        ops.append("cpu_lion")
    if plan is not None and "nvme" in _offload_devices(plan.deepspeed):
        ops.append("async_io")
    return ops


def check_ops(facts: Facts, plan: Plan | None) -> list[Row]:
    """Check that the ops a run loads are built, or can be."""
    rows = []
    for host, each in facts.items():
        accelerator = each["accelerator"]["name"]
        ops = [op for op in ops_of(accelerator, plan) if each["ops"]["built"][op] != "installed"]
        unbuilt = [op for op in ops if each["ops"]["built"][op] is None]
        found = _ops_found(ops, unbuilt, each)
        problem = _ops_problem(ops, unbuilt, each)
        if problem:
            rows.append(Row("ops", "FAIL", f"{problem[0]}; {found}", problem[1], (host,)))
        else:
            rows.append(Row("ops", "OK", found, hosts=(host,)))
    return rows


def _ops_found(ops: list[str], unbuilt: list[str], each: Mapping[str, Any]) -> str:
    if not ops:
        return "no op to build"
    folder = each["ops"]["folder"]
    built = [op for op in ops if op not in unbuilt]
    told = [f"{', '.join(built)} built"] if built else []
    told += [f"{', '.join(unbuilt)} to be built at the first start"] if unbuilt else []
    return f"{'; '.join(told)} in {folder}"


def _ops_problem(
    ops: list[str], unbuilt: list[str], each: Mapping[str, Any]
) -> tuple[str, str] | None:
    tools, cuda = each["tools"], each["accelerator"].get("cuda")
    path = "put it first in PATH for shells that are no login shells (a line PATH=… in "
    path += "~/.deepspeed_env does, with the virtual environment's bin)"
    if stale := [p for p, age in each["ops"]["locks"].items() if age > STALE_LOCK_SECONDS]:
        return (
            f"{stale[0]} was left by a build that was killed, and every later one waits for it"
        ), f"rm {stale[0]}"
    if ops and tools["ninja"] is None:  # DeepSpeed asks for it even where all is built
        return "no ninja", f"install ninja (pip install ninja) and {path}"
    if not unbuilt:
        return None
    if tools["c++"] is None:
        return "no C++ compiler", f"install g++ (Debian: apt install g++) and {path}"
    if not each["python_headers"]:
        return "no Python.h", "install Python's headers (Debian: apt install python3-dev)"
    if cuda is not None and "fused_adam" in unbuilt:
        nvcc = each["cuda_compiler"]
        if nvcc is None:
            return (
                f"no nvcc (torch is for CUDA {cuda})",
                f"install CUDA's compiler {cuda}, and set CUDA_HOME",
            )
        if nvcc.split(".")[0] != cuda.split(".")[0]:
            return f"nvcc is {nvcc}, torch is for CUDA {cuda}", f"set CUDA_HOME to a CUDA {cuda}"
    if each["ops"]["refused"]:
        return (
            f"{each['ops']['folder']} cannot be written: {each['ops']['refused']}",
            "set TORCH_EXTENSIONS_DIR to a folder that can be, on every host",
        )
    return None


def check_environment(facts: Facts) -> list[Row]:
    """Compare the variables that are shown; the processors too, where ops may be shared."""
    rows = []
    for name in dict.fromkeys(name for each in facts.values() for name in each["environment"]):
        values = {host: each["environment"].get(name, "") for host, each in facts.items()}
        if len(set(values.values())) > 1:
            told = ", ".join(f"{value or 'unset'} on {host}" for host, value in values.items())
            rows.append(
                Row(
                    "environment",
                    "WARN",
                    f"{name}: {told}",
                    f"set {name} the same everywhere: a line in ~/.deepspeed_env",
                    tuple(facts),
                )
            )
    kinds = dict.fromkeys(each["processor"]["name"] for each in facts.values())
    if len(kinds) > 1:
        rows.append(
            Row(
                "processors",
                "WARN",
                f"differ: {', '.join(kinds)}",
                "keep TORCH_EXTENSIONS_DIR on a "
                "local disk: ops are built for the processor of the host",
                tuple(facts),
            )
        )
    if not rows:
        shown = next(iter(facts.values()))["environment"]
        told = ", ".join(f"{name}={value}" for name, value in shown.items()) or "nothing set"
        rows.append(Row("environment", "OK", told, hosts=tuple(facts)))
    return rows


def _offload_devices(tree: Mapping[str, Any]) -> set[str]:
    sections = [
        tree.get("zero_optimization", {}).get(key) for key in ("offload_optimizer", "offload_param")
    ]
    return {str(each.get("device")) for each in sections if isinstance(each, dict)}


def _counted(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"


def _commonest(values: Iterable[str]) -> str:
    # Of as many, the first host's: the one that the run is started from.
    return Counter(values).most_common(1)[0][0]
