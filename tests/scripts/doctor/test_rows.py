"""A cluster for each thing that breaks, and the doctor names that, its fix, and nothing else.

The rows are those of the failure catalogue. What a directory of stubs cannot stand for (ssh, the
way over TCP, the environment) is in test_nodes.py, with real sshd.
"""

import json
import re
from dataclasses import replace

import pytest

from scripts.lib.doctor import checks, judge_memory, main, report
from scripts.lib.doctor.findings import FAIL, SKIP, WARN
from scripts.lib.doctor.fix import offered
from tests.support.machines import (
    BINARY,
    MODEL,
    PYTHON,
    Macs,
    devinfo,
    displays,
    domains,
    firewall_apps,
    ioreg,
    sysctl,
    vm_stat,
    write_model,
)
from tests.support.wiring import Wiring, mesh, ring

NAMES = ["studio-1", "studio-2", "studio-3", "studio-4"]


def two(directory) -> Macs:
    return Macs(directory, mesh(NAMES[:2]))


def three(directory) -> Macs:
    return Macs(directory, mesh(NAMES[:3]))


def four(directory) -> Macs:
    return Macs(directory, mesh(NAMES))


def jaccl_ring(directory) -> Macs:
    return Macs(directory, ring(NAMES), "jaccl-ring")


def tcp_ring(directory) -> Macs:
    return Macs(directory, Wiring(NAMES[:3]), "ring")


def double_cables(directory) -> Macs:
    wiring = mesh(NAMES[:2]).plug("studio-1:4", "studio-2:5")
    return Macs(directory, wiring, "jaccl-ring")


@pytest.mark.parametrize("make", [two, three, four, jaccl_ring, tcp_ring, double_cables])
def test_a_healthy_cluster_is_not_blamed_for_anything(make, tmp_path):
    cluster = make(tmp_path)
    found = checks.judge(cluster.look())
    assert [f for f in found if f.verdict in (FAIL, WARN)] == []
    unjudged = {f.check for f in found if f.verdict == "skip"}
    assert unjudged == set()
    assert report.summary(found).startswith("0 failed, 0 warned")


# Each row: what is wrong, as a function of the cluster; then what must be said of it.
ROWS = {}


def row(check, hosts, found, fix="scripts/", verdict=FAIL, make=three):
    def add(change):
        ROWS[change.__name__] = (make, change, check, hosts, found, fix, verdict)
        return change

    return add


@row("rdma", ["studio-2"], "rdma_ctl status says disabled", "Terminal: rdma_ctl enable; restart")
def rdma_is_off(cluster):
    """Its devices are gone with it, and the ports at the far ends are down."""
    cluster["studio-2"].say("rdma_ctl", "disabled\n")
    cluster["studio-2"].edit("ibv_devices", "    rdma_", "    none_")
    cluster["studio-2"].say("ibv_devices", "    device   node GUID\n    ------   ----\n")
    for device in cluster.plan.devices("studio-2"):
        cluster["studio-2"].say(f"ibv_devinfo:{device}", "No IB devices found\n", 1)
    for name in ("studio-1", "studio-3"):
        device = cluster.plan.row(name)["studio-2"][0]
        cluster[name].say(f"ibv_devinfo:{device}", devinfo(cluster.wiring, name, device, up=False))


@row("rdma", ["studio-1"], "there is no /usr/bin/rdma_ctl", "rdma_ctl enable")
def macos_has_no_rdma_tool(cluster):
    cluster["studio-1"].remove("rdma_ctl")


@row("devices", ["studio-3"], "RDMA is on, and ibv_devices lists none", "restart that Mac")
def rdma_is_on_without_devices(cluster):
    cluster["studio-3"].say("ibv_devices", "    device   node GUID\n    ------   ----\n")
    for device in cluster.plan.devices("studio-3"):
        cluster["studio-3"].say(f"ibv_devinfo:{device}", "No IB devices found\n", 1)
    for name in ("studio-1", "studio-2"):
        device = cluster.plan.row(name)["studio-3"][0]
        cluster[name].say(f"ibv_devinfo:{device}", devinfo(cluster.wiring, name, device, up=False))


@row("devices", ["studio-2"], "no rdma_en9; it has rdma_en2", r"make_hostfile\.sh")
def the_matrix_names_a_device_that_is_not_there(cluster):
    cluster.change_row("studio-2", lambda row: [("rdma_en9",), *row[1:]])


@row("devices", ["studio-2"], "ibv_devices did not answer in time", "restart studio-2")
def ibv_devices_hangs(cluster):
    cluster["studio-2"].hang("ibv_devices")


@row(
    "wheel",
    ["studio-1", "studio-2", "studio-3"],
    "is False",
    r"--force-reinstall (.|\n)*wheel for macOS 26",
)
def mlx_is_the_wheel_without_jaccl(cluster):
    for mac in cluster:
        mac.say("mlx", '{"jaccl": false}\n{"sum": 6.0}\n')


@row("ports", ["studio-1"], "rdma_en3 is PORT_DOWN", "reseat or replace the cable between Thunder")
def a_port_is_down(cluster):
    name, device = "studio-1", cluster.plan.devices("studio-1")[0]
    cluster[name].say(f"ibv_devinfo:{device}", devinfo(cluster.wiring, name, device, up=False))


@row("ports", ["studio-2"], "ibv_devinfo -d rdma_en3 hangs", "reseat the cable in Thunderbolt 2")
def ibv_devinfo_hangs(cluster):
    cluster["studio-2"].hang("ibv_devinfo:rdma_en3")


@row("ports", ["studio-2"], "tells nothing of rdma_en3", "restart studio-2")
def ibv_devinfo_does_not_know_a_listed_device(cluster):
    cluster["studio-2"].say("ibv_devinfo:rdma_en3", "No IB devices found\n", 1)


@row("gid", ["studio-3"], "rdma_en3 has no IPv4-mapped GID: en3", "ipconfig set en3 DHCP")
def a_port_has_no_ipv4_address(cluster):
    text = devinfo(cluster.wiring, "studio-3", "rdma_en3", mapped=False)
    cluster["studio-3"].say("ibv_devinfo:rdma_en3", text)


@row("gid", ["studio-3"], "is at index 2, not 1", "ipconfig set en3 DHCP", WARN)
def the_ipv4_address_came_late(cluster):
    cluster["studio-3"].edit("ibv_devinfo:rdma_en3", "GID[  1]", "GID[  2]")


@row(
    "bridge", ["studio-1"], "bridge0 has en3 as member$", "ifconfig bridge0 deletem en3", WARN, two
)
def the_bridge_has_a_port_that_still_has_an_address(cluster):
    cluster.wiring.bridged["studio-1"] = ["en3", "en7"]
    cluster["studio-1"].say("ifconfig", cluster.wiring.texts("studio-1")["ifconfig"])


@row("bridge", ["studio-1"], "no IPv4-mapped GID", "ifconfig bridge0 deletem en3", make=two)
def the_bridge_has_a_port_and_its_address(cluster):
    the_bridge_has_a_port_that_still_has_an_address(cluster)
    text = devinfo(cluster.wiring, "studio-1", "rdma_en3", mapped=False)
    cluster["studio-1"].say("ibv_devinfo:rdma_en3", text)


@row("bridge", ["studio-1"], "3 nodes make it a loop", "deletem en3 && .*deletem en4")
def the_bridge_joins_three_nodes(cluster):
    cluster.wiring.bridged["studio-1"] = ["en3", "en4"]
    cluster["studio-1"].say("ifconfig", cluster.wiring.texts("studio-1")["ifconfig"])


@row(
    "bridge",
    ["studio-1"],
    'bridge0 has en3 as member, although its service "Thunderbolt Bridge" is inactive',
    r"fix, on studio-1: sudo cp -p .* && sudo /usr/libexec/PlistBuddy -c 'Delete .*:bridge0' .* && "
    "sudo /sbin/ifconfig bridge0 deletem en3 && sudo /sbin/ifconfig bridge0 down",
    WARN,
    two,
)
def the_bridge_kept_its_port_when_it_was_made_inactive(cluster):
    """The first step was followed, and the same advice again would help nobody."""
    cluster.wiring.bridge("studio-1", ["en3"])
    cluster.wiring.make_inactive("studio-1")
    cluster.rewire()


@row(
    "bridge",
    ["studio-1"],
    "bridge0 has en3 as member$",
    'fix, on studio-1: sudo networksetup -setnetworkserviceenabled "Thunderbolt-Brücke" off && .*'
    "grep -q 'member: '; then .*PlistBuddy .*deletem en3 .*; fi",
    WARN,
    two,
)
def the_bridge_is_as_macos_made_it_in_another_language(cluster):
    cluster.wiring.bridge("studio-1", ["en3"], service="Thunderbolt-Brücke")
    cluster.rewire()


@row(
    "bridge",
    ["studio-1"],
    "bridge0 takes en3 back at the next start",
    "fix, on studio-1: sudo cp -p .* && sudo /usr/libexec/PlistBuddy",
    WARN,
    two,
)
def the_port_is_out_of_the_bridge_until_the_next_start(cluster):
    cluster.wiring.bridge("studio-1", ["en3", "en7"])
    cluster.wiring.bridged["studio-1"] = ["en7"]
    cluster.rewire()


@row("gid", ["studio-3"], "rdma_en3 has no IPv4-mapped GID: en3 is down and has no", "en3 DHCP")
def a_port_is_down_and_has_no_address(cluster):
    cluster.wiring.down.add("studio-3:en3")
    del cluster.wiring.addresses["studio-3"]["en3"]
    cluster.rewire()


@row("gid", ["studio-3"], "no IPv4 address; bridge0 has one, 10.77.2.2, in its place", "en3 DHCP")
def the_bridge_has_the_address_that_the_port_needs(cluster):
    cluster.wiring.bridge("studio-3", [])
    cluster.wiring.addresses["studio-3"]["bridge0"] = "10.77.2.2/30"
    del cluster.wiring.addresses["studio-3"]["en3"]
    cluster.rewire()


@row(
    "ends",
    ["studio-1", "studio-2"],
    r"en3 \(10.9.1.1/30\) is in another subnet than the far end, studio-2 en3 \(10.9.2.2/30\)",
    'fix, on studio-1: .* -createnetworkservice "RDMA en3" "Thunderbolt 2" && .* -setmanual '
    '"RDMA en3" 10.77.1.1 255.255.255.252 ""',
)
def the_ends_of_a_cable_are_in_different_subnets(cluster):
    cluster.wiring.addresses["studio-1"]["en3"] = "10.9.1.1/30"
    cluster.wiring.addresses["studio-2"]["en3"] = "10.9.2.2/30"
    cluster.rewire()


@row(
    "ends", ["studio-2"], "has the address of the far end, studio-1 en3", "-setmanual .* 10.77.1.2"
)
def both_ends_of_a_cable_have_the_same_address(cluster):
    cluster.wiring.addresses["studio-2"]["en3"] = "10.77.1.1/30"
    cluster.rewire()


@row(
    "ends",
    ["studio-1", "studio-2"],
    r"takes addresses of the ordinary network, 192\.168\.0\.0/24 on en0",
    "-setmanual .* 10.77.1.1 ",
    WARN,
    two,
)
def the_ports_have_addresses_of_the_lan(cluster):
    """As mlx.distributed_config gives them, on the commonest home network."""
    for place, name in enumerate(("studio-1", "studio-2"), 1):
        address = f"192.168.0.{10 + place}"
        cluster.wiring.addresses[name] = {"en0": address, "en3": f"192.168.0.{place}/30"}
    cluster.rewire()


@row("ends", ["studio-2"], "is self-assigned, and the far end, studio-1 en3", "-setmanual")
def an_end_assigned_itself_an_address(cluster):
    cluster.wiring.addresses["studio-2"]["en3"] = "169.254.7.1/16"
    cluster.rewire()


@row(
    "ends", ["studio-1"], "has another netmask than the far end", "10.77.1.1 255.255.255.252", WARN
)
def the_netmasks_of_a_cable_differ(cluster):
    cluster.wiring.addresses["studio-1"]["en3"] = "10.77.1.1/24"
    cluster.rewire()


@row("ends", ["studio-2"], r"en3 \(10.77.1.2/30\), to studio-1 en3, is down", "ifconfig en3 up")
def an_interface_is_down(cluster):
    cluster.wiring.down.add("studio-2:en3")
    cluster.rewire()


@row(
    "ends",
    ["studio-1"],
    r"en3 \(10.77.1.1/30\) gets no answer from the far end, studio-2 en3 \(10.77.1.2/30\) "
    r"\(its neighbour cache: incomplete\)",
    r"ssh studio-1 /sbin/ping -c 3 -b en3\s+10.77.1.2; no\s+answer\s+still: restart studio-2",
)
def the_far_end_of_a_cable_does_not_answer(cluster):
    cluster.wiring.deaf.add("studio-2:en3")
    cluster.rewire()


@row("ends", ["studio-1"], "its neighbour cache is incomplete", "fills it", WARN)
def the_neighbour_cache_is_incomplete_and_nobody_can_ping(cluster):
    cluster.wiring.deaf.add("studio-2:en3")
    cluster.rewire()
    for mac in cluster:
        mac.remove("ping")


@row(
    "cabling",
    ["studio-1", "studio-1"],
    r"rdma_en4 \(Thunderbolt 3 \(en4\)\) leads to studio-3, the matrix says studio-2",
    r"make_hostfile\.sh --output studio\.local\.json --force studio-1 studio-2",
    make=four,
)
def the_matrix_does_not_match_the_cables(cluster):
    cluster.change_row("studio-1", lambda row: [row[0], row[2], row[1], row[3]])


@row("cabling", ["studio-1", "studio-2"], "leads nowhere, the matrix says to", "move the cable")
def a_cable_was_pulled(cluster):
    cluster.wiring.unplug("studio-1:2")
    for name in ("studio-1", "studio-2"):
        texts = cluster.wiring.texts(name)
        cluster[name].say("system_profiler", texts["system_profiler"])
        for device in cluster.plan.devices(name):
            cluster[name].say(f"ibv_devinfo:{device}", devinfo(cluster.wiring, name, device))


@row(
    "cabling",
    ["studio-1", "studio-2"],
    "stand in another order than",
    "--topology ring",
    make=double_cables,
)
def two_cables_are_listed_in_another_order(cluster):
    cluster.change_row("studio-2", lambda row: [tuple(reversed(row[0])), row[1]])


@row(
    "cabling",
    ["studio-1"],
    "is the port beside Ethernet",
    "another port of studio-1",
    WARN,
    make=lambda directory: Macs(directory, Wiring(NAMES[:2]).plug("studio-1:1", "studio-2:2")),
)
def a_cable_is_in_the_port_beside_ethernet(cluster):
    assert cluster.plan.devices("studio-1") == ("rdma_en2",)


@row("cabling", ["studio-2"], "system_profiler did not answer in time", "System Inf", WARN)
def system_profiler_hangs(cluster):
    cluster["studio-2"].hang("system_profiler")


@row("speed", ["studio-1", "studio-2"], "runs at 40 Gb/s", r"a Thunderbolt 5 cable \(80 Gb/s\)")
def a_cable_is_slow(cluster):
    cluster.wiring.plug("studio-1:2", "studio-2:2", "40 Gb/s")
    for name in ("studio-1", "studio-2"):
        cluster[name].say("system_profiler", cluster.wiring.texts(name)["system_profiler"])
        device = "rdma_en3"
        cluster[name].say(f"ibv_devinfo:{device}", devinfo(cluster.wiring, name, device))


@row("hostfile", [None], r'"rdma" has 2 entries: must have 3', r"make_hostfile\.sh --output")
def a_row_of_the_matrix_is_short(cluster):
    cluster.change_row("studio-2", lambda row: row[:2])


@row("address", ["studio-1"], "192.0.2.10 is not an address of", r'"ips": \["192\.0\.2\.77"\]')
def rank_0_has_another_address_now(cluster):
    cluster["studio-1"].say("getifaddr:en0", "192.0.2.77\n")


@row(
    "port",
    ["studio-1"],
    r"32323 is taken by Python \(pid 4711\)",
    r"kill -TERM 4711\n.*CLUSTER_PORT",
)
def the_coordinator_port_is_taken(cluster):
    cluster["studio-1"].listens(32323, "Python", 4711)


@row("port", ["studio-1"], r"8080 is taken by nginx", "HTTP_PORT=")
def the_http_port_is_taken(cluster):
    cluster["studio-1"].listens(8080, "nginx", 99)


@row("python", ["studio-2"], f"there is no {PYTHON}", r"no Homebrew(.|\n)*brew install\s+python@3")
def python_and_homebrew_are_missing(cluster):
    cluster["studio-2"].remove("brew")
    python_is_missing(cluster)


@row("python", ["studio-2"], f"there is no {PYTHON}", r"scripts/sync_nodes\.sh")
def python_is_missing(cluster):
    cluster["studio-2"].remove("versions")
    cluster["studio-2"].remove("mlx")
    cluster["studio-2"].remove("check_model")
    cluster["studio-2"].remove("formats")


@row("python", ["studio-2"], "Operation not permitted", "Allow full disk access for remote users")
def the_python_of_the_environment_is_where_ssh_may_not_read(cluster):
    """The environment itself may be read."""
    python_is_missing(cluster)
    words = "dyld: /Users/a/Documents/conda/lib/libpython3.12.dylib: Operation not permitted\n"
    cluster["studio-2"].answers["versions"] = (words, 1)


@row("python", ["studio-2"], "it has no mlx-lm", "on studio-2: .* -m pip install -r")
def a_package_is_missing(cluster):
    cluster["studio-2"].edit("versions", '"mlx-lm": "1.0"', '"mlx-lm": null')


@row("python", ["studio-2"], "for Intel, run by Rosetta", "arm64 Python")
def python_is_for_another_processor(cluster):
    cluster["studio-2"].edit("versions", "arm64", "x86_64")


@row("python", ["studio-3"], "it is Python 3.9.6: must be 3.11 or later", "install an arm64 Python")
def python_is_too_old(cluster):
    """It differs from the others, too, but that is not a finding of its own."""
    for mac in cluster:
        mac.edit("versions", "3.12.4", "3.9.6")
    for name in ("studio-1", "studio-2"):
        cluster[name].edit("versions", "3.9.6", "3.12.4")


@row(
    "versions", ["studio-2"], "mlx 0.31.0, the others 0.32.4$", r"scripts/sync_nodes\.sh studio-2\n"
)
def one_node_is_a_version_behind(cluster):
    cluster["studio-2"].edit("versions", "0.32.4", "0.31.0")


@row("versions", ["studio-3"], "python 3.12.1, the others 3.12.4$", r"scripts/sync_nodes\.sh")
def one_node_has_another_python(cluster):
    cluster["studio-3"].edit("versions", "3.12.4", "3.12.1")


@row("versions", NAMES[:3], r"mlx 0\.31\.0, requirements\.txt has 0\.32\.4", "-m pip install", WARN)
def all_nodes_have_another_version_than_the_pinned_one(cluster):
    for mac in cluster:
        mac.edit("versions", "0.32.4", "0.31.0")


@row("checkout", ["studio-3"], "the code in /opt/cluster differs", r"scripts/sync_nodes\.sh")
def one_node_has_older_code(cluster):
    cluster["studio-3"].write("/opt/cluster/server/engine.py", "step = 0\n")


@row(
    "macos", ["studio-2"], r"macOS 26\.3 \(25D101\), the others 26\.3 \(25D125\)", "Software Update"
)
def one_node_has_another_build(cluster):
    cluster["studio-2"].edit("sw_vers", "25D125", "25D101")


@row("macos", ["studio-2"], r"macOS 26\.2 .*, the others 26\.3", "Software Update")
def one_node_has_smaller_frames(cluster):
    cluster["studio-2"].say("sw_vers", "ProductVersion:\t\t26.2\nBuildVersion:\t\t25C56\n")


@row("macos", ["studio-2"], r"macOS 15\.6 has no RDMA over Thunderbolt: 26\.2", "Software Update")
def one_node_has_a_macos_without_rdma(cluster):
    cluster["studio-2"].say("sw_vers", "ProductVersion:\t\t15.6\nBuildVersion:\t\t24G84\n")


@row("model", ["studio-2"], f"there is no {MODEL}", rf"scripts/sync_model\.sh {MODEL} studio-2\n")
def the_model_is_missing(cluster):
    cluster["studio-2"].lose_model()
    cluster["studio-2"].say("check_model", "")


@row("model", ["studio-3"], "config.json has another content than", r"scripts/sync_model\.sh")
def the_model_has_another_config(cluster):
    folder = cluster.own_model("studio-3")
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")


@row("model", ["studio-2"], r"00002-of-00002.safetensors has 18 bytes, the others 107374182400")
def a_shard_is_half_copied(cluster):
    shard = cluster.own_model("studio-2") / "model-00002-of-00002.safetensors"
    with shard.open("rb+") as file:
        file.truncate(18)
    cluster["studio-2"].say(
        "check_model",
        '{"model_type": "llama", "ok": false, "rank_counts": [1, 2], "reasons": '
        f'["{MODEL}/{shard.name} has 18 bytes of 107374182400"]}}',
        1,
    )


@row("model", NAMES[:3], "config.json has no tokenizer", r"sync_model\.sh OWNER(.|\n)*studio-3\n")
def the_model_is_not_whole_anywhere(cluster):
    for mac in cluster:
        mac.say(
            "check_model",
            '{"model_type": "llama", "ok": false, "rank_counts": [], '
            '"reasons": ["config.json has no tokenizer"]}',
            1,
        )


@row("model", NAMES[:3], "mlx-lm's bitnet computes with Metal", "do as it says; or take another")
def the_model_needs_what_no_copy_brings(cluster):
    for mac in cluster:
        mac.say(
            "check_model",
            '{"model_type": "bitnet", "ok": false, "rank_counts": [], "reasons": '
            "[\"mlx-lm's bitnet computes with Metal's kernels alone: it needs a Mac's GPU\"]}",
            1,
        )


@row("formats", [None], "no format of tool calls is known", r"read_answer\.py", WARN)
def nobody_knows_how_the_model_calls(cluster):
    for mac in cluster:
        mac.edit("formats", '"calls": "llama-3"', '"calls": "none"')


@row("formats", [None], "the tokenizer cannot be loaded: KeyError", r"a tokenizer\.json")
def the_tokenizer_cannot_be_read(cluster):
    for mac in cluster:
        mac.say("formats", '{"reasons": ["the tokenizer cannot be loaded: KeyError"]}', 1)


@row("formats", [None], "llama-3, by its template.*tools are not shown", "shows tools", WARN)
def the_template_shows_no_tools(cluster):
    for mac in cluster:
        mac.edit("formats", '"template": []', '"template": ["tools are not shown: ..."]')


@row("memory", ["studio-1", "studio-2"], "and 330 GB for a long request's KV", "wired", WARN, two)
def a_long_requests_cache_does_not_fit(cluster):
    for mac in cluster:
        a_rank = '{"request_bytes": 2000000000, "token_bytes": 10000000}'
        mac.edit("formats", '"kv": []', f'"kv": [{a_rank}, {a_rank}]')


@row(
    "heads", [None], "num_key_value_heads is 8, which does", "start with 1, 2 and 4 .*PARALLEL=auto"
)
def the_heads_do_not_divide(cluster):
    cluster.change(parallel="tensor")
    for mac in cluster:
        mac.say(
            "check_model",
            '{"model_type": "llama", "ok": false, "rank_counts": [1, 2, 4], "reasons": '
            '["tensor: num_key_value_heads is 8, which does not divide by 3 ranks"]}',
            1,
        )


@row(
    "memory",
    NAMES[:2],
    "107 GB of weights, 103 GB for",
    "sysctl iogpu.wired_limit_mb=122880",
    make=two,
)
def the_model_fits_only_with_a_higher_limit(cluster):
    for mac in cluster:
        mac.say("sysctl", sysctl(128))


@row("memory", NAMES[:2], "107 GB of weights, 52 GB for the GPU", "a smaller model", make=two)
def the_model_does_not_fit(cluster):
    for mac in cluster:
        mac.say("sysctl", sysctl(64))


@row("memory", NAMES[:2], "and 400 GB for KV_BUDGET_GB", "KV_BUDGET_GB", WARN, two)
def the_cache_does_not_fit(cluster):
    cluster.change(kv_budget_gb=400.0)


@row("memory", ["studio-1", "studio-2"], "the GPU", "wired_limit_mb", make=two)
def the_limit_was_set_too_low(cluster):
    for mac in cluster:
        mac.say("sysctl", sysctl(512, 65536))


@row("even", ["studio-2"], r"uneven \(69 GB and 412 GB\).* share, 72 GB", "PARALLEL=auto")
def one_node_is_too_small(cluster):
    cluster.change(parallel="tensor")
    cluster["studio-2"].say("sysctl", sysctl(86))


@row("even", ["studio-2"], r"uneven \(69 GB and 412 GB\).* share, 72 GB", "a smaller model")
def one_node_is_too_small_and_no_pipeline_is_possible(cluster):
    cluster["studio-2"].say("sysctl", sysctl(86))


@row("even", ["studio-2"], "memory is uneven", "a smaller model, or leave", WARN)
def one_node_is_smaller_and_no_model_is_known(cluster):
    cluster["studio-2"].say("sysctl", sysctl(256))
    cluster.change(model_dir=None)


@row("wired", ["studio-3"], "129 GB are wired, and no rank of ours runs", "restart that Mac", WARN)
def memory_stayed_wired(cluster):
    cluster["studio-3"].say("vm_stat", vm_stat(120))


@row("sleep", ["studio-2"], "it sleeps after 10 min", "sudo /usr/bin/pmset -a sleep 0", WARN)
def a_mac_sleeps(cluster):
    cluster["studio-2"].edit("pmset", " sleep                0", " sleep                10")


@row("power", ["studio-2"], "stays off after a power failure", "pmset -a autorestart 1", WARN)
def a_mac_stays_off(cluster):
    cluster["studio-2"].edit("pmset", " autorestart          1", " autorestart          0")


@row("display", ["studio-3"], "a display, which never turns", "pmset -a displaysleep 10", WARN)
def a_display_is_on_for_good(cluster):
    """A Mac without a display is not blamed for the same setting."""
    for name in ("studio-2", "studio-3"):
        cluster[name].edit("pmset", " displaysleep         10", " displaysleep         0")
    cluster["studio-3"].say("displays", displays(1))


@row("filevault", ["studio-2"], "FileVault is on, and a service", "password: ssh studio-2", WARN)
def a_disk_waits_for_its_password_where_a_service_starts_at_boot(cluster):
    cluster["studio-1"].say("daemons", "mlx-cluster.server.8080.plist\n")
    cluster["studio-2"].say("fdesetup", "FileVault is On.\n")


@row("chip", ["studio-2"], "Apple M4 has no Thunderbolt 5", "leave it out, or serve without RDMA")
def a_mac_has_thunderbolt_4(cluster):
    """Its rdma_ctl says enabled all the same; its devices and the far ends are not blamed."""
    cluster["studio-2"].say("sysctl", sysctl(512, chip="Apple M4"))
    cluster["studio-2"].say("ibv_devices", "    device   node GUID\n    ------   ----\n")
    for device in cluster.plan.devices("studio-2"):
        cluster["studio-2"].say(f"ibv_devinfo:{device}", "No IB devices found\n", 1)
    for name in ("studio-1", "studio-3"):
        device = cluster.plan.row(name)["studio-2"][0]
        cluster[name].say(f"ibv_devinfo:{device}", devinfo(cluster.wiring, name, device, up=False))


@row("chip", ["studio-1"], "Apple M2 Ultra has no Thunderbolt 5", "M3 Ultra, M4 Pro and Max")
def a_mac_has_thunderbolt_4_and_no_rdma_tool(cluster):
    """No advice to go to Recovery, which could not help."""
    cluster["studio-1"].say("sysctl", sysctl(512, chip="Apple M2 Ultra"))
    cluster["studio-1"].remove("rdma_ctl")


@row(
    "folders",
    ["studio-2"],
    "/opt/cluster may not be read: Operation not permitted",
    "Allow full disk access for remote users",
)
def the_checkout_is_where_ssh_may_not_read(cluster):
    """The environment in it, too; neither is then said to be missing or to differ."""
    mac = cluster["studio-2"]
    mac.write("/opt/cluster/server/engine.py", "step = 0\n")
    for name, path in (("checkout", "/opt/cluster"), ("python", "/opt/cluster/.venv/bin")):
        mac.say(f"ls:{name}", f"ls: {path}: Operation not permitted\n", 1)
    for tool in ("versions", "mlx", "check_model", "formats"):
        mac.remove(tool)


@row("folders", ["studio-3"], f"{MODEL} may not be read: Operation", "move it out of the folders")
def the_model_is_on_a_volume_that_ssh_may_not_read(cluster):
    cluster["studio-3"].say("ls:model", f"ls: {MODEL}: Operation not permitted\n", 1)
    reasons = '["PermissionError: [Errno 1] Operation not permitted"]'
    for command in ("check_model", "formats"):
        cluster["studio-3"].say(command, f'{{"ok": false, "reasons": {reasons}}}', 1)
    cluster["studio-3"].lose_model()


@row("folders", ["studio-3"], f"{MODEL} may not be read: Permission denied", f"ls -ld {MODEL}")
def the_model_is_another_users(cluster):
    cluster["studio-3"].say("ls:model", f"ls: {MODEL}: Permission denied\n", 1)
    cluster["studio-3"].say("check_model", '{"ok": false, "reasons": ["Permission denied"]}', 1)


@row("firewall", ["studio-1"], "blocks all incoming connections", "--setblockall off")
def the_firewall_blocks_all(cluster):
    cluster["studio-1"].say(
        "firewall:state",
        "Firewall is blocking all non-essential incoming connections. (State = 2)\n",
    )


@row("firewall", ["studio-1"], f"its firewall blocks {BINARY}", f"--unblockapp {BINARY}")
def the_firewall_blocks_the_program_that_python_is(cluster):
    app = BINARY.partition("/Contents")[0]
    cluster["studio-1"].say("firewall:apps", firewall_apps(allow=PYTHON, block=app))
    # Of a worker nobody wants anything.
    cluster["studio-2"].say("firewall:apps", firewall_apps(block=BINARY))


@row(
    "memory", NAMES[:2], "only with iogpu.wired_limit_mb=122880, which is gone after", "RunAtLoad",
    WARN, two,
)  # fmt: skip
def the_limit_that_it_needs_is_not_kept(cluster):
    for mac in cluster:
        mac.say("sysctl", sysctl(128, 122880))


@row(
    "ranks",
    ["studio-2"],
    r"rank-1 \(pid 4242\) still runs, 02-11:00:00 old",
    "HTTP_PORT=8080 scripts/stop_openai_cluster_server.sh",
)
def a_rank_is_left_over(cluster):
    """It holds a device, too, and wired memory; the rank is the cause of both."""
    cluster["studio-2"].rank(1, "20260101T000000-1-1", 4242)
    cluster["studio-2"].say("ioreg", ioreg({"rdma_en3": (2, [(4242, "python3.12")])}))
    cluster["studio-2"].say("vm_stat", vm_stat(200))


@row("queues", ["studio-1"], r"in use by exo \(pid 77\), with 2 queue pairs", "kill -TERM 77")
def another_program_uses_a_device(cluster):
    cluster["studio-1"].say("ioreg", ioreg({"rdma_en3": (2, [(77, "exo")])}))


@row("queues", ["studio-1"], "10 queue pairs that no process holds", "restart studio-1")
def queue_pairs_are_used_up(cluster):
    cluster["studio-1"].say("ioreg", ioreg({"rdma_en3": (10, [])}))


@row("queues", ["studio-1"], "3 queue pairs that no process holds", "restart studio-1", WARN)
def some_queue_pairs_are_lost(cluster):
    cluster["studio-1"].say("ioreg", ioreg({"rdma_en4": (3, [])}))


@row("domains", ["studio-1"], "9 of about 11 protection domains are held", "restart studio-1")
def protection_domains_are_used_up(cluster):
    cluster["studio-1"].say("ioclasscount", domains(9))


@row("domains", ["studio-1"], "2 of about 11 protection domains", "restart studio-1, before", WARN)
def some_protection_domains_are_lost(cluster):
    cluster["studio-1"].say("ioclasscount", domains(2))


@row("compute", ["studio-3"], "adding two small arrays with MLX does not end", "restart that host")
def a_gpu_is_wedged(cluster):
    cluster["studio-3"].hang("mlx", first='{"jaccl": true}\n')


@row("compute", ["studio-3"], "ImportError: libjaccl", r"scripts/sync_nodes\.sh")
def mlx_cannot_be_imported(cluster):
    """That it has JACCL cannot be known then, and is not claimed."""
    cluster["studio-3"].remove("mlx")
    cluster["studio-3"].answers["mlx"] = ("ImportError: libjaccl.dylib not loaded\n", 1)


@pytest.mark.parametrize("name", ROWS)
def test_the_doctor_names_it_and_its_fix_and_nothing_else(name, tmp_path):
    make, change, check, hosts, found, fix, verdict = ROWS[name]
    cluster = make(tmp_path)
    change(cluster)
    findings = cluster.findings()
    assert {finding.check for finding in findings} == {check}, findings
    assert [finding.host for finding in findings] == hosts
    assert {finding.verdict for finding in findings} == {verdict}
    assert re.search(found, findings[0].found), findings[0].found
    text = report.text(findings, cluster.plan.asked)
    assert re.search(fix, text), text
    flowing = re.sub(r"\s+", " ", text)
    for part in (findings[0].found, findings[0].symptom):
        assert part in flowing


def test_an_ifconfig_that_hangs_leaves_its_host_unjudged_and_blames_nobody(tmp_path):
    cluster = three(tmp_path)
    cluster["studio-2"].hang("ifconfig")
    found = checks.judge(cluster.look())
    assert [f for f in found if f.verdict in (FAIL, WARN)] == []
    unjudged = {f.check: f.found for f in found if f.host == "studio-2" and f.verdict == SKIP}
    assert unjudged == dict.fromkeys(("bridge", "ends"), "/sbin/ifconfig did not answer in time")


def test_a_firewall_that_answers_no_ping_is_not_blamed(tmp_path):
    """The far end tells its hardware address all the same, and RDMA needs no more."""
    cluster = two(tmp_path)
    cluster.wiring.stealthy |= {"studio-1:en3", "studio-2:en3"}
    cluster.rewire()
    assert cluster.findings() == []


def test_each_step_out_of_the_bridge_is_offered_once_with_what_takes_it_back(tmp_path):
    """What --fix does, and the look after it, until nothing is left."""
    cluster = two(tmp_path)
    cluster.wiring.bridge("studio-1", ["en3"])
    cluster.rewire()
    (first,) = offered(cluster.findings())
    cluster.wiring.make_inactive("studio-1")
    cluster.rewire()
    (second,) = offered(cluster.findings())
    cluster.wiring.bridged["studio-1"] = []
    cluster.wiring.configured["studio-1"] = {}
    cluster.rewire()
    assert cluster.findings() == []
    assert first.fix.command.startswith(
        'sudo networksetup -setnetworkserviceenabled "Thunderbolt Bridge" off && sleep 3; '
        "if /sbin/ifconfig bridge0 | grep -q 'member: '; then sudo cp -p "
    )
    assert first.fix.command.endswith("; fi")
    assert '"Thunderbolt Bridge" on && sudo cp' in first.fix.undo
    assert second.fix.command.startswith("sudo cp -p ")
    assert second.fix.undo.endswith(
        "sudo /sbin/ifconfig bridge0 addm en3 && sudo /sbin/ifconfig bridge0 up"
    )


def test_the_doctor_pings_once_it_knows_the_addresses_and_keeps_its_deadline(tmp_path, monkeypatch):
    cluster = two(tmp_path)
    cluster.wiring.deaf.add("studio-2:en3")
    cluster.rewire()
    limits = []

    def ping(networks, links, *, within_s):
        limits.append(within_s)
        return cluster.ping_far_ends(networks, links)

    monkeypatch.setattr(main, "ask_hosts", lambda *_: cluster.raws())
    monkeypatch.setattr(main, "ping_far_ends", ping)
    for deadline_s, within_s in ((600.0, 20.0), (1.0, 8.0)):
        cluster.change(deadline_s=deadline_s)
        _, found = main.examine(cluster.plan)
        assert [f.check for f in found if f.verdict in (FAIL, WARN)] == ["ends"]
        assert limits[-1] == within_s
    cluster.change(checks=frozenset({"disk", "bridge"}))
    main.examine(cluster.plan)
    assert len(limits) == 2


def test_a_change_that_both_ends_must_make_together_is_not_offered(tmp_path):
    """One end alone would leave the two apart."""
    cluster = two(tmp_path)
    cluster.wiring.addresses["studio-1"]["en3"] = "10.5.5.1/30"
    cluster.wiring.addresses["studio-2"]["en3"] = "169.254.7.1/16"
    cluster.rewire()
    (finding,) = cluster.findings()
    assert offered([finding]) == []
    assert "studio-1, at the far end, gets one to match" in finding.fix.words
    cluster.wiring.addresses["studio-1"]["en3"] = "10.77.1.1/30"
    cluster.rewire()
    (finding,) = offered(cluster.findings())
    assert finding.fix.undo == 'sudo networksetup -removenetworkservice "RDMA en3"'


def test_all_facts_of_a_cluster_can_be_told_to_programs(tmp_path):
    looked = two(tmp_path).look()
    told = json.loads(report.as_json(checks.judge(looked), looked))
    interfaces = told["facts"]["studio-1"]["network"]["interfaces"]
    assert interfaces["en3"]["addresses"] == ["10.77.1.1/30"]


def test_a_small_node_is_no_failure_where_layers_can_be_dealt(tmp_path):
    """A Mac of 96 GB beside larger ones: an even share would be too much for it."""
    cluster = three(tmp_path)
    cluster["studio-2"].say("sysctl", sysctl(86))
    for mac in cluster:
        mac.edit("check_model", '"ways": ["tensor"]', '"ways": ["tensor", "generic pipeline"]')
    looked = cluster.look()
    found = checks.judge(looked)
    assert [f for f in found if f.verdict in (FAIL, WARN)] == []
    (small,) = [f for f in found if (f.check, f.host) == ("even", "studio-2")]
    assert small.found == "memory is uneven (69 GB and 412 GB), and layers are dealt by it"
    assert sum(judge_memory.share(looked, facts) for facts in looked.reached) == pytest.approx(
        judge_memory.weights(looked)
    )


def test_what_is_kept_or_known_is_not_warned_of(tmp_path):
    """A lasting limit, FileVault without a service, a laptop, an older macOS, a later chip, a
    firewall that lets signed programs in."""
    cluster = two(tmp_path)
    first, second = cluster["studio-1"], cluster["studio-2"]
    for mac in cluster:
        mac.say("sysctl", sysctl(128, 122880, chip="Apple M7 Pro"))
        mac.say("limit_kept", "/Library/LaunchDaemons/com.example.gpu.plist\n")
        mac.say("displays", displays(1))
        mac.edit("pmset", " autorestart          1\n", "")
    first.say("fdesetup", "FileVault is On.\n")
    first.say("firewall:apps", firewall_apps())
    second.say("firewall:state", "Firewall is disabled. (State = 0)\n")
    assert cluster.findings() == []


def test_a_running_server_is_not_taken_for_a_leftover(tmp_path):
    """Its ranks, its ports, its use of the devices and its memory are all as they should be."""
    cluster = two(tmp_path)
    for place, name in enumerate(("studio-1", "studio-2")):
        cluster[name].rank(place, "run-7", 500 + place)
        cluster[name].say("ioreg", ioreg({"rdma_en3": (2, [(500 + place, "python")])}))
        cluster[name].say("vm_stat", vm_stat(300))
    for port in (32323, 8080):
        cluster["studio-1"].listens(port, "python", 500)
    looked = cluster.look()
    leftover = [f for f in checks.judge(looked) if f.verdict in (FAIL, WARN)]
    assert {finding.check for finding in leftover} == {"ranks"}
    running = replace(looked, supervised=frozenset({"run-7"}))
    assert [f for f in checks.judge(running) if f.verdict in (FAIL, WARN)] == []


def test_a_pid_that_is_somebody_elses_by_now_is_no_rank(tmp_path):
    cluster = two(tmp_path)
    cluster["studio-1"].rank(0, "run-7", 500, command="/usr/sbin/cupsd -l")
    assert cluster.findings() == []


def test_a_tool_that_is_gone_is_no_failure_of_what_it_would_have_told(tmp_path):
    cluster = two(tmp_path)
    silent = {
        "sleep": "pmset",
        "power": "pmset",
        "display": "pmset",
        "wired": "vm_stat",
        "queues": "ioreg",
        "domains": "ioclasscount",
        "filevault": "fdesetup",
    }
    for tool in (*silent.values(), "sw_vers", "limit_kept", "daemons", "displays", "brew", "ls"):
        cluster["studio-2"].remove(tool)
    looked = checks.judge(cluster.look())
    assert [f for f in looked if f.verdict in (FAIL, WARN)] == []
    text = report.text(looked, cluster.plan.asked)
    for check, tool in silent.items():
        assert f"-     studio-2: {check}: there is no {tool}" in text


def test_shards_have_the_size_that_the_rows_rely_on(tmp_path):
    write_model(tmp_path / "m")
    assert sum(path.stat().st_size for path in (tmp_path / "m").glob("*.safetensors")) == 200 << 30
