import os
import socket

import pytest

from lert_ds.doctor import network


def test_a_free_port_is_listened_on_and_reached() -> None:
    port = network.listen(0)["port"]
    assert network.connect([("127.0.0.1", port)], 2) == {"failures": [None]}
    network.stop_listening()
    assert network.connect([("127.0.0.1", port)], 2)["failures"] != [None]
    assert network.connect([], 2) == {"failures": []}


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        told = network.listen(taken.getsockname()[1])
    assert "in use" in told["refused"]
    assert str(os.getpid()) not in told["refused"]  # by itself: no help


def test_a_port_between_runs_is_free_again() -> None:
    """A connection that lingers (TIME_WAIT) holds no port: torch's store would get it too."""
    port = network.listen(0)["port"]
    with socket.create_connection(("127.0.0.1", port)):
        network.stop_listening()
    assert network.listen(port) == {"port": port}
    network.stop_listening()


def test_the_launchers_address_is_the_first_that_others_may_reach() -> None:
    def interface(*addresses: str) -> dict[str, object]:
        return {"up": True, "addresses": list(addresses)}

    interfaces = {
        "lo": interface("127.0.0.1", "::1"),
        "eth0": interface("fe80::1", "fd00::2", "10.0.0.2"),
    }
    assert network.first_address(interfaces) == "10.0.0.2"
    assert network.first_address({"lo": interface("127.0.0.1")}) is None


def test_names_and_interfaces_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = network.network_facts()
    assert facts["hostname"] == socket.gethostname()
    assert facts["interfaces"]["lo"]["up"]
    assert "127.0.0.1" in facts["interfaces"]["lo"]["addresses"]
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    told = network.network_facts()["resolves_to"]
    assert told
    assert all(network.is_loopback(address) for address in told)
    assert network.resolve("no-such-host.invalid") == []
