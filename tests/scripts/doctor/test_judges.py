"""What the stubs cannot show: other answers of ssh, of the network and of other machines."""

import shlex
from dataclasses import replace

import pytest

from scripts.lib.doctor import checks, judge_memory, judge_model, judge_software
from scripts.lib.doctor.commands import python_commands
from scripts.lib.doctor.facts import HostFacts
from scripts.lib.doctor.findings import FAIL, WARN
from scripts.lib.doctor.mac_text import Firewall, parse_firewall
from scripts.lib.hosts.on_hosts import KEY_CHANGED
from tests.support.machines import BINARY, Macs
from tests.support.wiring import Wiring, mesh

GB = 10**9


@pytest.fixture
def looked(tmp_path):
    return Macs(tmp_path, mesh(["studio-1", "studio-2"])).look()


def bad(cluster) -> list:
    return [f for f in checks.judge(cluster) if f.verdict in (FAIL, WARN)]


def changed(cluster, host: str, **facts):
    """The cluster with other facts of one host."""
    return replace(cluster, facts={**cluster.facts, host: replace(cluster.facts[host], **facts)})


@pytest.mark.parametrize(
    ("trouble", "fix"),
    [
        ("alex@studio-2: Permission denied (publickey).", "ssh-copy-id studio-2"),
        ("alex@studio-2: Permission denied (password).", "FileVault on? Then no key helps"),
        ("Host key verification failed.", "ssh studio-2, compare the fingerprint"),
        (f"{KEY_CHANGED}: its key is another", "anew: ssh-keygen -R studio-2, then ssh studio-2"),
        ("ssh: Could not resolve hostname studio-2: unknown", "Host studio-2 to ~/.ssh/config"),
        ("ssh: connect to host studio-2 port 22: Connection refused", "turn on Remote Login"),
        ("ssh: Could not resolve hostname studio-2: unknown", "scutil --get LocalHostName"),
        ("ssh: connect to host studio-2 port 22: Operation timed out", "ping studio-2"),
        ("ssh: connect to host studio-2 port 22: No route to host", "If ping gets there: macOS"),
        ("no answer within 60 s", "studio-2 lets us in and then hangs"),
        ("kex_exchange_identification: read: reset", "ssh -v studio-2 true"),
    ],
)
def test_what_ssh_says_leads_to_the_fix_for_it_and_nothing_else(looked, trouble, fix):
    facts = {**looked.facts, "studio-2": HostFacts("studio-2", trouble=trouble)}
    (found,) = bad(replace(looked, facts=facts))
    assert (found.check, found.host, found.verdict) == ("ssh", "studio-2", FAIL)
    assert found.found == trouble
    assert fix in found.fix.words


def test_commands_can_be_pasted_whatever_the_paths_are_called(looked):
    """Blanks and quotes in the paths of checkout, Python and model made other commands of them."""
    root = "/Volumes/Big Disk/Jo's $cluster"
    plan = replace(
        looked.plan, checkout=root, python=f"{root}/.venv/bin/python", model_dir=f"{root}/m 1"
    )
    cluster = changed(replace(looked, plan=plan), "studio-1", binary=None)
    target = {"to": "studio-1", "address": "192.0.2.10", "port": 29001, "error": "ETIMEDOUT: no"}
    blocked = changed(cluster, "studio-2", connections=(target,))
    (path,) = [f for f in checks.judge(blocked) if f.check == "path" and f.verdict == FAIL]
    commands = [
        judge_software.pip_install(plan.python, plan.checkout, "--no-cache-dir"),
        judge_software._new_environment(cluster, cluster.facts["studio-1"]).command,
        judge_model._sync(cluster, "studio-2").command,
        path.fix.words.partition("or there: ")[2],
    ]
    paths = [plan.python, f"{root}/.venv", plan.model_dir, plan.python]
    for command, path in zip(commands, paths, strict=True):
        assert path in shlex.split(command), command
    assert f"{root}/requirements.txt" in shlex.split(commands[0])


def test_words_on_stderr_are_a_warning_and_ssh_s_own_are_none(looked):
    (found,) = bad(changed(looked, "studio-1", errors="proxy: slow\n"))
    assert (found.check, found.verdict) == ("ssh", WARN)
    assert "proxy: slow" in found.found


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        ("EHOSTUNREACH: No route to host", "Privacy & Security, Local Network"),
        ("ETIMEDOUT: no answer", "Firewall, Options: allow incoming connections for /opt/homebrew"),
        ("ECONNREFUSED: Connection refused", "Firewall"),
    ],
)
def test_a_blocked_way_to_rank_0_is_named_with_the_switch_that_opens_it(looked, error, fix):
    target = {"to": "studio-1", "address": "192.0.2.10", "port": 29001, "error": error}
    (found,) = bad(changed(looked, "studio-2", connections=(target,)))
    assert (found.check, found.host) == ("path", "studio-2")
    assert found.found.startswith(f"no TCP connection to studio-1 at 192.0.2.10: {error}")
    assert fix in found.fix.words


@pytest.mark.parametrize(
    ("chip", "has_it"),
    [
        ("Apple M1", False),
        ("Apple M2 Ultra", False),
        ("Apple M3", False),
        ("Apple M3 Max", False),
        ("Apple M3 Ultra", True),
        ("Apple M4", False),
        ("Apple M4 Pro", True),
        ("Apple M4 Max", True),
        ("Apple M5", False),
        ("Apple M5 Pro", True),
        ("Apple M6", True),  # not known here
        ("Apple processor", True),
        ("Intel(R) Xeon(R) W-3245 CPU @ 3.20GHz", False),
        ("", True),
    ],
)
def test_a_mac_is_blamed_for_its_thunderbolt_only_where_it_is_known_to_be_too_old(
    looked, chip, has_it
):
    found = bad(changed(looked, "studio-1", chip=chip))
    assert [f.check for f in found] == ([] if has_it else ["chip"])


def test_a_firewall_that_does_not_list_python_is_blamed_where_somebody_was_kept_out(looked):
    """By the program that runs: bin/python3 only starts it. The way is not blamed besides."""
    target = {"to": "studio-1", "address": "192.0.2.10", "port": 29001, "error": "ETIMEDOUT: x"}
    silent = changed(looked, "studio-1", firewall=Firewall(on=True))
    assert bad(silent) == []
    kept_out = changed(silent, "studio-2", connections=(target,))
    (found,) = bad(kept_out)
    assert (found.check, found.host, found.verdict) == ("firewall", "studio-1", FAIL)
    assert found.found == f"its firewall is on and does not list {BINARY}"
    tool = "sudo /usr/libexec/ApplicationFirewall/socketfilterfw"
    assert found.fix.command == f"{tool} --add {BINARY} && {tool} --unblockapp {BINARY}"
    for other in (
        # Local Network privacy of the Mac that connects.
        changed(kept_out, "studio-2", connections=(target | {"error": "EHOSTUNREACH: No route"},)),
        # Nobody listened at that address.
        changed(kept_out, "studio-1", bound={"192.0.2.10": "EADDRNOTAVAIL: not here"}),
        changed(kept_out, "studio-1", firewall=Firewall(on=False)),
    ):
        assert "firewall" not in {f.check for f in bad(other)}


@pytest.mark.parametrize(
    ("state", "block", "on", "blocks_all"),
    [
        ("Firewall is enabled. (State = 1)", "Block all DISABLED! ", True, False),
        ("Firewall is enabled. (State = 1)", "Block all ENABLED! ", True, True),
        ("Firewall is enabled.", "Firewall has block all state set to enabled.", True, True),
        (
            "Firewall is blocking all non-essential incoming connections. (State = 2)",
            "Firewall is set to block all non-essential incoming connections",
            True,
            True,
        ),
        ("Firewall is disabled. (State = 0)", "Block all ENABLED! ", False, False),
    ],
)
def test_the_words_of_several_macos_for_the_firewall_are_read(state, block, on, blocks_all):
    wall = parse_firewall(state, block, "1 : /opt/a b/Python.app ( Block incoming connections )\n")
    assert (wall.on, wall.blocks_all) == (on, blocks_all)
    assert wall.lets_in("/opt/a b/Python.app/Contents/MacOS/Python") is False
    assert wall.lets_in("/opt/a b/Python.application") is None
    assert parse_firewall("socketfilterfw: not allowed", block, "") is None


def test_a_way_that_another_finding_explains_is_not_blamed(looked):
    target = {"to": "studio-1", "address": "192.0.2.10", "port": 29001, "error": "ETIMEDOUT: x"}
    tried = changed(looked, "studio-2", connections=(target,))
    stale = changed(tried, "studio-1", bound={"192.0.2.10": "EADDRNOTAVAIL: not here"})
    assert {f.check for f in bad(stale)} == {"address"}
    gone = {**tried.facts, "studio-1": HostFacts("studio-1", trouble="no answer within 60 s")}
    assert {f.check for f in bad(replace(tried, facts=gone))} == {"ssh"}
    assert bad(changed(tried, "studio-1", listen_error="EADDRINUSE: taken")) == []


def test_a_variable_of_another_job_fails_and_fast_synch_warns(looked):
    (found,) = bad(changed(looked, "studio-1", environment={"MLX_HOSTFILE": "/old.json"}))
    assert (found.check, found.verdict) == ("environment", FAIL)
    fast = {"MLX_METAL_FAST_SYNCH": "1"}
    (found,) = bad(changed(looked, "studio-1", environment=fast))
    assert (found.check, found.host, found.verdict) == ("environment", "studio-1", WARN)
    assert bad(changed(looked, "studio-1", environment={"MLX_METAL_FAST_SYNCH": "0"})) == []
    asked = replace(looked, plan=replace(looked.plan, fast_synch="1"))
    (found,) = bad(asked)
    assert (found.host, found.verdict) == (None, WARN)
    # Asked for everywhere: not blamed on the host a second time.
    assert len(bad(changed(asked, "studio-1", environment=fast))) == 1


def test_linux_in_a_jaccl_hostfile_is_one_finding(looked):
    linux = HostFacts(
        "studio-2",
        system="Linux",
        distribution="Debian GNU/Linux 12 (bookworm)",
        python="3.12.4",
        machine="x86_64",
        packages=looked.facts["studio-1"].packages,
        evaluated=True,
        code_exists=True,
        code=looked.facts["studio-1"].code,
        memory=512 * GB,
        model=looked.facts["studio-1"].model,
        split=looked.facts["studio-1"].split,
        listeners={},
    )
    found = bad(replace(looked, facts={**looked.facts, "studio-2": linux}))
    assert {f.check for f in found} == {"macos"}
    assert "Debian GNU/Linux 12 (bookworm), and jaccl needs macOS" in found[0].found


def test_too_few_files_are_told_with_what_raises_them(looked):
    (found,) = bad(changed(looked, "studio-1", open_files=1024))
    assert (found.check, found.verdict) == ("files", FAIL)
    assert "at most 1024 files" in found.found and "launchctl limit maxfiles" in found.fix.words
    assert bad(changed(looked, "studio-1", open_files=float("inf"))) == []


@pytest.mark.parametrize(("free", "verdict"), [(0.5 * GB, FAIL), (3 * GB, WARN)])
def test_a_full_disk_is_seen_before_the_log_is_cut(looked, free, verdict):
    (found,) = bad(changed(looked, "studio-1", disk_free=int(free)))
    assert (found.check, found.verdict) == ("disk", verdict)


def test_a_port_of_another_user_is_told_with_how_to_find_out_whose(looked):
    (found,) = bad(changed(looked, "studio-1", listeners={32323: (None, "")}))
    assert "taken by another user's process" in found.found
    assert "sudo /usr/sbin/lsof -nP -iTCP:32323" in found.fix.command


def test_ranks_that_share_a_host_share_its_memory(tmp_path):
    cluster = Macs(tmp_path, Wiring(["studio-1", "studio-2"]), "ring")
    cluster.change(
        ranks=("studio-1", "studio-1", "studio-2"),
        addresses=(("192.0.2.10",), ("192.0.2.10",), ("192.0.2.11",)),
        cluster_ports=((32323,), (32324,), (32325,)),
    )
    looked = cluster.look()
    whole = judge_memory.weights(looked)
    shares = [judge_memory.share(looked, facts) for facts in looked.reached]
    assert shares == [whole * 2 / 3, whole / 3]


def test_a_draft_model_is_asked_of_rank_0_alone_and_its_weights_are_rank_0s(looked):
    plan = replace(looked.plan, model_dir="/m/large", draft_model_dir="/m/small")
    asked = {host: python_commands(plan, host)["check_model"][0] for host in plan.asked}
    assert asked["studio-1"][-2:] == ["--draft", "/m/small"]
    assert "--draft" not in asked["studio-2"]
    split = looked.facts["studio-1"].split
    drafts = changed(looked, "studio-1", split={**split, "draft_bytes": 5 * GB})
    before, after = (
        [judge_memory.share(one, facts) for facts in one.reached] for one in (looked, drafts)
    )
    assert after == [before[0] + 5 * GB, before[1]]


def test_a_draft_model_with_other_tokens_is_no_fault_of_the_copy(looked):
    reason = "DRAFT_MODEL_DIR='/m/small': must have the tokens of the model that it drafts for: 2"
    split = {**looked.facts["studio-1"].split, "ok": False, "reasons": [reason]}
    (found,) = bad(changed(looked, "studio-1", split=split))
    assert (found.check, found.host, found.verdict) == ("model", "studio-1", FAIL)
    assert found.found == reason and "do as it says" in found.fix.words
    assert "sync_model" not in str(found.fix)
