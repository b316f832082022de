"""sync_model.sh over real ssh and rsync: whole models, or none at all."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts.lib.hosts.hostfile import parse_hostfile
from scripts.lib.model import hub_errors
from scripts.lib.model.check_model import check
from scripts.lib.sync import manifest, node_model, routes
from scripts.lib.sync.parallel import Failure
from tests.support.fake_hub import FakeHub
from tests.support.launch_helpers import wait_until
from tests.support.nodes import FAST_ADDRESS
from tests.support.openrsync import put_openrsync
from tests.support.paths import ROOT

SCRIPT = ROOT / "scripts" / "sync_model.sh"
SHARD = 3_000_000  # bytes


def safetensors(size: int, seed: int) -> bytes:
    """A whole safetensors file with so many bytes of data that do not compress."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    blocks = (hashlib.sha256(f"{seed} {n}".encode()).digest() for n in range(size // 32 + 1))
    return len(header).to_bytes(8, "little") + header + b"".join(blocks)[:size]


FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model-00001-of-00002.safetensors": safetensors(SHARD, 1),
    "model-00002-of-00002.safetensors": safetensors(SHARD // 3, 2),
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors",
                        "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
}  # fmt: skip
FIRST = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"
TOTAL = sum(map(len, FILES.values()))


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    (folder / ".cache").mkdir()
    (folder / ".cache/junk").write_text("not the model's")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Site:
    """A model folder here, and nodes that have no models yet."""

    def __init__(self, tmp_path: Path, nodes):
        self.nodes = nodes
        self.models = tmp_path / 'Jörg\'s "models" & more'
        self.openrsync = put_openrsync(tmp_path / "openrsync")
        self.models.mkdir()
        self.state = tmp_path / "state"
        self.hostfile = nodes.write_hostfile(tmp_path / "hosts.json", nodes.names[:3])
        nodes.shadow(self.models)

    def view(self, name: str) -> Path:
        return self.nodes[name].view(self.models)

    def command(self, *arguments: object) -> list[str]:
        return [str(SCRIPT), *map(str, arguments)]

    def env(self, **more: str) -> dict[str, str]:
        path = f"{self.openrsync}:{self.nodes.env['PATH']}"
        return {
            **self.nodes.env,
            "PATH": path,
            "HOSTFILE": str(self.hostfile),
            "PYTHON": sys.executable,
            **more,
        }

    def sync(self, *arguments: object, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*arguments), env=self.env(**env),
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip


@pytest.fixture
def site(nodes, tmp_path):
    return Site(tmp_path, nodes)


def lines(done: subprocess.CompletedProcess) -> dict[str, str]:
    split = [line.split(None, 2) for line in done.stdout.splitlines()]
    return {host: f"{verdict} {text}" for verdict, host, text in split}


def test_every_host_gets_a_whole_model_and_a_second_run_only_checks(site):
    """Over the address that the hostfile gives, if that works."""
    folder = write_model(site.models / "Tiny-4bit")
    ips = ("127.0.0.1", FAST_ADDRESS, "127.0.0.3")
    hosts = [{"ssh": f"node-{n}", "ips": [ip]} for n, ip in enumerate(ips, 1)]
    site.hostfile.write_text(json.dumps(hosts))
    done = site.sync(folder)
    assert done.returncode == 0, done.stderr
    assert lines(done) == {
        "node-1": "ok this machine, or shares its disk",
        "node-2": f"ok 4 MB of 4 MB copied over {FAST_ADDRESS}, every file has the right hash",
        "node-3": "ok 4 MB of 4 MB copied, every file has the right hash",
    }
    for name in ("node-2", "node-3"):
        assert contents(site.view(name)) == {f"Tiny-4bit/{k}": v for k, v in FILES.items()}
    node = site.nodes["node-2"]
    asked = list(zip(node.addresses(), node.commands(), strict=True))
    assert {address for address, command in asked if "rsync --server" in command} == {FAST_ADDRESS}

    done = site.sync(folder, "node-2")
    assert lines(done)["node-2"] == "ok was there already: 4 MB, every file has the right hash"
    assert len([c for c in node.commands() if "rsync --server" in c]) == 1


def test_a_corrupt_file_is_found_by_its_hash_and_strangers_go(site):
    """The first time it is damaged on its way, and then, much later, on the disk."""
    folder = write_model(site.models / "Tiny-4bit")
    site.nodes["node-2"].stub("rsync", DAMAGE_ONCE)
    done = site.sync(folder, "node-2")
    assert done.returncode == 0, done.stdout
    assert f"node-2: {FIRST}: another content" in done.stderr
    there = site.view("node-2") / "Tiny-4bit"
    assert contents(there) == FILES
    stat = (there / SECOND).stat()
    with (there / SECOND).open("r+b") as file:
        file.seek(500_000)
        file.write(b"another byte")
    os.utime(there / SECOND, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (there / "model-old.safetensors").write_text("mlx-lm would load this, too")
    done = site.sync(folder, "node-2")
    assert done.returncode == 0, done.stderr
    assert f"node-2: {SECOND}: another content: it will be copied again" in done.stderr
    assert "ok 1 MB of 4 MB copied" in lines(done)["node-2"]
    assert contents(there) == FILES


def test_a_copy_that_is_cut_leaves_no_model_and_is_gone_on_with(site):
    """The node loses its power with half of a file written."""
    folder = write_model(site.models / "Tiny-4bit")
    node = site.nodes["node-2"]
    node.stub("rsync", CUT)
    done = site.sync(folder, "node-2")
    assert done.returncode == 1
    assert "the connection broke off" in lines(done)["node-2"]
    view = site.view("node-2")
    assert [p.name for p in view.iterdir()] == ["Tiny-4bit.partial"]
    left = (view / "Tiny-4bit.partial" / FIRST).stat().st_size
    assert 0 < left < len(FILES[FIRST])

    (node.directory / "bin" / "rsync").unlink()
    done = site.sync(folder, "node-2")
    assert done.returncode == 0, done.stderr
    copied = float(lines(done)["node-2"].split()[1])
    assert copied * 1e6 <= TOTAL - left + 1e5
    assert contents(view / "Tiny-4bit") == FILES
    assert not (view / "Tiny-4bit.partial").exists()


DAMAGE_ONCE = f"""
/usr/bin/rsync "$@" || exit
[ -e "$HOME/once" ] || printf damage | dd of={FIRST} bs=1 seek=9999 conv=notrunc 2>/dev/null
touch "$HOME/once"
"""

# Passes 2 MB on to the real rsync, waits until they are written, and dies with all around it.
CUT = f"""
exec {sys.executable} -c '
import os, subprocess, sys, time
rsync = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
left = 2000000
while left > 0 and (data := os.read(0, 65536)):
    rsync.stdin.write(data)
    rsync.stdin.flush()
    left -= len(data)
while not any(os.stat(name).st_size for name in os.listdir(".") if name.startswith("model-00001")):
    time.sleep(0.05)
os.killpg(0, 9)
' /usr/bin/rsync "$@"
"""


def test_one_bad_host_does_not_stop_the_others(site):
    folder = write_model(site.models / "Tiny-4bit")
    site.nodes.write_hostfile(site.hostfile, [*site.nodes.names, "node-gone"])
    site.nodes["node-2"].stub("df", "echo Filesystem; echo x 9 9 1000 9% /")
    (site.view("node-3") / "Tiny-4bit").mkdir()
    (site.view("node-3") / "Tiny-4bit/thesis.txt").write_text("precious")
    done = site.sync(folder)
    said = lines(done)
    assert done.returncode == 1
    assert said["node-2"].startswith("fail 1.02 MB free for ")
    assert "needs another 260 MB" in said["node-2"]
    assert not list(site.view("node-2").iterdir())
    assert "is there and is no model: not touched" in said["node-3"]
    assert (site.view("node-3") / "Tiny-4bit/thesis.txt").read_text() == "precious"
    assert said["node-4"].startswith("ok 4 MB of 4 MB copied")
    assert said["node-gone"].startswith("fail cannot be reached")
    assert done.stderr.splitlines()[-1] == "sync_model.sh: failed on node-2, node-3, node-gone"


@pytest.mark.thorough
def test_several_models_arrive_one_after_the_other_if_there_is_room_for_all(site):
    write_model(site.models / "ORG/One-4bit")
    write_model(site.models / "Two")
    (write_model(site.models / "Broken") / "tokenizer.json").unlink()
    several = {"MODELS": f"two={site.models / 'Two'}", "MODELS_DIR": str(site.models)}
    # Room for one of them.
    site.nodes["node-2"].stub("df", "echo Filesystem; echo x 9 9 254000 9% /")
    done = site.sync("--all", "node-2", "node-3", **several)
    assert done.returncode == 1
    said = lines(done)
    assert said["node-2"].startswith("fail 260 MB free, and what is missing of 2 models needs")
    assert not list(site.view("node-2").iterdir())
    assert "node-3: model 2 of 2: ORG/One-4bit" in done.stderr
    assert "Broken is left out, not a whole model" in done.stderr
    wanted = {f"{top}/{name}": v for top in ("ORG/One-4bit", "Two") for name, v in FILES.items()}
    assert contents(site.view("node-3")) == wanted
    # A folder of models stands for those that are below.
    (site.models / "Broken/tokenizer.json").write_text("{}")
    done = site.sync(site.models, "node-3")
    assert done.returncode == 0, done.stderr
    texts = [line.split(None, 3) for line in done.stdout.splitlines()]
    assert [(ok, host, name) for ok, host, name, _ in texts] == [
        ("ok", "node-3", name) for name in ("Broken", "ORG/One-4bit", "Two")
    ]
    assert "4 MB of 4 MB copied" in texts[0][3], done.stdout
    assert ["was there already" in text for *_, text in texts] == [False, True, True]


# -- the hub


class Hub:
    """As much of the Hugging Face hub as a download needs. Stands still if asked to."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self):
        hub = self
        self.files = {**FILES, "README.md": b"read me", "model.gguf": b"another format"}
        self.break_at: int | None = None
        self.go_on = threading.Event()
        self.asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def do_GET(self):
                hub.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def describe(self, name: str) -> dict:
        data = FILES.get(name, b"")
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        told = {"rfilename": name, "size": len(data), "blobId": blob}
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(data).hexdigest()
            told["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 9}
        return told

    def answer(self, request) -> None:
        path = request.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path.startswith("/api/models/org/Tiny-4bit"):
            siblings = [self.describe(name) for name in self.files]
            told = {"id": "org/Tiny-4bit", "sha": self.COMMIT, "siblings": siblings}
            self.send(request, 200, json.dumps(told).encode())
        elif f"/resolve/{self.COMMIT}/" in path and name in self.files:
            self.send_file(request, name)
        else:
            self.send(request, 404, b"")

    def send_file(self, request, name: str) -> None:
        data = self.files[name]
        wanted = request.headers.get("Range", "")
        self.asked.append(f"{name} {wanted}".strip())
        start = int(wanted.removeprefix("bytes=").partition("-")[0] or 0)
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if wanted else {}
        stop = self.break_at if name == FIRST else None
        self.send(request, 206 if wanted else 200, data[start:], headers, stop)

    def send(self, request, status: int, data: bytes, headers=(), stop: int | None = None) -> None:
        request.send_response(status)
        for header in dict(headers).items():
            request.send_header(*header)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data[:stop])
        request.wfile.flush()
        if stop is not None:
            self.go_on.wait(60)
            request.close_connection = True


@pytest.fixture
def hub_site(tmp_path):
    hub = Hub()
    models = tmp_path / "models"
    command = [str(SCRIPT), "org/Tiny-4bit", "--to", str(models), "127.0.0.1"]
    base = {**os.environ, "PYTHON": sys.executable, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    base["HF_HOME"] = str(tmp_path / "hf")

    def sync(**env: str) -> subprocess.CompletedProcess:
        how = {"env": {**base, **env}, "capture_output": True, "text": True, "timeout": 120}
        return subprocess.run(command, **how)

    def start() -> subprocess.Popen:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, env=base, start_new_session=True, **quiet)

    sync.start = start
    yield hub, sync, models
    hub.go_on.set()
    hub.server.shutdown()
    hub.server.server_close()


def test_a_repo_is_downloaded_goes_on_after_a_cut_and_is_known_again(hub_site):
    """The machine loses its power when a shard is half there."""
    hub, sync, models = hub_site
    hub.break_at = 2_500_000
    process = sync.start()
    partial = models / "Tiny-4bit.partial"

    def half_there() -> bool:
        cut = partial.glob(f".incoming/{FIRST}.*")
        return any(p.stat().st_size >= 2 << 20 for p in cut) and {
            p.name for p in partial.iterdir() if p.is_file()
        } == FILES.keys() - {FIRST}

    wait_until(half_there)
    os.killpg(process.pid, 9)
    process.wait()
    assert [p.name for p in models.iterdir()] == ["Tiny-4bit.partial"]

    hub.break_at = None
    hub.asked.clear()
    done = sync()
    assert done.returncode == 0, done.stderr
    # What was whole is not asked for again, what was not is gone on with.
    assert hub.asked == [f"{FIRST} bytes={2 << 20}-"]
    found = contents(models / "Tiny-4bit")
    assert json.loads(found.pop(".hub.json")) == {"repo": "org/Tiny-4bit", "commit": Hub.COMMIT}
    assert found == FILES

    assert "Tiny-4bit is org/Tiny-4bit at 0123456789ab already" in sync().stderr
    done = sync(HF_HUB_OFFLINE="1")
    assert done.returncode == 0
    assert "the hub does not answer" in done.stderr
    (models / "Tiny-4bit/.hub.json").unlink()
    done = sync()
    assert done.returncode == 1
    assert "is there already, and it is not from here" in done.stderr


def test_a_download_with_another_hash_is_no_model(hub_site):
    hub, sync, models = hub_site
    hub.files[FIRST] = FILES[FIRST][:-1] + b"?"
    done = sync()
    assert done.returncode == 1
    assert f"{FIRST} did not arrive whole and was removed" in done.stderr
    assert not (models / "Tiny-4bit").exists()
    done = sync(HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
    assert "HF_HUB_OFFLINE is set" in done.stderr


@pytest.mark.parametrize(
    ("of", "status", "words"),
    [
        ("everything", 401, "it is private, and HF_TOKEN is not set"),
        ("everything", 403, "is gated: ask for access"),
        ("everything", 404, "there is no org/Tiny-4bit at http://127.0.0.1"),
        ("everything", 429, "asked too often: try again later"),
        ("everything", 500, "answers 500"),
        ("everything", None, "cannot be reached"),
        # Under way the hub's package itself tries the others again for a while.
        ("weights", 401, "it is private, and HF_TOKEN is not set"),
        ("weights", 403, "is gated: ask for access"),
        ("weights", 404, "there is no org/Tiny-4bit at http://127.0.0.1"),
    ],
)
def test_what_the_hub_or_the_network_does_is_a_sentence(hub_site, monkeypatch, of, status, words):
    """One that nobody reaches was a traceback; of a download under way, what its package says."""
    hub, sync, models = hub_site
    usual = hub.answer

    def answer(request):
        if of == "weights" and FIRST not in request.path:
            usual(request)
        elif status is None:
            request.close_connection = True
        else:
            hub.send(request, status, b"")

    monkeypatch.setattr(hub, "answer", answer)
    done = sync()
    told = [line for line in done.stderr.splitlines() if "downloading" not in line]
    assert (done.returncode, done.stdout, len(told)) == (3, "", 1), done.stderr
    assert words in told[0]
    if of == "weights":
        assert f"the download of {FIRST} broke off" in told[0] and "run it again" in told[0]
    assert not (models / "Tiny-4bit").exists()


def test_no_network_names_a_proxy_and_another_hub(hub_site):
    done = hub_site[1](HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), done.stderr
    assert "sync_model.sh: http://127.0.0.1:9 cannot be reached: " in done.stderr
    assert "HTTPS_PROXY" in done.stderr and "HF_ENDPOINT" in done.stderr


def test_a_disk_that_is_full_is_not_the_networks_fault():
    full, reset = OSError(28, "No space left on device"), ConnectionResetError(104, "reset")
    assert hub_errors.is_ours(full) and not hub_errors.is_ours(reset)
    assert "cannot be kept here: [Errno 28] No space" in hub_errors.why(full, "org/x", None)


# -- without nodes


def test_hashes_of_the_source_are_kept_until_a_file_changes(tmp_path, monkeypatch):
    folder, cache = write_model(tmp_path / "m"), tmp_path / "state" / "cache.json"
    first = manifest.read_items(folder, cache)
    assert {item.name: item.sha256 for item in first} == {
        name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()
    }
    hashed = []
    plain = manifest.hash_file
    monkeypatch.setattr(
        manifest, "hash_file", lambda path, count: (hashed.append(path.name), plain(path, count))[1]
    )
    assert manifest.read_items(folder, cache) == first
    assert hashed == []
    (folder / "config.json").write_text("{}")
    assert manifest.read_items(folder, cache) != first
    assert hashed == ["config.json"]
    cache.write_text("not json")
    assert len(manifest.read_items(folder, cache)) == len(first)


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "m")

    def hash_file(path, count):
        path.write_bytes(path.read_bytes() + b"more")
        return "x"

    monkeypatch.setattr(manifest, "hash_file", hash_file)
    with pytest.raises(Failure, match="changes while it is read"):
        manifest.read_items(folder, tmp_path / "cache.json")


def job(folder: Path, **more) -> dict:
    items = [[name, len(data), hashlib.sha256(data).hexdigest()] for name, data in FILES.items()]
    return {"folder": str(folder), "token": "/nowhere", "items": items, "bad": [],
            "known": list(FILES), "place": "final", "finish": False, **more}  # fmt: skip


def test_what_a_host_has_is_reused_whatever_its_name(tmp_path):
    """A model of which one file is wrong, and an unfinished copy of the same model."""
    folder, partial = write_model(tmp_path / "m"), tmp_path / "m.partial"
    (folder / FIRST).write_bytes(b"short")
    partial.mkdir()
    (partial / FIRST).write_bytes(FILES[FIRST][:1000])
    (partial / "tokenizer.json").write_bytes(FILES["tokenizer.json"])
    node_model.prepare(job(folder, bad=["config.json"]))
    assert not folder.exists()
    assert (partial / FIRST).read_bytes() == FILES[FIRST][:1000]
    assert (partial / SECOND).read_bytes() == FILES[SECOND]
    assert not (partial / "config.json").exists()
    checked = node_model.check(job(folder, place="partial"))
    assert checked["bad"] == {
        "config.json": "missing", FIRST: f"1000 bytes of {len(FILES[FIRST])}",
    }  # fmt: skip


def test_only_a_model_is_ever_replaced(tmp_path):
    assert node_model.state_of(tmp_path / "none") == "none"
    assert node_model.state_of(tmp_path) == "model"  # empty
    (tmp_path / "config.json").write_text("{}")
    assert node_model.state_of(tmp_path) == "model"
    (tmp_path / "config.json").rename(tmp_path / "letter.txt")
    assert node_model.state_of(tmp_path) == "other"
    link = tmp_path / "link"
    link.symlink_to("/nowhere")
    assert node_model.state_of(link) == "other"


def test_an_unfinished_copy_is_never_accepted_as_a_model(tmp_path):
    folder = write_model(tmp_path / "m.partial")
    assert any("is an unfinished copy" in reason for reason in check(folder, 1).reasons)
    done = subprocess.run(
        [SCRIPT, folder, "127.0.0.1"], env={**os.environ, "PYTHON": sys.executable},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "is an unfinished copy: name the model itself" in done.stderr


def test_a_cable_to_rank_0_comes_before_other_addresses(monkeypatch):
    hosts = parse_hostfile(json.dumps([
        {"ssh": "mac0", "ips": ["10.0.0.1"], "rdma": [None, ["rdma_en3", "rdma_en4"], "rdma_en5"]},
        {"ssh": "mac1", "ips": ["10.0.0.2"], "rdma": [["rdma_en6", "rdma_en7"], None, "rdma_en5"]},
        {"ssh": "mac2", "rdma": ["rdma_en5", "rdma_en4", None]},
    ]))  # fmt: skip

    class Answer:
        output = f"{routes.MARK}\nen6 \nen7 169.254.7.7\n"

    asked = []
    monkeypatch.setattr(routes, "ask", lambda host, words: asked.append(words[4:]) or Answer())
    found = list(routes._candidates("mac1", 1, hosts))
    assert asked == [["en6", "en7"]]
    assert found == [
        ("169.254.7.7", "en4", "over Thunderbolt (en7 there, 169.254.7.7)"),
        ("10.0.0.2", "", "over 10.0.0.2"),
    ]
    assert routes.find_route("mac0", hosts) == routes.BY_NAME
    assert routes.find_route("elsewhere", hosts) == routes.BY_NAME


def test_an_interrupted_run_ends_its_copies(site):
    folder = write_model(site.models / "Tiny-4bit")
    site.nodes["node-2"].stub("rsync", "sleep 1000")
    process = subprocess.Popen(
        site.command(folder, "node-2"), env=site.env(), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: any("rsync --server" in c for c in site.nodes["node-2"].commands()))
    os.killpg(process.pid, 15)
    out, err = process.communicate(timeout=240)
    assert (process.returncode != 0, out) == (True, "")
    assert "interrupted; run it again to go on" in err


def test_a_repo_that_no_rank_could_serve_is_refused_before_it_is_downloaded(tmp_path):
    hub = FakeHub("org/Tiny-4bit", {**FILES, "config.json": b'{"model_type": "zebra"}'})
    env = {**os.environ, "PYTHON": sys.executable, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    env["HF_HOME"] = str(tmp_path / "hf")
    command = [str(SCRIPT), "org/Tiny-4bit", "--to", str(tmp_path / "models"), "127.0.0.1"]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    finally:
        hub.close()
    assert done.returncode == 1
    assert "org/Tiny-4bit cannot be served: model_type is 'zebra'" in done.stderr
    assert not (tmp_path / "models").exists()
    assert hub.sent.keys() == {"config.json"}
