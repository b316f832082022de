"""What the steps are about: hosts, hostfile, model, settings. Nothing is asked of a host here.

Built once, on the main thread; the model may be named later, and what the hosts are is learnt.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.hosts.find_hostfile import local_hostfiles
from scripts.lib.hosts.hostfile import Hostfile, HostfileError, read_hostfile
from scripts.lib.model.hub_repo import REPO
from server.protocol.settings_table import DEFAULT_HOSTFILE

RING_HOSTFILE = "hostfiles/ring.local.json"  # of make_hostfile.sh --ring-tcp


@dataclass
class Site:
    """model: a folder or a repo, "" until it is named; the first that is loaded, where there are
    several: MODELS and MODELS_DIR name more, which what we start reads for itself. listed: it is
    one of these. model_id: its name in the API, "" for the folder's. python: the ranks'
    interpreter. named_hostfile: what HOSTFILE says. measured: what the benchmark was last run for.
    systems: uname -s of each host, once ssh has told."""

    root: Path
    hosts: tuple[str, ...]
    model: str
    model_id: str
    ring_wanted: bool
    python: str
    named_hostfile: str
    port: int
    key: str
    measured: str
    at_terminal: bool
    systems: Mapping[str, str]
    several: bool = False
    listed: bool = False

    @property
    def ring_tcp(self) -> bool:
        """Over the ordinary network: it was asked for, or there are hosts without Thunderbolt."""
        return self.ring_wanted or bool(set(self.systems.values()) - {"Darwin"})

    @property
    def hostfile(self) -> Path:
        """The file that is there for the scripts to find, else the one that will be written."""
        if self.named_hostfile:
            return Path(os.path.abspath(self.named_hostfile))
        usual = self.root / (RING_HOSTFILE if self.ring_tcp else DEFAULT_HOSTFILE)
        found = local_hostfiles(self.root)
        return found[0] if len(found) == 1 and not usual.exists() else usual

    def read_hostfile(self, path: Path | None = None) -> Hostfile | None:
        """What is in it, or in another; None if it is not there, or wrong."""
        try:
            return read_hostfile(path or self.hostfile)
        except (OSError, HostfileError):
            return None

    @property
    def model_dir(self) -> Path | None:
        """Where the model is or will be, the same on every host; None if nobody has named one."""
        if not self.model:
            return None
        if is_repo(self.model):
            return self.root / "models" / self.model.partition("/")[2]
        return Path(os.path.abspath(self.model))

    @property
    def settings(self) -> dict[str, str]:
        """What goes with every script that starts ranks."""
        if self.listed or not self.model_dir:
            return self.hostfile_setting
        return self.hostfile_setting | {"MODEL_DIR": self.short(self.model_dir)}

    @property
    def hostfile_setting(self) -> dict[str, str]:
        """Nothing where the scripts find it by themselves."""
        found = self.hostfile == self.root / DEFAULT_HOSTFILE
        if found or not self.named_hostfile and local_hostfiles(self.root) == [self.hostfile]:
            return {}
        return {"HOSTFILE": self.short(self.hostfile)}

    def short(self, path: Path) -> str:
        """As it is called in the checkout, if it is in there: commands are run there."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    @property
    def what_is_measured(self) -> str:
        return " ".join([*self.hosts, str(self.model_dir)])


def is_repo(model: str) -> bool:
    """A Hugging Face repo, and no folder that is here."""
    return not os.path.isdir(model) and bool(REPO.fullmatch(model))


def model_problem(model: str) -> str:
    """Why it is neither, or nothing."""
    if os.path.isdir(model) or REPO.fullmatch(model):
        return ""
    return f"'{model}': must be a folder that is here, or a Hugging Face repo (ORG/NAME)"
