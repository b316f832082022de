"""What is to be launched and where, as the run script would do it. Made once, then only read."""

import posixpath
import shlex
from dataclasses import dataclass, field

from scripts.lib.hosts.hostfile import Hostfile, ssh_name_problem
from server.protocol.domains import MOST


@dataclass(frozen=True)
class Plan:
    """ranks holds the ssh name of each rank; a host can hold several ranks of a ring.

    asked: the hosts to look at, each once, in rank order. checks: the names of the checks asked
    for. hostfile: None with --local, and for hosts that were named and have none yet. addresses[i]:
    where rank i can be reached by the other ranks, first the one used most.
    hostfile_name: its path, from the checkout if it is in there.
    cluster_ports[i]: the TCP ports on which rank i listens for the others. python, checkout and
    model_dir are the same absolute paths on every host. listed: MODEL_DIR, MODEL_ID, MODELS,
    MODELS_DIR and PINNED as they are set; model_dir is the first of these, where that is known.
    pins: package to version as pinned.
    """

    ranks: tuple[str, ...]
    asked: tuple[str, ...]
    checks: frozenset[str]
    backend: str
    local: bool
    checkout: str
    python: str
    http_port: int
    cluster_ports: tuple[tuple[int, ...], ...]
    addresses: tuple[tuple[str, ...], ...] = ()
    hostfile: Hostfile | None = None
    hostfile_name: str = ""
    model_dir: str | None = None
    listed: tuple[str, ...] = ("",) * 5
    models_gb: float | None = None
    draft_model_dir: str | None = None  # on the host of rank 0
    parallel: str = "auto"
    trust_remote_code: bool = False
    kv_budget_gb: float | None = None
    kv_bits: str = "off"  # as KV_BITS
    kv_bits_from: int = 0
    context_max: int | None = None
    fast_synch: str = ""
    domains: int = MOST  # protection domains of a Mac; 0: not counted
    pins: dict[str, str] = field(default_factory=dict)
    code: str | None = None
    deadline_s: float = 60.0

    @property
    def several(self) -> bool:
        """Whether more than one model may be served."""
        return bool(self.listed[2] or self.listed[3])

    @property
    def pinned(self) -> frozenset[str]:
        return frozenset(self.listed[4].split(","))

    @property
    def rdma(self) -> bool:
        """JACCL: Macs, Thunderbolt, RDMA."""
        return self.backend.startswith("jaccl")

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every host once, in rank order, asked or not."""
        return tuple(dict.fromkeys(self.ranks))

    @property
    def rank0(self) -> str:
        return self.ranks[0]

    @property
    def make_hostfile(self) -> str:
        """The command that writes this hostfile anew from the cabling."""
        kind = {"jaccl-ring": ["--topology ring"], "ring": ["--ring-tcp"]}.get(self.backend, [])
        place = [f"--output {shlex.quote(self.hostfile_name)}", "--force"] * bool(self.hostfile)
        hosts = ("HOST...",) if any(map(ssh_name_problem, self.hosts)) else self.hosts
        return " ".join(["scripts/make_hostfile.sh", *kind, *place, *hosts])

    @property
    def folders(self) -> dict[str, str]:
        """The folders that every rank has to read, by what is in them."""
        found = {"checkout": self.checkout, "python": posixpath.dirname(self.python)}
        more = {"model": self.model_dir, "models": self.listed[3]}
        return found | {name: path for name, path in more.items() if path}

    def ranks_on(self, host: str) -> list[int]:
        return [rank for rank, name in enumerate(self.ranks) if name == host]

    def row(self, host: str) -> dict[str, tuple[str, ...]]:
        """The devices of this host by the host that they lead to, as the hostfile has it."""
        if self.hostfile is None or not self.rdma:
            return {}
        cells = self.hostfile.hosts[self.ranks.index(host)].rdma
        return {
            peer: cell
            for peer, cell in zip(self.ranks, cells, strict=False)
            if cell and peer != host
        }

    def devices(self, host: str) -> tuple[str, ...]:
        """The RDMA devices that the hostfile names for this host, each once."""
        return tuple(dict.fromkeys(name for cell in self.row(host).values() for name in cell))

    def ports_on(self, host: str) -> tuple[int, ...]:
        """The TCP ports that ranks of this host will listen on."""
        ports = [port for rank in self.ranks_on(host) for port in self.cluster_ports[rank]]
        return (*ports, self.http_port) if host == self.rank0 else tuple(ports)
