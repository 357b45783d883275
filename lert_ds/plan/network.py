"""How long collectives take over nodes of several devices: bandwidth and latency.

Ring algorithms (Patarasu and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of
workstations"): over n processes each sends and receives, of S bytes, (n - 1) / n · S in a
reduce-scatter or an all-gather, and twice that in an all-reduce, which no algorithm undercuts. Over
nodes they are hierarchical: within a node each device has a share to send on, so that the links
between nodes carry each byte once a node; both phases are pipelined, and the slower one counts.
"""

import math
import re
from dataclasses import dataclass

from lert_ds.errors import ConfigError
from lert_ds.plan.hardware import Device

BETWEEN_SHARE = 0.85
"""Of the bandwidth between nodes that a long collective reaches. Assumed."""
WITHIN_LATENCY_SECONDS = 3e-6
"""Of one hop within a node. Assumed."""
BETWEEN_LATENCY_SECONDS = 8e-6
"""Of one hop between nodes. Assumed."""

_INTERCONNECT = re.compile(r"(?:(\d+)x)?(\d+(?:\.\d+)?)(gbit|gbyte)")


def parse_interconnect(text: str) -> float:
    """Return the bytes a second, one direction, of a node's way to the others.

    `400gbit` is one port of 400 Gbit/s a node, `8x400gbit` are eight, `50gbyte` is 50 GB/s.

    Raises:
        ConfigError: it is written otherwise.
    """
    match = _INTERCONNECT.fullmatch(text.lower())
    bits = 0.0
    if match is not None:
        bits = int(match[1] or 1) * float(match[2]) * (8 if match[3] == "gbyte" else 1)
    if not bits:
        raise ConfigError(
            f"--interconnect {text}: write what a node has, as 400gbit, 8x400gbit or 50gbyte"
        )
    return bits / 8 * 1e9


@dataclass(frozen=True)
class Network:
    """Devices that train together."""

    gpus: int
    per_node: int
    within: float
    """Bytes a second, one direction, that a device reaches to the others of its node."""
    between: float
    """Bytes a second, one direction, that a node reaches to the others."""
    collective_seconds: float
    """To start one collective."""

    @property
    def nodes(self) -> int:
        """Return how many nodes there are."""
        return -(-self.gpus // self.per_node)

    def all_reduce(self, size: float, messages: float = 1.0) -> float:
        """Return the seconds to add up `size` bytes over all devices, in so many messages.

        Twice a reduce-scatter, but a tree's latency where that is less (NCCL 2.4 and later).
        """
        if self.gpus == 1:
            return 0.0
        hops = min(self._hops(), self._tree_hops())
        return 2 * self._bandwidth(size) + messages * (2 * hops + self.collective_seconds)

    def all_gather(self, size: float, messages: float = 1.0) -> float:
        """Return the seconds until every device has all of `size` bytes, of which it has a share.

        A reduce-scatter takes as long.
        """
        if self.gpus == 1:
            return 0.0
        return self._bandwidth(size) + messages * (self._hops() + self.collective_seconds)

    def _bandwidth(self, size: float) -> float:
        """Return the seconds that (n - 1) / n of `size` bytes take, the slower phase."""
        inside = min(self.gpus, self.per_node)
        times = [(inside - 1) / inside * size / self.within]
        if self.nodes > 1:
            times.append((self.nodes - 1) / self.nodes * size / self.between)
        return max(times)

    def _hops(self) -> float:
        inside = min(self.gpus, self.per_node)
        between = (self.nodes - 1) * BETWEEN_LATENCY_SECONDS
        return (inside - 1) * WITHIN_LATENCY_SECONDS + between

    def _tree_hops(self) -> float:
        inside = min(self.gpus, self.per_node)
        between = math.ceil(math.log2(self.nodes)) * BETWEEN_LATENCY_SECONDS
        return (inside - 1) * WITHIN_LATENCY_SECONDS + between


def network_of(device: Device, gpus: int, per_node: int, interconnect: str | None) -> Network:
    """Return `gpus` devices in nodes of `per_node`, joined as `--interconnect` says.

    Raises:
        ConfigError: the counts do not fit, or nodes have to be joined and it is not said how.
    """
    for flag, value in (("--gpus", gpus), ("--gpus-per-node", per_node)):
        if value < 1:
            raise ConfigError(f"{flag} {value}: must be 1 or more")
    if gpus > per_node and gpus % per_node:
        raise ConfigError(
            f"--gpus {gpus}: no multiple of the {per_node} devices a node (--gpus-per-node)"
        )
    if gpus > per_node and interconnect is None:
        raise ConfigError(
            f"--gpus {gpus} are {gpus // per_node} nodes of {per_node}: say what joins them, as "
            "--interconnect 400gbit (a node), or --gpus-per-node"
        )
    between = parse_interconnect(interconnect) * BETWEEN_SHARE if interconnect else 0.0
    return Network(gpus, per_node, device.link_rate(), between, device.collective_seconds)
