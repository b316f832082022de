"""Invented Macs, their cables, and what their tools answer."""

from scripts.lib.cabling.advice import advise
from scripts.lib.cabling.plan import make_plan
from scripts.lib.cabling.survey import Facts, read_facts
from tests.support.paths import ROOT
from tests.support.wiring import Wiring

SCRIPT = ROOT / "scripts" / "make_hostfile.sh"
NAMES = [f"studio-{i}" for i in range(1, 13)]


def answer(sections: dict[str, tuple[str, int]]) -> str:
    """What the program prints on a host, with the profile's noise before it."""
    said = (
        f"@@cabling begin {name}\n{text}\n@@cabling end {name} {code}\n"
        for name, (text, code) in sections.items()
    )
    return "Welcome!\n" + "".join(said)


def sections_of(wiring: Wiring, name: str) -> dict[str, tuple[str, int]]:
    texts = wiring.texts(name)
    return {
        "system": ("Darwin\n", 0),
        "profiler": (texts["system_profiler"], 0),
        "hardware": (texts["networksetup"], 0),
        "ifconfig": (texts["ifconfig"], 0),
        "services": (texts["services"], 0),
        "virtual": (texts["virtual"], int("Does Not Exist" in texts["virtual"])),
        "arp": (texts["arp"], 0),
        "rdma": (texts["rdma_ctl"], 0),
        "devices": (texts["ibv_devices"], 0),
    }


def facts_of(wiring: Wiring, names: list[str] | None = None) -> dict[str, Facts]:
    return {
        name: read_facts(name, answer(sections_of(wiring, name))) for name in names or wiring.names
    }


def said(wiring: Wiring, topology: str | None = None) -> list[str]:
    """What is said of a cabling, each finding as severity and text."""
    facts = facts_of(wiring)
    found = advise(facts, make_plan(facts, topology), topology)
    return [f"{finding.severity}: {finding.text}" for finding in found]


def healthy(wiring: Wiring) -> Wiring:
    return wiring.address_ports()
