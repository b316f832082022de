"""Invented Macs for the doctor: a directory each, with stubs of macOS's tools at their own paths.

The real probe.py looks at them, with that directory before every path, so everything but the
machine itself is real. A stub prints what the tool prints on a healthy Mac until a test changes
it:

    cluster = Macs(tmp_path, mesh(["studio-1", "studio-2"]))
    cluster["studio-2"].say("rdma_ctl", "disabled\\n")
    cluster.findings()

The formats are the documented ones; names, addresses and identifiers are invented.
"""

import json
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from scripts.lib.cabling.cabling import cables, matrix
from scripts.lib.cabling.network import ASKED
from scripts.lib.cabling.pings import PING, Pings, ping_far_ends
from scripts.lib.cabling.ports import read_ports
from scripts.lib.doctor import checks, probe
from scripts.lib.doctor.ask import Raw, make_job
from scripts.lib.doctor.cluster import Cluster
from scripts.lib.doctor.commands import PACKAGES
from scripts.lib.doctor.facts import read_facts
from scripts.lib.doctor.findings import FAIL, WARN, Finding
from scripts.lib.doctor.plan import Plan
from scripts.lib.hosts.hostfile import Host, Hostfile
from scripts.lib.hosts.on_hosts import Answer
from tests.support.wiring import Wiring

CHECKOUT = "/opt/cluster"
PYTHON = f"{CHECKOUT}/.venv/bin/python"
MODEL = "/models/big-4bit"
GIB = 1 << 30
MIB = 1 << 20
HANGS_S = 0.4  # what a tool that never answers gets in these tests

# Where a tool is, and how it knows what it is asked about.
STUBS = {
    "sw_vers": ("/usr/bin/sw_vers", "*"),
    "sysctl": ("/usr/sbin/sysctl", "*"),
    "limit_kept": ("/usr/bin/grep", "*iogpu.wired_limit_mb*"),
    "displays": ("/usr/sbin/system_profiler", "'SPDisplaysDataType -json'"),
    "fdesetup": ("/usr/bin/fdesetup", "status"),
    "daemons": ("/bin/ls", "/Library/LaunchDaemons"),
    "ls": ("/bin/ls", "{}"),
    "firewall": ("/usr/libexec/ApplicationFirewall/socketfilterfw", "{}"),
    "brew": ("/opt/homebrew/bin/brew", "--prefix"),
    "vm_stat": ("/usr/bin/vm_stat", "*"),
    "pmset": ("/usr/bin/pmset", "-g"),
    "rdma_ctl": ("/usr/bin/rdma_ctl", "status"),
    "ibv_devices": ("/usr/bin/ibv_devices", "*"),
    "ibv_devinfo": ("/usr/bin/ibv_devinfo", "'-v -d {}'"),
    "ifconfig": ("/sbin/ifconfig", "-a"),
    "services": ("/usr/sbin/networksetup", "-listnetworkserviceorder"),
    "virtual": ("/usr/libexec/PlistBuddy", "'-c Print '*"),
    "arp": ("/usr/sbin/arp", "-an"),
    "ping": ("/sbin/ping", "*' -b {}'"),
    "networksetup": ("/usr/sbin/networksetup", "-listallhardwareports"),
    "system_profiler": ("/usr/sbin/system_profiler", "'SPThunderboltDataType -json'"),
    "ioclasscount": ("/usr/sbin/ioclasscount", "AppleThunderboltRDMAProtectionDomain"),
    "ioreg": ("/usr/sbin/ioreg", "*"),
    "getifaddr": ("/usr/sbin/ipconfig", "'getifaddr {}'"),
    "lsof": ("/usr/sbin/lsof", "*'-iTCP:{} '*"),
    "ps": ("/bin/ps", "*'-p {} '*"),
    "versions": (PYTHON, "*,mlx-lm,*"),
    "mlx": (PYTHON, "*mlx.core*"),
    "formats": (PYTHON, "*lib.model.check_model*' --full'"),
    "check_model": (PYTHON, "*lib.model.check_model*"),
}
BINARY = (
    "/opt/homebrew/Cellar/python@3.12/3.12.4/Frameworks/Python.framework/Versions/3.12/Resources/"
    "Python.app/Contents/MacOS/Python"
)
# What a tool is asked for where its command's name says it in other words.
ABOUT = {
    "ls:checkout": CHECKOUT,
    "ls:python": f"{CHECKOUT}/.venv/bin",
    "ls:model": MODEL,
    "firewall:state": "--getglobalstate",
    "firewall:block": "--getblockall",
    "firewall:apps": "--listapps",
}
_SEEN: dict[str, dict] = {}
CONFIG = {
    "model_type": "llama",
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}


class Mac:
    """One of them. answers: command name to (text, exit code); None is a tool that hangs."""

    def __init__(self, root: Path, answers: dict[str, tuple[str, int] | None]):
        self.root = root
        self.answers = answers
        self.model = root / MODEL.lstrip("/")
        self.own_files = False
        self.write(f"{CHECKOUT}/server/engine.py", "step = 1\n")
        self.write(f"{CHECKOUT}/requirements.txt", "mlx==0.32.4\n")
        self.own_files = False

    def write(self, path: str, text: str) -> Path:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        self.own_files = True
        return file

    def lose_model(self) -> None:
        self.model.unlink()
        self.own_files = True

    def say(self, command: str, text: str, code: int = 0) -> None:
        assert command in self.answers
        self.answers[command] = (text, code)

    def edit(self, command: str, old: str, new: str) -> None:
        text, code = self.answers[command]
        assert old in text
        self.answers[command] = (text.replace(old, new), code)

    def hang(self, command: str, first: str = "") -> None:
        """It never returns; `first` is printed before."""
        self.answers[command] = (first, None)

    def remove(self, tool: str) -> None:
        for command in [name for name in self.answers if name.partition(":")[0] == tool]:
            del self.answers[command]

    def rank(self, number: int, run_id: str, pid: int, command: str | None = None) -> None:
        """A pid file, and a process of that pid."""
        self.write(f"{CHECKOUT}/run/8080/rank-{number}.pid", f"{pid}\n{run_id}\n")
        command = command or f"{PYTHON} openai_cluster_server.py --run-dir /r --run-id {run_id}"
        self.answers[f"ps:{pid}"] = (f"02-11:00:00 {command}\n", 0)

    def listens(self, port: int, program: str, pid: int) -> None:
        table = "COMMAND   PID   USER   FD   TYPE DEVICE SIZE/OFF NODE NAME\n"
        line = f"{program} {pid} alex 12u IPv4 0x1 0t0 TCP *:{port} (LISTEN)\n"
        self.say(f"lsof:{port}", table + line)

    def build(self) -> None:
        """Write the stubs."""
        cases: dict[str, list[str]] = {}
        for command, (text, code) in self.answers.items():
            tool, _, about = command.partition(":")
            path, pattern = STUBS[tool]
            ends = "exec sleep 30" if code is None else f"exit {code}"
            pattern = pattern.format(ABOUT.get(command, about))
            stream = " >&2" if tool == "ls" and code else ""
            line = f"  {pattern}) printf %s {shlex.quote(text)}{stream}; {ends} ;;"
            cases.setdefault(path, []).append(line)
        for path, lines in cases.items():
            script = "\n".join(["#!/bin/sh", 'case "$*" in', *lines, "esac", "exit 1", ""])
            file = self.root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(script)
            file.chmod(0o755)


class Macs:
    """All of them, cabled as `wiring` says, with the hostfile that fits."""

    def __init__(self, directory: Path, wiring: Wiring, backend: str = "jaccl", **plan):
        self.wiring = wiring
        names = tuple(wiring.names)
        wiring.address_ports()
        self.models = directory / "models"
        write_model(self.models)
        rdma = backend != "ring"
        ports = {name: _ports(wiring, name) for name in names}
        rows = matrix(names, cables(ports)) if rdma else [() for _ in names]
        addresses = tuple((f"192.0.2.{10 + place}",) for place in range(len(names)))
        self.plan = Plan(
            ranks=names,
            asked=names,
            checks=frozenset(checks.NAMES),
            backend=backend,
            local=False,
            checkout=CHECKOUT,
            python=PYTHON,
            http_port=8080,
            cluster_ports=tuple(
                (32323 + place,) if place == 0 or not rdma else () for place in range(len(names))
            ),
            addresses=addresses,
            hostfile=Hostfile(
                tuple(map(Host, names, addresses, rows)),
                backend,
                (),
            ),
            hostfile_name="studio.local.json",
            model_dir=MODEL,
            pins={"mlx": "0.32.4"},
            deadline_s=60,
        )
        self.macs = {
            name: Mac(directory / name, healthy(self.plan, wiring, name)) for name in names
        }
        for mac in self.macs.values():
            mac.model.parent.mkdir(parents=True)
            mac.model.symlink_to(self.models)

    def __getitem__(self, name: str) -> Mac:
        return self.macs[name]

    def __iter__(self):
        return iter(self.macs.values())

    def own_model(self, name: str) -> Path:
        """A copy of the model for this Mac alone."""
        self[name].lose_model()
        write_model(self[name].model)
        return self[name].model

    def change(self, **plan) -> None:
        self.plan = replace(self.plan, **plan)

    def change_row(self, name: str, change: Callable[[list], list]) -> None:
        """Another row of the rdma matrix for this host."""
        hosts = [
            replace(host, rdma=tuple(change(list(host.rdma)))) if host.ssh == name else host
            for host in self.plan.hostfile.hosts
        ]
        self.change(hostfile=replace(self.plan.hostfile, hosts=tuple(hosts)))

    def look(self) -> Cluster:
        """Build all, run the probe on each, read what it saw; then ping over the cables."""
        cluster = Cluster(self.plan, {raw.host: read_facts(raw) for raw in self.raws()})
        return replace(cluster, pings=self.ping_far_ends(cluster.networks, cluster.used))

    def raws(self) -> list[Raw]:
        """What the probe saw on each."""
        # What a directory cannot stand for is left to the tests with real sshd.
        needed = checks.needed(self.plan) - {"listen", "connect", "addresses"}
        job = make_job(self.plan, needed) | {"root": "", "system": "Darwin"}
        raws = []
        for place, name in enumerate(self.plan.asked):
            mac = self[name]
            commands = job["hosts"][place]["commands"]["Darwin"]
            for command in [name for name, (_, code) in mac.answers.items() if code is None]:
                commands[command] = (commands[command][0], HANGS_S)
            answer = _collect(mac, job, place)
            found = answer["system"], PYTHON, answer["commands"], answer["tasks"]
            raws.append(Raw(name, "", "", "", *found))
        return raws

    def ping_far_ends(self, networks, links, **how) -> Pings:
        return ping_far_ends(networks, links, run=self._ping, **how)

    def _ping(self, hosts, command, *, within_s, stdin) -> list[Answer]:
        """The program that is sent, with the tools of each Mac in place of this machine's."""
        answers = []
        for host in hosts:
            self[host].build()  # One that was like another was not asked, and has no stubs yet.
            root = self[host].root
            text = stdin.decode()
            for tool in (PING[0], ASKED["arp"][0]):
                text = text.replace(f"{tool} ", f"{root}{tool} ")
            answers.append(_answer(host, [*command(host)], text))
        return answers

    def rewire(self) -> None:
        """All Macs say what the wiring says by now of interfaces, services and neighbours."""
        tools = ("ifconfig", "services", "virtual", "arp", "ping", "ibv_devinfo")
        for name, mac in self.macs.items():
            said = healthy(self.plan, self.wiring, name)
            for tool in tools:
                mac.remove(tool)
            mac.answers |= {t: said[t] for t in said if t.partition(":")[0] in tools}

    def findings(self) -> list[Finding]:
        """The warnings and failures."""
        found = checks.judge(self.look())
        return [finding for finding in found if finding.verdict in (WARN, FAIL)]


def _collect(mac: Mac, job: dict, place: int) -> dict:
    """What the probe sees there. Macs that are alike in all are looked at once."""
    host = job["hosts"][place]
    asked = [job["tasks"], job["model_dir"], host["commands"], host["ports"]]
    key = repr([sorted(mac.answers.items()), asked])
    if mac.own_files or key not in _SEEN:
        mac.build()
        answer = probe.collect(job | {"root": str(mac.root)}, place)
        if mac.own_files:
            return answer
        _SEEN[key] = answer
    return _SEEN[key]


def healthy(plan: Plan, wiring: Wiring, name: str) -> dict[str, tuple[str, int] | None]:
    """What each tool prints on a Mac that is well."""
    place = plan.ranks.index(name)
    answers = {
        "sw_vers": "ProductName:\t\tmacOS\nProductVersion:\t\t26.3\nBuildVersion:\t\t25D125\n",
        "sysctl": sysctl(512),
        "vm_stat": vm_stat(6),
        "pmset": "System-wide power settings:\nCurrently in use:\n standby              0\n"
        " sleep                0 (sleep prevented by sharingd)\n displaysleep         10\n"
        " Sleep On Power Button 1\n autorestart          1\n",
        "displays": displays(0),
        "fdesetup": "FileVault is Off.\n",
        "daemons": "com.example.agent.plist\n",
        "ls:checkout": "server\n",
        "ls:python": "python\n",
        "ls:model": "config.json\n",
        "firewall:state": "Firewall is enabled. (State = 1)\n",
        "firewall:block": "Firewall has block all state set to disabled.\n",
        "firewall:apps": firewall_apps(allow=BINARY),
        "brew": "/opt/homebrew\n",
        "getifaddr:en0": f"192.0.2.{10 + place}\n",
        "versions": json.dumps(
            {
                "binary": BINARY,
                "python": "3.12.4",
                "machine": "arm64",
                "system": "darwin",
                "packages": dict.fromkeys(PACKAGES, "1.0") | {"mlx": "0.32.4"},
            }
        ),
        "mlx": '{"jaccl": true}\n{"sum": 6.0}\n{"gpu_limit": null}\n',
        "formats": '{"reasons": [], "kv": [], "formats": {"calls": "llama-3", '
        '"calls_by": "template", "thinking": "none", "template": []}}\n',
        "check_model": '{"model_type": "llama", "ok": true, "rank_counts": [1, 2, 4, 8], '
        '"reasons": [], "arrangement": "tensor", "ways": ["tensor"]}\n',
    }
    found = {command: (text, 0) for command, text in answers.items()}
    found["getifaddr:en1"] = found["limit_kept"] = ("", 1)
    for port in plan.ports_on(name):
        found[f"lsof:{port}"] = ("", 1)
    if plan.rdma:
        texts = wiring.texts(name)
        for tool in ("rdma_ctl", "ibv_devices", "networksetup", "system_profiler"):
            found[tool] = (texts[tool], 0)
        for tool in ("ifconfig", "services", "arp"):
            found[tool] = (texts[tool], 0)
        found["virtual"] = (texts["virtual"], int("Does Not Exist" in texts["virtual"]))
        found["ioclasscount"] = (domains(0), 0)
        found["ioreg"] = (ioreg({device: (0, []) for device in plan.devices(name)}), 0)
        for port, address, answers in wiring.pings(name):
            found[f"ping:{port} {address}"] = ("", 0 if answers else 2)
        for device in plan.devices(name):
            found[f"ibv_devinfo:{device}"] = (devinfo(wiring, name, device), 0)
    return found


def _answer(host: str, command: list[str], text: str) -> Answer:
    ran = subprocess.run(command, input=text, capture_output=True, text=True, timeout=240)
    return Answer(host, ran.returncode, ran.stdout, ran.stderr, 0.0)


def _ports(wiring: Wiring, name: str):
    texts = wiring.texts(name)
    return read_ports(texts["system_profiler"], texts["networksetup"], texts["ibv_devices"])


def devinfo(
    wiring: Wiring, name: str, device: str, *, up: bool | None = None, mapped: bool = True
) -> str:
    """`ibv_devinfo -v -d DEVICE`: active when cabled at full speed to a Mac with RDMA."""
    port = next(port for port in _ports(wiring, name) if f"rdma_{port.interface}" == device)
    if up is None:
        up = port.peer is not None and port.speed_gbps >= 80
    state = "PORT_ACTIVE (4)" if up else "PORT_DOWN (1)"
    lines = [
        f"hca_id:\t{device}",
        "\ttransport:\t\t\tThunderbolt (100)",
        "\tmax_qp:\t\t\t\t10",
        "\tmax_mr:\t\t\t\t100",
        "\t\tport:\t1",
        f"\t\t\tstate:\t\t\t{state}",
        "\t\t\tlink_layer:\t\tThunderbolt",
        "\t\t\tGID[  0]:\t\tfe80::34aa:ff:fe00:1",
    ]
    addresses = wiring.addresses[name].get(port.interface)
    if mapped and addresses:
        lines.append(f"\t\t\tGID[  1]:\t\t::ffff:{str(addresses).partition('/')[0]}")
    return "\n".join([*lines, ""])


def sysctl(memory_gib: int, limit_mb: int = 0, chip: str = "Apple M3 Ultra") -> str:
    return (
        f"hw.memsize: {memory_gib * GIB}\niogpu.wired_limit_mb: {limit_mb}\n"
        f"machdep.cpu.brand_string: {chip}\n"
    )


def displays(count: int) -> str:
    """`system_profiler SPDisplaysDataType -json`; without one the list of them is not there."""
    card: dict = {"_name": "Apple M3 Ultra", "sppci_cores": "80", "sppci_model": "Apple M3 Ultra"}
    if count:
        screen = {"_name": "Studio Display", "spdisplays_online": "spdisplays_yes"}
        card["spdisplays_ndrvs"] = [screen] * count
    return json.dumps({"SPDisplaysDataType": [card]})


def firewall_apps(**verdicts: str) -> str:
    """`socketfilterfw --listapps`: allow=PATH, block=PATH."""
    entries = [
        f"{place} : {path} \n \t ( {verdict.capitalize()} incoming connections ) \n"
        for place, (verdict, path) in enumerate(verdicts.items(), start=1)
    ]
    return "\n".join([f"Total number of apps = {len(entries)} \n", *entries])


def vm_stat(wired_gib: float) -> str:
    pages = int(wired_gib * GIB / 16384)
    head = "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
    return (
        f"{head}Pages free:                               100.\nPages wired down:       {pages}.\n"
    )


def domains(count: int) -> str:
    """`ioclasscount AppleThunderboltRDMAProtectionDomain`."""
    return f"AppleThunderboltRDMAProtectionDomain = {count}\n"


def ioreg(devices: dict[str, tuple[int, list[tuple[int, str]]]]) -> str:
    """Device to its number of queue pairs and the processes that have it open."""
    lines = []
    for device, (pairs, holders) in devices.items():
        interface = device.removeprefix("rdma_")
        lines += [
            "+-o AppleThunderboltIPPort  <class AppleThunderboltIPPort, id 0x1, registered>",
            '  | {\n  |   "IOLinkStatus" = 3\n  | }',
            f"  +-o {interface}  <class IOEthernetInterface, id 0x2, registered>",
            f"    +-o {device}  <class AppleThunderboltRDMAInterface, id 0x3, registered>",
            '      | {\n      |   "node_guid" = "0000:0000:0000:0001"\n      | }',
        ]
        for pid, program in holders:
            lines += [
                "      +-o IORDMAFamilyUC  <class IORDMAFamilyUC, id 0x4, !registered>",
                f'      |   "IOUserClientCreator" = "pid {pid}, {program}"',
            ]
        lines += [
            "      +-o AppleThunderboltRDMAQueuePair  <class AppleThunderboltRDMAQueuePair, id 0x5>"
        ] * pairs
    return "\n".join([*lines, ""])


def write_model(folder: Path, gib: int = 200) -> None:
    """Two shards that are as large as they say and take no room, and the small files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    for number in (1, 2):
        shard = folder / f"model-{number:05d}-of-00002.safetensors"
        shard.write_bytes((2).to_bytes(8, "little") + b"{}")
        with shard.open("rb+") as file:
            file.truncate(gib * GIB // 2)
