"""What the hosts' disks say: room for checkpoints, whether they are shared, the corpus."""

from collections.abc import Mapping
from typing import Any

from lert_ds.doctor.plan import Plan
from lert_ds.doctor.row import Row
from lert_ds.doctor.software_checks import Facts

BYTES_A_PARAMETER = 16
"""Of a checkpoint, at most: weights in two precisions, Adam's moments, and some to spare."""
TEMPORARY_BYTES = 2**30
"""What libraries may put where temporary files go: compilers, datasets, sockets."""


def checkpoint_bytes(plan: Plan) -> float:
    """Return what the checkpoints of a run take: those that stay, and two while one is written."""
    train = plan.config["train"]
    if not train["save_every"]:
        return BYTES_A_PARAMETER / 4 * plan.parameters  # the model alone
    return float((_kept(plan) + 2) * BYTES_A_PARAMETER * plan.parameters)


def _kept(plan: Plan) -> int:
    """Return how many checkpoints stay: the newest, and those at multiples of a step."""
    train = plan.config["train"]
    every = train["keep_every"]
    return int(train["keep_checkpoints"] + (train["steps"] // every if every else 0))


def check_output(outputs: Facts, plan: Plan) -> list[Row]:
    """Check that the output folder can be written, has room, and holds no finished result."""
    rows, needed = [], checkpoint_bytes(plan)
    for host, each in outputs.items():
        path, place = each["path"], each["place"]
        if each["is_file"]:
            rows.append(
                Row("output", "FAIL", f"{path}: {place} is a file", "name another output", (host,))
            )
            continue
        if each["refused"]:
            rows.append(
                Row(
                    "output",
                    "FAIL",
                    f"{path}: {place} cannot be written: {each['refused']}",
                    "name another output, or mount it to be written",
                    (host,),
                )
            )
            continue
        if each["finished"] and not plan.config["overwrite"]:
            rows.append(
                Row(
                    "output",
                    "FAIL",
                    f"{path} holds a finished result",
                    "name another output, or say overwrite=true",
                    (host,),
                )
            )
        else:
            rows.append(Row("output", "OK", f"{path} can be written", hosts=(host,)))
        left = needed - each["checkpoint_bytes"]
        told = (
            f"{_gib(each['free_bytes'])} free, checkpoints take up to {_gib(needed)} "
            f"({_kept(plan)} kept and 2 more, {BYTES_A_PARAMETER} bytes a parameter)"
        )
        if each["free_bytes"] < left:
            rows.append(
                Row(
                    "disk",
                    "FAIL",
                    told,
                    "free some, name another output, or keep fewer (train.keep_checkpoints, "
                    "train.keep_every)",
                    (host,),
                )
            )
        else:
            rows.append(Row("disk", "OK", told, hosts=(host,)))
    return rows


def check_temporary(facts: Facts) -> list[Row]:
    """Check the folder of temporary files."""
    rows = []
    for host, each in facts.items():
        entry = each["temporary"]
        named, path, free = entry.get("named"), entry["path"], entry["free_bytes"]
        if entry["refused"]:
            rows.append(
                Row(
                    "temporary files",
                    "FAIL",
                    f"{path}: {entry['refused']}",
                    "set TMPDIR to a folder that can be written",
                    (host,),
                )
            )
        elif named is not None and named != path:
            rows.append(
                Row(
                    "temporary files",
                    "WARN",
                    f"TMPDIR={named} cannot be written; {path} is used",
                    "set TMPDIR to a folder that can be written",
                    (host,),
                )
            )
        elif free < TEMPORARY_BYTES:
            rows.append(
                Row(
                    "temporary files",
                    "WARN",
                    f"{path}: {_gib(free)} free",
                    "set TMPDIR to a folder with more room",
                    (host,),
                )
            )
        else:
            rows.append(Row("temporary files", "OK", f"{path} has room", hosts=(host,)))
    return rows


def check_shared(seen: Mapping[str, bool], first: str, path: str) -> list[Row]:
    """Tell whether a file of the first host is seen by the others; either way is fine."""
    others = tuple(host for host in seen if not seen[host])
    if not others:
        return [
            Row(
                "shared output",
                "OK",
                f"{path}: every host sees what {first} writes",
                hosts=(first, *seen),
            )
        ]
    told = f"{path}: node-local, {first}'s files are not seen here; each host keeps its own part"
    return [Row("shared output", "OK", told, hosts=others)]


def check_files(answers: Facts, paths: Mapping[str, str]) -> list[Row]:
    """Check that what the configuration names is there on every host.

    Args:
        answers: Host to what is missing there.
        paths: Path to the key that names it.
    """
    rows = []
    for host, each in answers.items():
        for path in each["missing"]:
            rows.append(
                Row(
                    "files",
                    "FAIL",
                    f"{paths[path]} = {path} is not there",
                    "copy it to the same path on every host",
                    (host,),
                )
            )
        if not each["missing"]:
            rows.append(
                Row(
                    "files",
                    "OK",
                    f"{', '.join(dict.fromkeys(paths.values()))} there",
                    hosts=(host,),
                )
            )
    return rows


def check_corpus(answers: Facts, name: str) -> list[Row]:
    """Check that a corpus is whole on every host, and the same."""
    rows = []
    first = next((each["manifest"] for each in answers.values() if "manifest" in each), None)
    for host, each in answers.items():
        if "wrong" in each:
            rows.append(
                Row("corpus", "FAIL", each["wrong"], "copy the corpus again, whole", (host,))
            )
        elif each["manifest"] != first:
            rows.append(
                Row(
                    "corpus",
                    "FAIL",
                    f"{name}: manifest {each['manifest'][:12]}, on "
                    f"{_owner(answers, first)} {str(first)[:12]}",
                    "copy one corpus to all hosts: the batches would not be those of one run",
                    (host,),
                )
            )
        elif each["verified"] < each["shards"]:
            rows.append(
                Row(
                    "corpus",
                    "WARN",
                    f"{name}: only {each['verified']} of "
                    f"{each['shards']} shards could be hashed in time",
                    "give it longer: --timeout",
                    (host,),
                )
            )
        else:
            rows.append(
                Row(
                    "corpus",
                    "OK",
                    f"{name}: {each['instances']:,} instances, "
                    f"{each['shards']} shards as their manifest {each['manifest'][:12]} "
                    "says",
                    hosts=(host,),
                )
            )
    return rows


def _owner(answers: Facts, manifest: Any) -> str:
    return next(host for host, each in answers.items() if each.get("manifest") == manifest)


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:,.1f} MiB"
