"""The hosts that other tests launch on: apart, reachable, cut off, gone, and gone for good."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

SCRIPT = Path(__file__).with_name("cluster.py")
CONNECT = "import socket; socket.create_connection(('node1', 22), 2).close()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def hosts(cluster: Any, folder: Path) -> Iterator[Any]:
    (folder / "own").mkdir()
    handed_over = {"ANSWER": "42"}
    with cluster(
        folder / "hosts", 2, slots=3, handed_over=handed_over, private=[folder / "own"]
    ) as up:
        yield up


def reaches(hosts: Any) -> bool:
    """Whether node0 can open a connection to node1."""
    return hosts.run([sys.executable, "-c", CONNECT]).returncode == 0


def test_a_host_has_a_name_an_address_a_home_and_processes_of_its_own(hosts: Any) -> None:
    asked = "hostname; hostname -I; echo $HOME; ps -e | wc -l"
    name, address, home, processes = hosts.run(["ssh", "node1", asked]).stdout.split()
    assert (name, address, home) == ("node1", "10.77.0.2", str(hosts.home(1)))
    assert int(processes) < 12
    assert hosts.run(["cat", str(hosts.home(1) / ".deepspeed_env")]).stdout == "ANSWER=42\n"
    assert hosts.hostfile.read_text("utf-8") == "node0 slots=3\nnode1 slots=3\n"
    said = hosts.run(["pdsh", "-R", "ssh", "-w", "node0,node1", "hostname"]).stdout
    assert sorted(said.splitlines()) == ["node0: node0", "node1: node1"]


def test_the_hosts_have_a_network_of_their_own(hosts: Any) -> None:
    ours = {address.address for found in psutil.net_if_addrs().values() for address in found}
    assert not ours & {hosts.address(0), hosts.address(1)}
    assert not {"br0", "p0", "p1"} & set(psutil.net_if_stats())
    outside = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"
    said = hosts.run([sys.executable, "-c", outside]).stdout
    assert "Network is unreachable" in said  # at once: there is no way out
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))"
        assert "Connection refused" in hosts.run([sys.executable, "-c", here]).stdout


def test_a_private_folder_is_each_hosts_own_and_others_are_shared(hosts: Any, folder: Path) -> None:
    hosts.run(["touch", str(folder / "own" / "mine"), str(folder / "ours")])
    assert hosts.run(["ssh", "node1", f"ls {folder / 'own'} {folder / 'ours'}"]).stdout == (
        f"{folder / 'ours'}\n\n{folder / 'own'}:\n"
    )
    assert hosts.outside(0, folder / "own" / "mine").exists()
    assert not (folder / "own" / "mine").exists()


def test_a_cable_is_pulled_and_put_back(hosts: Any) -> None:
    assert reaches(hosts)
    hosts.link(1, up=False)
    assert not reaches(hosts)
    hosts.link(1, up=True)
    assert reaches(hosts)


def test_packets_vanish_and_come_back(hosts: Any) -> None:
    hosts.blackhole(1, on=True)
    assert not reaches(hosts)
    hosts.blackhole(1, on=False)
    assert reaches(hosts)


def test_a_host_dies_without_a_word_and_boots_again(hosts: Any) -> None:
    waiting = hosts.start(["ssh", "node1", "echo here; exec sleep 99"], stdout=subprocess.PIPE)
    assert waiting.stdout.readline() == "here\n"
    sleeper = next(p for p in hosts.processes(1) if p.name() == "sleep")
    hosts.kill(1)
    assert not sleeper.is_running()
    time.sleep(0.5)
    assert waiting.poll() is None  # nobody closed the connection
    hosts.boot(1)
    assert reaches(hosts)
    waiting.kill()
    waiting.communicate()


def test_all_is_gone_when_the_maker_is_killed(cluster: Any, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path / "hosts"), "--hosts", "1"]
    maker = subprocess.Popen([*command, "--", "sleep", "99"])
    try:
        family: list[psutil.Process] = []
        while not {"sshd", "sleep"} <= {process.name() for process in family}:
            assert maker.poll() is None
            time.sleep(0.1)
            family = psutil.Process(maker.pid).children(recursive=True)
    finally:
        maker.send_signal(signal.SIGKILL)
        maker.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_the_script_hands_on_what_its_command_says(cluster: Any, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--hosts", "1", "-e", "A=b", "--",
         "sh", "-c", "cat $HOSTFILE ~/.deepspeed_env; exit 3"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "node0 slots=1\nA=b\n")
