"""Several hosts on one machine, for tests of what runs on a cluster (Linux, root).

    python tests/launch/cluster.py --hosts 2 -- COMMAND …    run COMMAND on node0, then clear up

A host has network, PID, mount, UTS and IPC namespaces of its own, and so its own address, name,
/dev/shm, /run, home and sshd; the disk is shared but for the folders that are asked to be private.
The cables end in a bridge in a namespace of its own, so no packet can reach the machine's network.

Nothing here has a name on the machine: a namespace lives as long as the processes in it, and the
kernel kills those when the process that made the cluster ends, be it by SIGKILL.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import psutil

PACKAGES = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "pdsh": "pdsh",
    "ip": "iproute2",
    "iptables": "iptables",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
}
"""Program → the Debian package that has it."""
NETWORK = "10.77.0"
BOOT_SECONDS = 30
NOTHING: Mapping[str, str] = MappingProxyType({})
# The kernel kills the process when its parent dies, and with PID 1 of a namespace all others in it.
TIED_TO_PARENT = ["setpriv", "--pdeathsig", "KILL", "--"]
OF_A_HOST = ["--net", "--pid", "--mount", "--uts", "--ipc", "--mount-proc"]

BOOT = Path(__file__).with_name("host.sh")

SSHD_CONFIG = """
Port 22
ListenAddress 0.0.0.0
HostKey {cluster}/key
AuthorizedKeysFile {cluster}/key.pub
SetEnv HOME={home}
PidFile none
UsePAM no
StrictModes no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 200
"""

# A host that is gone ends a connection after three times three seconds, and pdsh with it.
SSH_CONFIG = """
Host *
    IdentityFile {cluster}/key
    IdentitiesOnly yes
    UserKnownHostsFile {cluster}/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    BatchMode yes
    ConnectTimeout 10
    ServerAliveInterval 3
    ServerAliveCountMax 3
    LogLevel ERROR
"""


def missing() -> str:
    """Return what keeps this machine from making hosts, or nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts from network namespaces need root on Linux"
    absent = sorted({name for tool, name in PACKAGES.items() if not _program(tool)})
    if absent:
        return f"missing Debian packages: {' '.join(absent)} (make host-tools)"
    tried = subprocess.run(
        ["unshare", "--fork", *OF_A_HOST, "true"], capture_output=True, text=True, check=False
    )
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


def _without_ranks() -> dict[str, str]:
    """Return the environment as a terminal has it: without what a launcher or a test has set."""
    launched = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return {k: v for k, v in os.environ.items() if k not in launched and not k.startswith("LOCAL_")}


def _program(name: str) -> str | None:
    # /usr/sbin is not on every user's path.
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Cluster:
    """Hosts node0, node1, … under `folder`; a context manager that boots them and clears up."""

    def __init__(
        self,
        folder: Path,
        hosts: int = 2,
        *,
        slots: int = 1,
        handed_over: Mapping[str, str] = NOTHING,
        private: Sequence[Path] = (),
    ) -> None:
        """Describe the cluster; nothing is made before it is entered.

        Args:
            folder: Where keys, configurations and homes go; must be empty or absent.
            hosts: How many.
            slots: Processes a host, for the hostfile.
            handed_over: Variables for `.deepspeed_env` in each home, which DeepSpeed's launcher
                exports on all hosts.
            private: Folders that are each host's own, and empty at first; see `outside`.
        """
        self.folder = folder.resolve()
        self.names = [f"node{number}" for number in range(hosts)]
        self.hostfile = self.folder / "hostfile"
        self._slots = slots
        self._handed_over = dict(handed_over)
        self._private = [path.absolute() for path in private]
        self._hosts: dict[int, subprocess.Popen[bytes]] = {}
        self._switch: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Boot all hosts."""
        try:
            self._write_files()
            self._switch = subprocess.Popen(
                [*TIED_TO_PARENT, "unshare", "--net", "sleep", "infinity"]
            )
            _wait_for(lambda: _network_of(self._switch) != _network_of(None), "the switch")
            self._ip(self._switch.pid, "link add br0 type bridge", "link set br0 up")
            for number in range(len(self.names)):
                self.boot(number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Kill all that runs on the hosts; the namespaces go with it."""
        for host in self._hosts.values():
            _end(host)
        if self._switch is not None:
            _end(self._switch)
        self._hosts, self._switch = {}, None

    def address(self, number: int) -> str:
        """Return the address of a host on the cluster's network."""
        return f"{NETWORK}.{number + 1}"

    def home(self, number: int) -> Path:
        """Return the home of a host's user, which other hosts see at the same path."""
        return self.folder / self.names[number] / "home"

    def outside(self, number: int, path: Path) -> Path:
        """Return where the machine, which is no host, sees a host's path in a private folder."""
        return Path(f"{self.folder}/{self.names[number]}/private{path.absolute()}")

    def boot(self, number: int) -> None:
        """Start a host that is not running and plug it in; the other hosts reach it by ssh then."""
        name = self.names[number]
        folder = self.folder / name
        (folder / "booted").unlink(missing_ok=True)
        with (folder / "boot.log").open("wb") as log:
            host = subprocess.Popen(
                [*TIED_TO_PARENT, "unshare", "--fork", "--kill-child=KILL", *OF_A_HOST,
                 "bash", str(BOOT), *map(str, self._private)],
                env={**os.environ, "NAME": name, "CLUSTER": str(self.folder),
                     "HOST": str(folder), "SSHD": str(_program("sshd"))},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._hosts[number] = host
        _wait_for(
            lambda: (folder / "booted").exists() or host.poll() is not None, f"{name} to boot"
        )
        if host.poll() is not None:
            raise RuntimeError(f"{name}: {(folder / 'boot.log').read_text('utf-8')}")
        assert self._switch is not None
        port, first = f"p{number}", _first_process_of(host)
        self._ip(
            self._switch.pid,
            # Always the same hardware address: neighbours of a host that is back know it.
            f"link add {port} type veth peer name eth0 address 02:00:00:00:00:{number + 1:02x} "
            f"netns {first}",
            f"link set {port} master br0 up",
        )
        self._ip(
            first,
            "link set lo up",
            f"addr add {self.address(number)}/24 dev eth0",
            "link set eth0 up",
        )
        _wait_for(lambda: self.run(["ssh", name, "true"], number).returncode == 0, f"{name}'s sshd")

    def start(
        self,
        command: Sequence[str],
        number: int = 0,
        *,
        folder: Path | None = None,
        environment: Mapping[str, str] = NOTHING,
        **options: Any,
    ) -> "subprocess.Popen[str]":
        """Start a command on a host, as its user would at a terminal there; see `run`."""
        inside = f'cd {shlex.quote(str(folder or Path.cwd()))} && exec "$@"'
        return subprocess.Popen(
            ["nsenter", "-t", str(_first_process_of(self._hosts[number])),
             "--mount", "--uts", "--ipc", "--net", "--pid",
             *TIED_TO_PARENT, "sh", "-c", inside, "sh", *command],
            env={**_without_ranks(), "HOME": str(self.home(number)), **environment},
            stdin=subprocess.DEVNULL, text=True, **options,
        )  # fmt: skip

    def run(
        self, command: Sequence[str], number: int = 0, *, timeout: float = 300, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end, at most `timeout` seconds, and return its output.

        Standard error comes with standard output. `options` are those of `start`.
        """
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
        with self.start(command, number, **options) as process:
            try:
                output, _ = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(command, process.returncode, output, "")

    def link(self, number: int, up: bool) -> None:
        """Pull a host's cable out of the switch, or put it back."""
        assert self._switch is not None
        self._ip(self._switch.pid, f"link set p{number} {'up' if up else 'down'}")

    def blackhole(self, number: int, on: bool) -> None:
        """Drop a host's packets without a word while its cable seems well, or stop that."""
        change = "-A" if on else "-D"
        for chain, direction in (("INPUT", "-i"), ("OUTPUT", "-o")):
            rule = ["iptables", change, chain, direction, "eth0", "-j", "DROP"]
            done = self.run(rule, number)
            assert done.returncode == 0, done.stdout

    def kill(self, number: int) -> None:
        """Take a host away as a power cut does: its processes end, and nobody is told."""
        assert self._switch is not None
        # First of all the cable: else the kernel would close the connections in good order.
        self._ip(self._switch.pid, f"link del p{number}")
        _end(self._hosts.pop(number))

    def processes(self, number: int) -> list[psutil.Process]:
        """Return what runs on a host, by the machine's process numbers."""
        first = psutil.Process(_first_process_of(self._hosts[number]))
        inside = Path(f"/proc/{first.pid}/ns/pid").stat().st_ino
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{process.pid}/ns/pid").stat().st_ino == inside:
                    found.append(process)
        return found

    def _write_files(self) -> None:
        self.folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        key = self.folder / "key"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "cluster", "-f", key],
            check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        public = key.with_suffix(".pub").read_text("utf-8")
        addresses = [(self.address(number), name) for number, name in enumerate(self.names)]
        files = {
            # A name must lead to the address that the others can reach: gloo binds to it.
            "hosts": "127.0.0.1 localhost\n" + "".join(f"{a} {name}\n" for a, name in addresses),
            # No name server answers here, and torch looks addresses up in reverse: with one
            # configured a start waits three minutes for its time-outs.
            "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
            "known_hosts": "".join(f"{name},{a} {public}" for a, name in addresses),
            "hostfile": "".join(f"{name} slots={self._slots}\n" for name in self.names),
            "ssh_config": SSH_CONFIG.format(cluster=self.folder),
        }
        for number, name in enumerate(self.names):
            home = self.home(number)
            home.mkdir(parents=True, mode=0o700)
            files[f"{name}/sshd_config"] = SSHD_CONFIG.format(cluster=self.folder, home=home)
            variables = "".join(f"{key}={value}\n" for key, value in self._handed_over.items())
            files[f"{name}/home/.deepspeed_env"] = variables
        for name, text in files.items():
            (self.folder / name).write_text(text, "utf-8")

    @staticmethod
    def _ip(process: int, *commands: str) -> None:
        """Run `ip` commands in the network of a process."""
        subprocess.run(
            ["nsenter", "-t", str(process), "--net", str(_program("ip")), "-batch", "-"],
            input="\n".join(commands), text=True, check=True,
        )  # fmt: skip


def _network_of(process: "subprocess.Popen[bytes] | None") -> int:
    return Path(f"/proc/{process.pid if process else 'self'}/ns/net").stat().st_ino


def _first_process_of(host: "subprocess.Popen[bytes]") -> int:
    """Return the number, on the machine, of a host's PID 1."""
    return psutil.Process(host.pid).children()[0].pid


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a host, or the switch, and wait until nothing of it runs."""
    with contextlib.suppress(psutil.NoSuchProcess):
        # PID 1 itself: it is gone when all others of its namespace are.
        for first in psutil.Process(process.pid).children():
            first.kill()
            first.wait(BOOT_SECONDS)
    process.kill()
    process.wait()


def _wait_for(condition: Any, what: str) -> None:
    end = time.monotonic() + BOOT_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {BOOT_SECONDS} s for {what}")
        time.sleep(0.02)


def main() -> None:
    """Run a command on the first of some hosts, from the folder that this is called in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--slots", type=int, default=1, help="processes a host, in the hostfile")
    parser.add_argument("--folder", type=Path, help="where hostfile, homes and logs go, and stay")
    parser.add_argument(
        "--private",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="an existing folder of which each host has its own, empty at first",
    )
    parser.add_argument(
        "-e",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="for .deepspeed_env: exported on all hosts",
    )
    parser.add_argument("command", nargs="+", help="$HOSTFILE names the hosts to it")
    arguments = parser.parse_args()
    if lacking := missing():
        sys.exit(lacking)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cluster = Cluster(
            folder,
            arguments.hosts,
            slots=arguments.slots,
            handed_over=dict(pair.split("=", 1) for pair in arguments.e),
            private=arguments.private,
        )
        stack.enter_context(cluster)
        hostfile = {"HOSTFILE": str(cluster.hostfile)}
        sys.exit(cluster.start(arguments.command, environment=hostfile).wait())


if __name__ == "__main__":
    main()
