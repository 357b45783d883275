"""`lert-ds doctor`: what would stop a run, found before it starts.

    alone                 this host
    --hostfile H          every host, over the ssh that the launcher would use
    under a launcher      every host, through the processes that were started

Read with `examination.py` (what is asked in which order), `facts.py` (what a host knows of itself)
and the modules named `…_checks.py` (what that means).
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from lert_ds import distributed
from lert_ds.doctor import facts, hostfile, serve
from lert_ds.doctor import plan as planning
from lert_ds.doctor.examination import Examination, Request
from lert_ds.doctor.hosts import ProcessHosts
from lert_ds.doctor.row import Row, fold
from lert_ds.doctor.table import as_json, exit_code, table
from lert_ds.errors import ConfigError

_EPILOG = """\
examples:
  lert-ds doctor                                         this host
  lert-ds doctor pretrain-large corpus=/data/corpus output=/data/run --hostfile hostfile
  deepspeed --hostfile hostfile --module lert_ds doctor pretrain-large corpus=/data/corpus …
  srun … python -m lert_ds doctor pretrain-large …       with RANK and WORLD_SIZE set as for a run

exit code: 0 nothing would stop a run, 1 something would, 2 a wrong call"""

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher sets."""
DEFAULT_PORT = 29500
"""Of the launcher."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the arguments of the command."""
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="of a training: file or preset")
    parser.add_argument("overrides", metavar="key.path=value", nargs="*", help="wins over the file")
    parser.add_argument("--hostfile", type=Path, metavar="H", help="DeepSpeed's: `host slots=N`")
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="of a run on this host alone (default: one a device)",
    )
    parser.add_argument(
        "--master_port",
        "--master-port",
        type=int,
        metavar="PORT",
        help=f"where the processes meet (default: {DEFAULT_PORT})",
    )
    parser.add_argument(
        "--master_addr",
        "--master-addr",
        metavar="ADDRESS",
        help="of the first host (default: as the launcher takes it)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="the longest that a host may take for one answer (60)",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print the rows as JSON")
    how.add_argument("--facts", action="store_true", help="print what this host knows of itself")
    how.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.epilog = _EPILOG


def run(arguments: argparse.Namespace) -> None:
    """Examine, print the table, and exit 1 where something would stop a run."""
    if arguments.serve:
        serve.serve_here()
    elif arguments.facts:
        print(json.dumps(facts.facts(), indent=2))  # noqa: T201
    elif all(name in os.environ for name in LAUNCHED):
        _under_a_launcher(arguments)
    else:
        _over_ssh_or_alone(arguments)


def _over_ssh_or_alone(arguments: argparse.Namespace) -> None:
    if arguments.hostfile is None:
        targets, (commands, secrets, rows) = _this_host(arguments), _here()
    else:
        targets = hostfile.read_hostfile(arguments.hostfile)
        commands, secrets, rows = _over_ssh(targets)
    slots = [target.slots for target in targets]
    request = _request(arguments, sum(slots), rows)
    hosts = ProcessHosts(
        dict(zip((t.name for t in targets), commands, strict=True)), slots, secrets
    )
    try:
        found = fold(Examination(hosts, request).run())
    finally:
        hosts.close()
    _tell(arguments, found, hosts.names)
    sys.exit(exit_code(found))


def _under_a_launcher(arguments: argparse.Namespace) -> None:
    from torch.distributed import DistError

    from lert_ds.doctor import group

    if arguments.hostfile is not None:
        raise ConfigError("--hostfile: leave it out under a launcher, which has started the hosts")
    rank, place = distributed.rank(), f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store = group.meet(arguments.timeout)
    except DistError as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"rank {rank}: no way to the first process at {place} ({first}); let the "
            "hosts reach each other there, or name another --master_port"
        ) from error
    if rank:
        _leave(group.wait_and_answer(store))
    hosts = group.GroupHosts(store, arguments.timeout)
    code = 1
    try:
        rows = [
            Row(
                "processes",
                "FAIL",
                f"rank {rank} did not come to {place}",
                "look at what it said, and at its host",
            )
            for rank in hosts.absent
        ]
        request = _request(arguments, distributed.world_size(), rows, launched=True)
        found = fold(Examination(hosts, request).run())
        _tell(arguments, found, hosts.names)
        code = exit_code(found)
    finally:
        hosts.close(code)
    _leave(code)


def _request(
    arguments: argparse.Namespace, processes: int, rows: list[Row], *, launched: bool = False
) -> Request:
    """Return what is to be examined.

    Raises:
        ConfigError: there is no such configuration.
    """
    plan = None
    if arguments.config is not None:
        command, path = planning.command_of(arguments.config, arguments.overrides)

        def plan() -> planning.Plan:
            seconds = 5 * arguments.timeout  # it loads every library, from a cold disk too
            return planning.plan(command, path, arguments.overrides, processes, seconds)

    port = arguments.master_port
    if port is None:
        port = int(os.environ["MASTER_PORT"]) if launched else DEFAULT_PORT
    return Request(
        folder=str(Path.cwd()),
        port=port,
        address=os.environ["MASTER_ADDR"] if launched else arguments.master_addr,
        plan=plan,
        seconds=arguments.timeout,
        launched=launched,
        rows=rows,
    )


def _this_host(arguments: argparse.Namespace) -> list[hostfile.Target]:
    count = arguments.processes or len(facts.accelerator()["devices"]) or 1
    return [hostfile.Target("localhost", count)]


def _here() -> tuple[list[list[str]], list[str], list[Row]]:
    return [[sys.executable, "-u", *_SERVE]], [], []


_SERVE = ("-m", "lert_ds", "doctor", "--serve")


def _over_ssh(
    targets: Sequence[hostfile.Target],
) -> tuple[list[list[str]], list[str], list[Row]]:
    """Return a command a host, what must not be told, and what is wrong on this side."""
    kind = str(facts.accelerator()["name"])
    home = Path("~").expanduser()
    exports, problems = hostfile.exported_environment(os.environ, home, Path.cwd(), kind)
    command = hostfile.remote_command(exports, Path.cwd(), _SERVE)
    rows = [
        Row(
            "environment file",
            "FAIL",
            f"{place} has no =; the launcher stops there",
            "write NAME=VALUE in every line, without blank lines and comments",
        )
        for place in problems
    ]
    if len(targets) > 1 and shutil.which("pdsh") is None:
        rows.append(
            Row(
                "pdsh",
                "FAIL",
                "not in PATH, the launcher needs it for several hosts",
                "install it (Debian: apt install pdsh), or start with Slurm, torchrun or --no_ssh",
            )
        )
    shown = {exports.get(name, "") for name in facts.SHOWN}
    secrets = [value for value in exports.values() if value and value not in shown]
    return [hostfile.ssh_command(target.name, command) for target in targets], secrets, rows


def _tell(arguments: argparse.Namespace, rows: Sequence[Row], hosts: Sequence[str]) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(as_json(rows) if arguments.json else table(rows, hosts, width), flush=True)  # noqa: T201


def _leave(code: int) -> None:
    sys.stdout.flush()
    os._exit(code)  # threads of the store may wait for a peer that is gone
