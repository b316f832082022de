"""verify_cluster.sh against several real sshd, some of which have something wrong with them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.tiny_models import write_byte_tokenizer

GUARD_S = 240  # far beyond the doctor's own deadlines
SETTINGS = ("MODEL_DIR", "HOSTFILE", "BACKEND", "PARALLEL", "ENV_NAME", "CLUSTER_PORT")
# All that needs no MLX, whose import takes its time on a busy machine.
QUICK = (
    "hostfile", "environment", "python", "versions", "checkout", "macos", "ranks", "address",
    "path", "model", "heads", "disk",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model folder that can be split over one to five ranks."""
    folder = tmp_path_factory.mktemp("models") / "small"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "hidden_size": 3840,
        "intermediate_size": 7680,
        "num_attention_heads": 60,
        "num_key_value_heads": 60,
        "num_hidden_layers": 2,
        "vocab_size": 60,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_byte_tokenizer(folder)
    template = "{{ tools }}{{ messages }} calls as <tool_call>"
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def verify(nodes, hostfile: Path, *options: str, **settings: str) -> subprocess.CompletedProcess:
    env = {name: value for name, value in nodes.env.items() if name not in SETTINGS}
    env |= {"HOSTFILE": str(hostfile), "PYTHON": sys.executable, "HTTP_PORT": "18477"} | settings
    return subprocess.run(
        [ROOT / "scripts/verify_cluster.sh", *options],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=GUARD_S,
    )


def bad(item: dict) -> bool:
    return item["verdict"] == "fail"


def only(*checks: str) -> list[str]:
    return [word for check in checks for word in ("--check", check)]


def test_the_doctor_names_each_of_five_troubles_and_still_checks_the_others(nodes, model, tmp_path):
    """1 talks, 2 has another mlx, 3 another model file, 4 hangs, and one is down."""
    names = ["node-1", "node-2", "node-3", "node-4", "node-gone"]
    hostfile = nodes.write_hostfile(tmp_path / "ring.json", names)
    nodes["node-1"].profile("Welcome to node-1!\n")
    nodes["node-2"].pretend("mlx", "0.31.0")
    nodes["node-3"].replace(model / "tokenizer.json", b'{"another": 1}')
    nodes["node-4"].hang()
    done = verify(nodes, hostfile, "--json", "--deadline", "7", *only(*QUICK), MODEL_DIR=str(model))
    assert done.returncode == 1, done.stderr
    data = json.loads(done.stdout)
    found = {}
    for item in data["findings"]:
        found.setdefault((item["check"], item["host"]), []).append(item)
    failed = {
        (item["check"], item["host"]): item
        for item in data["findings"]
        if item["verdict"] == "fail"
    }
    assert set(failed) == {
        ("ssh", "node-1"),
        ("versions", "node-2"),
        ("model", "node-3"),
        ("ssh", "node-4"),
        ("ssh", "node-gone"),
    }
    assert "prints by itself: Welcome to node-1!" in failed["ssh", "node-1"]["found"]
    assert failed["versions", "node-2"]["found"].startswith("mlx 0.31.0, the others ")
    assert failed["model", "node-3"]["found"].startswith("tokenizer.json has another content")
    assert failed["ssh", "node-4"]["found"] == "no answer within 7 s"
    assert "Connection refused" in failed["ssh", "node-gone"]["found"]
    # The three that answered are judged by every check, the two others by none.
    for name in names[:3]:
        for check in ("python", "checkout", "disk"):
            assert [item["verdict"] for item in found[check, name]] == ["pass"], (check, name)
    for name in names[3:]:
        assert found["python", name][0]["verdict"] == "skip"
    assert {item["verdict"] for item in found["path", "node-1"]} == {"pass"}
    # One ssh for each, and nothing else was run there.
    assert [node.commands() for node in nodes] == [[f"/bin/sh -s {n}"] for n in range(4)]


def test_three_healthy_nodes_pass_every_check(nodes, model, tmp_path):
    hostfile = nodes.write_hostfile(tmp_path / "ring.json", nodes.names[:3])
    done = verify(nodes, hostfile, "--json", MODEL_DIR=str(model))
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads(done.stdout)
    assert data["counts"]["fail"] == data["counts"]["warn"] == 0, data["findings"]
    assert {item["verdict"] for item in data["findings"] if item["check"] == "compute"} == {"pass"}
    assert {item["verdict"] for item in data["findings"] if item["check"] == "path"} == {"pass"}


def test_a_stray_variable_a_missing_python_and_a_wrong_address_are_named(nodes, tmp_path):
    folder = tmp_path / "python"
    nodes["node-3"].shadow(folder)
    wrapper = folder / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    nodes["node-2"].setenv("MLX_HOSTFILE", "/tmp/old.json")
    hostfile = tmp_path / "ring.json"
    addresses = ["127.0.0.1", "192.0.2.1", "127.0.0.1"]
    hosts = [{"ssh": f"node-{n}", "ips": [ip]} for n, ip in enumerate(addresses, 1)]
    hostfile.write_text(json.dumps({"backend": "ring", "hosts": hosts}))
    done = verify(
        nodes,
        hostfile,
        *("--deadline", "6"),
        *only("environment", "python", "address", "path", "disk"),
        PYTHON=str(wrapper),
    )
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAIL", "warn"))]
    assert [line.split(": ")[:2] for line in lines] == [
        ["FAIL  node-2", "environment"],
        ["FAIL  node-3", "python"],
        ["FAIL  node-2", "address"],
    ]
    assert "MLX_HOSTFILE set for every command" in lines[0]
    assert f"there is no {wrapper}" in lines[1]
    assert "192.0.2.1 is not an address of node-2: EADDRNOTAVAIL" in lines[2]
    assert "scripts/sync_nodes.sh" in done.stdout


def test_nothing_of_the_doctor_is_left_on_the_nodes(nodes, tmp_path):
    hostfile = nodes.write_hostfile(tmp_path / "ring.json", nodes.names[:2])
    before = sorted(os.listdir(nodes["node-2"].home))
    assert verify(nodes, hostfile, *only("disk", "versions")).returncode == 0
    assert sorted(os.listdir(nodes["node-2"].home)) == before
    assert nodes["node-2"].processes() == []
