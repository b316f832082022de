"""What is known of one host, typed: made from what the probe saw, read by the judges.

None is "not known". Why a tool did not tell stands in `silent`, by the name of its command, so
that a judge can say whether it is missing, hangs or failed. Pure; nothing here asks a host.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.lib.cabling.network import ASKED, Network, read_network
from scripts.lib.cabling.ports import FormatError, Port, parse_ibv_devices, read_ports
from scripts.lib.doctor import mac_text
from scripts.lib.doctor.ask import Raw
from scripts.lib.doctor.processes import OurProcess, living_processes
from server.protocol.domains import parse_count

# What ssh itself says on stderr, which no shell profile printed.
# setlocale is /bin/sh's, for a language that ssh brought along.
SSH_OWN_WORDS = re.compile(
    r"^(Warning: Permanently added|\*\* |Connection to |Pseudo-terminal|.*\bsetlocale: )"
)
TOOLS = {
    "rdma_ctl": "/usr/bin/rdma_ctl",
    "ibv_devices": "/usr/bin/ibv_devices",
    "ibv_devinfo": "/usr/bin/ibv_devinfo",
    "system_profiler": "/usr/sbin/system_profiler",
    "networksetup": "/usr/sbin/networksetup",
    "displays": "/usr/sbin/system_profiler",
    "firewall": "socketfilterfw",
    **{name: argv[0] for name, argv in ASKED.items()},
}


@dataclass(frozen=True)
class Model:
    """A model folder. files: name to a description that is equal for equal content."""

    exists: bool
    files: dict[str, str] = field(default_factory=dict)
    weights: int = 0
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HostFacts:
    """One host; see the module's docstring. Sizes in bytes, sleep in minutes."""

    host: str
    trouble: str = ""
    noise: str = ""
    errors: str = ""
    system: str = ""
    silent: dict[str, str] = field(default_factory=dict)
    python: str | None = None
    machine: str | None = None
    binary: str | None = None  # the program that this Python really runs as
    packages: dict[str, str | None] | None = None
    jaccl: bool | None = None
    evaluated: bool | None = None
    gpu_limit: int | None = None
    split: dict[str, Any] | None = None
    full: dict[str, Any] | None = None  # the same with what needs mlx: formats, KV cache
    models: dict[str, Any] | None = None  # what check_models.py tells
    macos: tuple[str, str] | None = None
    distribution: str = ""
    memory: int | None = None
    wired_limit: int | None = None
    limit_kept: bool | None = None  # whether something sets it at boot
    chip: str = ""
    wired: int | None = None
    sleep: int | None = None
    display_sleep: int | None = None
    displays: int | None = None
    starts_after_power: bool | None = None  # None as well where a Mac has no such setting
    filevault: bool | None = None
    service: bool = False  # ours, which launchd starts at boot
    firewall: mac_text.Firewall | None = None
    homebrew: bool | None = None
    unread: dict[str, str] = field(default_factory=dict)  # plan.folders that are denied, and how
    rdma: str | None = None
    devices: tuple[str, ...] | None = None
    device_ports: dict[str, mac_text.DevicePort] = field(default_factory=dict)
    network: Network | None = None
    thunderbolt: tuple[Port, ...] | None = None
    device_use: dict[str, mac_text.DeviceUse] | None = None
    domains: int | None = None  # protection domains in use, of all devices
    addresses: tuple[str, ...] = ()
    bound: dict[str, str] | None = None
    listeners: dict[int, tuple[int | None, str]] | None = None
    code_exists: bool | None = None
    code: str | None = None
    model: Model | None = None
    processes: tuple[OurProcess, ...] = ()
    disk_free: int | None = None
    open_files: float | None = None  # that a process may have at most; inf: any number
    environment: dict[str, str] | None = None
    heard: tuple[str, ...] | None = None
    listen_error: str = ""
    connections: tuple[dict[str, Any], ...] = ()
    tasks_ran: bool = True  # False: no Python there, so that only the tools were asked

    @property
    def reached(self) -> bool:
        return not self.trouble

    @property
    def is_mac(self) -> bool:
        return self.system == "Darwin"

    def why(self, *commands: str) -> str:
        """Why the first of these commands that is silent did not tell; "" when all did."""
        return next((self.silent[name] for name in commands if name in self.silent), "")

    def hangs(self, command: str) -> bool:
        return self.why(command).endswith(LATE)


LATE = "did not answer in time"
# Commands whose exit code 1 says something.
ONE_IS_AN_ANSWER = (
    "virtual", "getifaddr", "lsof", "check_model", "formats", "limit_kept", "ls",
)  # fmt: skip


def read_facts(raw: Raw) -> HostFacts:
    """The facts of one host. Never fails: what cannot be read is not known."""
    errors = [line for line in raw.errors.splitlines() if not SSH_OWN_WORDS.match(line)]
    base = {
        "host": raw.host,
        "trouble": raw.trouble,
        "noise": raw.noise,
        "errors": "\n".join(line for line in errors if line.strip()),
        "system": raw.system,
    }
    if raw.trouble:
        return HostFacts(**base)
    silent: dict[str, str] = {}
    texts: dict[str, str] = {}
    for name, result in raw.commands.items():
        text, reason = _text_or_reason(name, result)
        if text is not None:
            texts[name] = text
        if reason:
            silent[name] = reason
    for name, result in raw.tasks.items():
        if isinstance(result, dict) and "failed" in result:
            silent[name] = result["failed"]
    tasks = {name: result for name, result in raw.tasks.items() if name not in silent}
    memory, wired_limit = mac_text.parse_sysctl(texts.get("sysctl", ""))
    return HostFacts(
        **base,
        silent=silent,
        tasks_ran=bool(raw.python),
        macos=mac_text.parse_sw_vers(texts.get("sw_vers", "")),
        distribution=mac_text.parse_os_release(texts.get("os-release", "")),
        memory=memory or mac_text.parse_meminfo(texts.get("meminfo", "")),
        wired_limit=wired_limit,
        wired=mac_text.parse_vm_stat(texts.get("vm_stat", "")),
        **_unattended_facts(texts, raw.commands),
        unread=_denied(raw.commands),
        addresses=tuple(
            text.strip() for name, text in texts.items() if name.startswith("getifaddr:")
        ),
        **_python_facts(texts, raw.commands),
        **_thunderbolt_facts(texts, silent),
        **_task_facts(tasks, texts, raw),
    )


def _text_or_reason(name: str, result: Mapping[str, Any]) -> tuple[str | None, str]:
    """What a command printed, and why it is not to be believed."""
    tool = name.partition(":")[0]
    tool = TOOLS.get(tool, tool)
    state = result["state"]
    if state == "late":
        return result.get("out"), f"{tool} {LATE}"
    if state == "missing":
        return None, f"there is no {tool}"
    if state == "refused":
        return None, f"{tool} could not be started: {result.get('err', '')}"
    if result["code"] == 0:
        return result["out"], ""
    if name.startswith(ONE_IS_AN_ANSWER):
        # No such entry, no address, nobody listens, not accepted, not found, denied.
        if name == "virtual":
            return result["out"] + result["err"], ""
        return (None if name.startswith("getifaddr") else result["out"]), ""
    said = mac_text.last_line((result["err"], result["out"]))
    return result["out"], f"{tool} failed: {said or 'exit code ' + str(result['code'])}"


def _python_facts(texts: Mapping[str, str], commands: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    # A start-up file of that Python may print before we do.
    versions = _json(mac_text.last_line([texts.get("versions", "")]))
    if versions:
        names = ("python", "machine", "packages", "binary")
        facts |= {name: versions.get(name) for name in names}
    said: dict[str, Any] = {}
    for line in texts.get("mlx", "").splitlines():
        said |= _json(line)
    facts["jaccl"] = said.get("jaccl")
    facts["gpu_limit"] = said.get("gpu_limit")
    if "mlx" in commands and "jaccl" in said:
        # It came as far as importing MLX, so what is missing after that is the computing.
        facts["evaluated"] = said.get("sum") == 6
    facts["split"] = _json(mac_text.last_line([texts.get("check_model", "")])) or None
    facts["full"] = _json(mac_text.last_line([texts.get("formats", "")])) or None
    facts["models"] = _json(mac_text.last_line([texts.get("check_models", "")])) or None
    return facts


def _unattended_facts(texts: Mapping[str, str], commands: Mapping[str, Any]) -> dict[str, Any]:
    """Of a Mac: what it does by itself, and what it keeps from us."""
    facts: dict[str, Any] = {}
    power = texts.get("pmset", "")
    facts["sleep"] = mac_text.parse_pmset(power)
    facts["display_sleep"] = mac_text.parse_pmset(power, "displaysleep")
    starts = mac_text.parse_pmset(power, "autorestart")
    facts["starts_after_power"] = None if starts is None else starts != 0
    facts["displays"] = mac_text.count_displays(_json(texts.get("displays", "")))
    facts["filevault"] = mac_text.parse_switch(texts.get("fdesetup", ""), "FileVault is")
    facts["service"] = "mlx-cluster.server." in texts.get("daemons", "")
    facts["firewall"] = mac_text.parse_firewall(
        *(texts.get(f"firewall:{part}", "") for part in ("state", "block", "apps"))
    )
    facts["chip"] = mac_text.parse_fields(texts.get("sysctl", "")).get(
        "machdep.cpu.brand_string", ""
    )
    if "limit_kept" in texts:
        facts["limit_kept"] = bool(texts["limit_kept"].strip())
    if "brew" in commands:
        facts["homebrew"] = commands["brew"]["state"] != "missing"
    return facts


DENIALS = ("Operation not permitted", "Permission denied")


def _denied(commands: Mapping[str, Any]) -> dict[str, str]:
    """Of the folders that ls was asked for: why it may not look into one."""
    found = {}
    for name, result in commands.items():
        tool, _, folder = name.partition(":")
        words = [words for words in DENIALS if words in result.get("err", "")]
        if tool == "ls" and words:
            found[folder] = words[0]
    return found


def _thunderbolt_facts(texts: Mapping[str, str], silent: dict[str, str]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if "rdma_ctl" in texts and "rdma_ctl" not in silent:
        facts["rdma"] = texts["rdma_ctl"].strip()
    if "ibv_devices" in texts and "ibv_devices" not in silent:
        facts["devices"] = parse_ibv_devices(texts["ibv_devices"])
    facts["device_ports"] = {}
    for name, text in texts.items():
        port = mac_text.parse_ibv_devinfo(text) if name.startswith("ibv_devinfo:") else None
        if port is not None and name not in silent:
            facts["device_ports"][name.partition(":")[2]] = port
    if "ioclasscount" in texts and "ioclasscount" not in silent:
        facts["domains"] = parse_count(texts["ioclasscount"])
    if "ioreg" in texts and "ioreg" not in silent:
        facts["device_use"] = mac_text.parse_ioreg(texts["ioreg"])
    if {"system_profiler", "networksetup"} <= set(texts) - set(silent):
        try:
            facts["thunderbolt"] = read_ports(
                texts["system_profiler"], texts["networksetup"], texts.get("ibv_devices", "")
            )
        except FormatError as error:
            silent["system_profiler"] = str(error)
    told = {name: texts[name] for name in ASKED if name in texts and name not in silent}
    if "ifconfig" in told:
        facts["network"] = read_network(told, facts.get("thunderbolt", ()))
    return facts


def _task_facts(tasks: Mapping[str, Any], texts: Mapping[str, str], raw: Raw) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if "listeners" in tasks:
        facts["listeners"] = {
            entry["port"]: (entry["pid"], entry["command"]) for entry in tasks["listeners"]
        }
    for name, text in texts.items():
        if name.startswith("lsof:"):
            facts.setdefault("listeners", {})
            for found in mac_text.parse_lsof(text):
                facts["listeners"][int(name.partition(":")[2])] = found
    if "code" in tasks:
        facts["code_exists"] = tasks["code"]["exists"]
        facts["code"] = tasks["code"].get("digest")
    if "model" in tasks:
        model = dict(tasks["model"])
        model["config"] = _json(model.get("config", ""))
        facts["model"] = Model(**model)
    if "ranks" in tasks:
        facts["processes"] = living_processes(tasks["ranks"])
    if "disk" in tasks:
        facts["disk_free"] = tasks["disk"]["free"]
    if "files" in tasks:
        hard = tasks["files"]["hard"]
        facts["open_files"] = math.inf if hard is None else hard
    if "listen" in tasks:
        facts["heard"] = tuple(tasks["listen"]["came"])
        facts["listen_error"] = tasks["listen"]["error"]
    facts["bound"] = tasks.get("addresses")
    facts["environment"] = tasks.get("environment")
    facts["connections"] = tuple(tasks.get("connect", ()))
    return facts


def _json(text: str) -> dict[str, Any]:
    """The object in a text; nothing when there is none."""
    try:
        data = json.loads(text)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
