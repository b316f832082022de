"""Whether the checkout can be where it is on every host, asked of real sshd's."""

import pytest

from scripts.lib.setup.look import HOLDS, STUCK
from scripts.lib.setup.look_hosts import place, ssh
from scripts.lib.setup.site import Site


@pytest.fixture
def make_site(nodes, tmp_path, monkeypatch):
    """Its checkout is this machine's, and node-1's; the others have a folder of their own there."""
    monkeypatch.setenv("PATH", nodes.env["PATH"])
    root = tmp_path / "Jörg's checkout"
    (root / "scripts").mkdir(parents=True)
    (root / "scripts" / "run_openai_cluster_server.sh").touch()
    nodes.shadow(root)

    def make(*hosts: str) -> Site:
        return Site(
            root=root, hosts=hosts, model="", model_id="", ring_wanted=False, python="",
            named_hostfile="", port=8080, key="", measured="", at_terminal=False, systems={},
        )  # fmt: skip

    return make


def test_an_empty_folder_of_our_own_will_do(make_site):
    found = place(make_site("node-1", "node-2"))
    assert (found.verdict, found.hosts) == (HOLDS, {})


def test_the_first_host_must_be_this_machine(make_site):
    found = place(make_site("node-2", "node-1"))
    assert found.verdict == STUCK
    assert found.words == "node-2: it is not this machine: name first the one where this runs"


def test_all_that_is_wrong_is_said_host_by_host(make_site, nodes):
    site = make_site("node-1", "node-2", "node-3", "node-4")
    (nodes["node-2"].view(site.root) / "precious").touch()
    nodes["node-3"].profile("Welcome!\n")
    nodes["node-4"].down()
    found = place(site)
    assert found.verdict == STUCK and len(found.words.splitlines()) == 3
    assert f"node-2: {site.root} is there and is no checkout" in found.words
    assert "node-3: its shell prints by itself ('Welcome!')" in found.words
    assert "node-4: cannot be reached: " in found.words

    found = ssh(site)
    assert found.verdict == STUCK
    assert "node-3: its shell prints by itself (Welcome! ...)" in found.words
    assert "node-4: ssh: connect to host 127.0.0.1" in found.words
    assert site.systems == {}
