"""What a host knows of its network: names, interfaces, ports, and whom it can reach."""

import contextlib
import ipaddress
import os
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

_LISTENING: list[socket.socket] = []


def network_facts() -> dict[str, Any]:
    """Return the hostname, what it resolves to, and the interfaces with their addresses."""
    name = socket.gethostname()
    statistics = psutil.net_if_stats()
    return {
        "hostname": name,
        "resolves_to": resolve(name),
        "interfaces": {
            interface: {
                "up": interface in statistics and statistics[interface].isup,
                "addresses": [
                    each.address.partition("%")[0]
                    for each in addresses
                    if each.family in (socket.AF_INET, socket.AF_INET6)
                ],
            }
            for interface, addresses in psutil.net_if_addrs().items()
        },
    }


def resolve(name: str) -> list[str]:
    """Return the addresses of a name, the first of which gloo binds to; empty where it has none."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_loopback(address: str) -> bool:
    """Return whether an address leads back to the host itself."""
    return ipaddress.ip_address(address).is_loopback


def first_address(interfaces: dict[str, Any]) -> str | None:
    """Return the address that the launcher takes for the first host's: `hostname -I`'s first."""
    every = [address for entry in interfaces.values() for address in entry["addresses"]]
    usable = [
        address
        for address in every
        if not is_loopback(address) and not ipaddress.ip_address(address).is_link_local
    ]
    return next(iter(sorted(usable, key=lambda address: ":" in address)), None)


def listen(port: int) -> dict[str, Any]:
    """Listen on a port of all addresses, 0 for any that is free, until `stop_listening`."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:  # as torch's store does, SO_REUSEADDR included
        server = socket.create_server(("", port), family=family, backlog=1024, dualstack_ipv6=both)
    except OSError as error:
        return {"refused": f"{os.strerror(error.errno or 0)}{_holder(port)}"}
    _LISTENING.append(server)
    threading.Thread(target=_accept, args=(server,), daemon=True).start()
    return {"port": server.getsockname()[1]}


def stop_listening() -> dict[str, Any]:
    """Close every port that `listen` opened."""
    while _LISTENING:
        server = _LISTENING.pop()
        with contextlib.suppress(OSError):  # wakes the thread that waits in accept
            server.shutdown(socket.SHUT_RDWR)
        server.close()
    return {}


def connect(to: Sequence[tuple[str, int]], wait: float) -> dict[str, Any]:
    """Try to connect to addresses and ports, all at once; `failures` has a reason or null each."""
    if not to:
        return {"failures": []}
    with ThreadPoolExecutor(min(64, len(to))) as pool:
        return {"failures": list(pool.map(lambda place: _try(place[0], place[1], wait), to))}


def _try(address: str, port: int, wait: float) -> str | None:
    try:
        with socket.create_connection((address, port), timeout=wait):
            return None
    except TimeoutError:
        return f"no answer within {wait:.0f} s"
    except OSError as error:
        return error.strerror or str(error)


def _accept(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            server.accept()[0].close()


def _holder(port: int) -> str:
    """Return who listens on a port, as far as this user may see."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            taken = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            if taken and connection.pid and connection.pid != os.getpid():
                return f", by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    return ""
