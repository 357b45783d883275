"""What the hosts' network says: clocks, names, interfaces, ports, ways between them, bandwidth."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lert_ds.doctor.network import first_address, is_loopback
from lert_ds.doctor.row import Row
from lert_ds.doctor.software_checks import Facts

CLOCK_WARN_SECONDS = 1.0
CLOCK_FAIL_SECONDS = 30.0

HOSTNAME_REMEDY = (
    "map the hostname to the address that the others reach in /etc/hosts, or name the interface "
    "(GLOO_SOCKET_IFNAME=eth0, say) in ~/.deepspeed_env"
)


def check_clocks(skews: Mapping[str, tuple[float, float]]) -> list[Row]:
    """Judge clocks by how far each is from the first host's.

    Args:
        skews: Host to the seconds that its clock is ahead, and how far that may be wrong (half of
            the round trip).
    """
    rows = []
    for host, (skew, doubt) in skews.items():
        # Rounded where it is as good as equal, so that equal findings fold.
        if abs(skew) <= CLOCK_WARN_SECONDS:
            rows.append(Row("clock", "OK", f"within {CLOCK_WARN_SECONDS:.0f} s", hosts=(host,)))
            continue
        status: Any = "FAIL" if abs(skew) > CLOCK_FAIL_SECONDS else "WARN"
        told = f"{abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'} (±{doubt:.2f} s)"
        rows.append(Row("clock", status, told, "set it by NTP (chrony, timedatectl)", (host,)))
    return rows


def check_names(facts: Facts) -> list[Row]:
    """Check that each host binds to an address that the others can reach.

    gloo binds to what the hostname resolves to, unless GLOO_SOCKET_IFNAME names an interface.
    """
    rows = []
    for host, each in facts.items():
        network = each["network"]
        name, addresses = network["hostname"], network["resolves_to"]
        if "GLOO_SOCKET_IFNAME" in each["environment"]:
            rows.append(Row("hostname", "OK", "not used: GLOO_SOCKET_IFNAME is set", hosts=(host,)))
        elif not addresses or is_loopback(addresses[0]):
            # NCCL finds an interface by itself, but checkpoints agree by gloo on a GPU too.
            what = f"{addresses[0]}, which only the host itself reaches" if addresses else "nothing"
            rows.append(
                Row("hostname", "FAIL", f"{name} resolves to {what}", HOSTNAME_REMEDY, (host,))
            )
        else:
            rows.append(Row("hostname", "OK", f"{name} is {addresses[0]}", hosts=(host,)))
    return rows


def soften_names(rows: Sequence[Row]) -> list[Row]:
    """Return `rows` after an all-reduce that worked: gloo found a way in spite of a hostname.

    Of two processes it is one that connects to the other, so a hostname may be wrong on one side.
    """
    return [
        replace(row, status="WARN", found=f"{row.found}; with these hosts it works all the same")
        if row.check == "hostname" and row.status == "FAIL"
        else row
        for row in rows
    ]


def check_interfaces(facts: Facts) -> list[Row]:
    """Check that the interfaces that gloo and NCCL are told to use are there and up."""
    rows = []
    for host, each in facts.items():
        interfaces = each["network"]["interfaces"]
        up = sorted(
            name for name, entry in interfaces.items() if entry["up"] and entry["addresses"]
        )
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            value = each["environment"].get(variable)
            if value is None:
                continue
            wrong = [name for name in value.split(",") if not _matches(variable, name, up) and name]
            if variable.startswith("NCCL") and len(wrong) < len(value.split(",")):
                wrong = []  # NCCL takes any that is there
            if wrong:
                down = [name for name in wrong if name.lstrip("=") in interfaces]
                state = "is down or has no address" if down else "is not there"
                rows.append(
                    Row(
                        "interface",
                        "FAIL",
                        f"{variable}={value}: {wrong[0]} {state}",
                        f"name one that is up: {', '.join(up)}",
                        (host,),
                    )
                )
            else:
                rows.append(Row("interface", "OK", f"{variable}={value} is up", hosts=(host,)))
    return rows


def _matches(variable: str, name: str, up: Sequence[str]) -> bool:
    """Return whether an entry of the variable means an interface; NCCL's may open with = or ^."""
    if variable.startswith("GLOO"):
        return name in up
    if name.startswith("="):
        return name[1:] in up
    if name.startswith("^"):
        return any(not each.startswith(name[1:]) for each in up)
    return any(each.startswith(name) for each in up)


def address_of(each: Mapping[str, Any]) -> str | None:
    """Return the address that others are to reach a host at, or None where it has none."""
    network = each["network"]
    named = each["environment"].get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    if named:
        addresses = network["interfaces"].get(named, {}).get("addresses", [])
        return next(iter(addresses), None)
    usable = [address for address in network["resolves_to"] if not is_loopback(address)]
    return next(iter(usable), None) or launcher_address(each)


def launcher_address(each: Mapping[str, Any]) -> str | None:
    """Return what `hostname -I` tells first: the launcher's MASTER_ADDR."""
    return first_address(each["network"]["interfaces"])


def check_port(port: int, refused: str | None, host: str) -> Row:
    """Judge the port that the processes meet at."""
    if refused is None:
        return Row("port", "OK", f"{port} is free", hosts=(host,))
    return Row(
        "port",
        "FAIL",
        f"{port}: {refused}",
        "end what holds it, or start the run with another --master_port",
        (host,),
    )


class Way(NamedTuple):
    """A connection that a host tried to another."""

    start: str
    end: str
    address: str
    port: int
    failure: str | None
    """Why there was none; None where there was."""


def check_ways(ways: Sequence[Way]) -> list[Row]:
    """Judge the connections between hosts."""
    rows = [
        Row(
            "connections",
            "FAIL",
            f"no way to {way.end} at {way.address}, port {way.port}: {way.failure}",
            "let the hosts reach each other on all ports (firewall, cable, routes), or name what "
            "does: --master_addr, GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME",
            (way.start,),
        )
        for way in ways
        if way.failure is not None
    ]
    if not rows and ways:
        hosts = tuple(dict.fromkeys(way.start for way in ways))
        rows.append(Row("connections", "OK", "every host reaches every other", hosts=hosts))
    return rows


def check_all_reduce(
    answers: Mapping[str, Mapping[str, Any]], processes: int, parameters: int | None
) -> list[Row]:
    """Judge the all-reduce by what the processes of each host said."""
    rows, result = [], None
    for host, answer in answers.items():
        said = answer.get("said", [{"problem": answer.get("error", "no answer")}])
        problems = [each["problem"] for each in said if "problem" in each]
        result = result or next((each for each in said if "problem" not in each), None)
        if problems:
            rows.append(
                Row(
                    "all-reduce",
                    "FAIL",
                    problems[0],
                    "mend the network findings above; "
                    "TORCH_DISTRIBUTED_DEBUG=DETAIL and NCCL_DEBUG=INFO tell more",
                    (host,),
                )
            )
    if rows or result is None:
        return rows
    speed = result["bus_bytes_per_second"]
    told = (
        f"{processes} processes, {result['backend']}: {result['bytes'] / 2**20:.0f} MiB in "
        f"{result['seconds'] * 1e3:.1f} ms, {speed / 1e9:.2f} GB/s a process each way"
    )
    if parameters is not None:
        seconds = 2 * (processes - 1) / processes * 2 * parameters / speed
        told += f"; the gradients of a step in bf16 take {seconds:.3g} s"
    return [Row("all-reduce", "OK", told, hosts=tuple(answers))]
