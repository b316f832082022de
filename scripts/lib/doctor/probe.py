"""Looks at one host and prints what it saw as one JSON object. Judges nothing, changes nothing.

ask.py sends this text through ssh to a Python on each host, which need not be ours: so Python 3.9
and its standard library must do, and it imports nothing of this package; what it shares with the
ranks, server/protocol/fingerprint.py, comes as text before it. It runs each command
that it is told to, by absolute path, each with its own deadline and all at once; reads the model
folder, our pid files and the ports; and tries whether the ranks can reach each other over TCP,
on a port of its own, never on the one where ranks meet. A thread that hangs is left behind: the
answer is printed in time and the process ends.

The job says what to do. job["root"] stands before every path, so that a test can put a whole
invented machine into a directory.
"""

import errno
import glob
import importlib
import json
import os
import pathlib
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

CONFIG_LIMIT = 1 << 20  # bytes of config.json that are sent home
STRANGER = "something else answers there"


def run(argv, within_s, root=""):
    """One command: its state (done, late, missing, refused), exit code and texts."""
    path = root + argv[0]
    if not os.path.exists(path):
        return {"state": "missing"}
    try:
        process = subprocess.Popen(
            [path] + argv[1:],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ, LC_ALL="C"),
            start_new_session=True,
        )
    except OSError as error:
        return {"state": "refused", "err": str(error)}
    try:
        out, err = process.communicate(timeout=within_s)
        state = "done"
    except subprocess.TimeoutExpired as late:
        # One that is stuck in the kernel cannot be ended; it is not waited for.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except OSError:
            pass
        out, err, state = late.stdout or b"", late.stderr or b"", "late"
    return {
        "state": state,
        "code": process.returncode,
        "out": out.decode("utf-8", "replace"),
        "err": err.decode("utf-8", "replace"),
    }


def shared(name):
    """What server/protocol/fingerprint.py has, whose text ask.py puts before this one."""
    if name in globals():
        return globals()[name]
    return getattr(importlib.import_module("server.protocol.fingerprint"), name)  # in tests


def look_at_code(job, host):
    checkout = job["root"] + job["checkout"]
    if not os.path.isdir(checkout):
        return {"exists": False}
    try:
        return {"exists": True, "digest": shared("code_fingerprint")(pathlib.Path(checkout))}
    except OSError as error:
        return {"exists": True, "error": str(error)}


def look_at_model(job, host):
    """Name to a short description of every file, as the ranks' handshake has it."""
    folder = pathlib.Path(job["root"] + job["model_dir"])
    if not folder.is_dir():
        return {"exists": False}
    files = shared("fingerprint_files")(folder)
    weights = sum(path.stat().st_size for path in folder.glob(shared("WEIGHT_FILES")))
    try:
        with open(folder / "config.json", encoding="utf-8") as file:
            config = file.read(CONFIG_LIMIT)
    except (OSError, ValueError):
        config = ""
    return {"exists": True, "files": files, "weights": weights, "config": config}


def look_for_ranks(job, host):
    """Every process that our pid files name, with what ps says of it now."""
    found = []
    pattern = os.path.join(job["root"] + job["checkout"], "run", "*", "*.pid")
    for path in sorted(glob.glob(pattern)):
        try:
            with open(path) as file:
                pid, run_id = file.read().split()[:2]
        except (OSError, ValueError):
            continue
        ps = run(["/bin/ps", "-ww", "-p", pid, "-o", "etime=,command="], 5, job["root"])
        if ps.get("code") != 0:
            ps = {"state": "done", "out": from_proc(job["root"], pid)}
        found.append({"file": path[len(job["root"]) :], "pid": pid, "run": run_id, "ps": ps})
    return found


def from_proc(root, pid):
    """The same of Linux's /proc, for slim containers, which have no ps or a lesser one."""
    try:
        with open(root + "/proc/uptime") as file:
            up = float(file.read().split()[0])
        with open(root + "/proc/" + pid + "/stat") as file:
            started = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        with open(root + "/proc/" + pid + "/cmdline", "rb") as file:
            words = file.read().replace(b"\0", b" ").decode("utf-8", "replace")
    except (OSError, ValueError, IndexError):
        return ""
    minutes, seconds = divmod(max(0, int(up - started)), 60)
    return f"{minutes}:{seconds:02d} {words}"


def look_for_listeners(job, host):
    """Who listens on the ports that we will need: names from Linux's /proc, elsewhere from lsof."""
    found = []
    for table in ("tcp", "tcp6"):
        try:
            with open(job["root"] + "/proc/net/" + table) as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        for row in rows:
            port = int(row[1].rpartition(":")[2], 16)
            if row[3] == "0A" and port in host["ports"]:
                found.append(dict(owner_of(row[9]), port=port))
    seen = {entry["port"] for entry in found}
    for port in [] if job["root"] else host["ports"]:
        # lsof shows other users' processes to root alone; a bind is refused whoever it is.
        if port not in seen and not may_bind(port):
            found.append({"pid": None, "command": "", "port": port})
    return found


def may_bind(port):
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def owner_of(inode):
    """The process that has this socket, if it is one of ours to see."""
    for link in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            if os.readlink(link) == f"socket:[{inode}]":
                pid = link.split("/")[2]
                with open(f"/proc/{pid}/cmdline") as file:
                    # The program alone: what it was told may be a secret.
                    return {"pid": int(pid), "command": file.read().split("\0")[0]}
        except OSError:
            continue
    return {"pid": None, "command": ""}


def try_addresses(job, host):
    """Address to "" where this host has it, else the error that a rank would get."""
    results = {}
    for address in host["bind"]:
        try:
            family, kind, _, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as trial:
                trial.bind(place)
            results[address] = ""
        except OSError as error:
            results[address] = describe(error)
    return results


def look_at_disk(job, host):
    folder = job["root"] + job["checkout"]
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    usage = shutil.disk_usage(folder)
    return {"free": usage.free, "total": usage.total}


def look_at_files(job, host):
    """How many files a process may have open at most; None: any number."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return {"hard": None if hard == resource.RLIM_INFINITY else hard}


def look_at_environment(job, host):
    """What every rank here would inherit from the shell's start-up files."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("MLX_", "JACCL_", "DYLD_")) or name in ("PYTHONHOME", "PYTHONPATH")
    }


def listen(job, host):
    """Greets everybody who should be able to reach this host; lists who did."""
    came = set()
    if not host["listen"]["expected"]:
        return {"came": [], "error": ""}  # on a Mac, listening may open a window that asks
    deadline = time.monotonic() + job["path_s"]
    try:
        server = socket.create_server(("", host["listen"]["port"]))
    except OSError as error:
        return {"came": [], "error": describe(error)}
    with server:
        while len(came) < host["listen"]["expected"] and time.monotonic() < deadline:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                peer, _ = server.accept()
                with peer:
                    peer.settimeout(2)
                    name = peer.recv(256).decode("utf-8", "replace").strip()
                    peer.sendall(job["nonce"].encode())
                    came.add(name)
            except OSError:
                continue
    return {"came": sorted(came), "error": ""}


def connect(job, host):
    """To each address that a rank here will connect to: "" or the last error."""
    results = [dict(target, error="not tried") for target in host["connect"]]
    deadline = time.monotonic() + job["path_s"]
    open_ones = list(results)
    while open_ones and time.monotonic() < deadline:
        for target in list(open_ones):
            target["error"] = greet(job, host, target)
            if target["error"] in ("", STRANGER):
                open_ones.remove(target)
        if open_ones:
            time.sleep(0.2)  # the listener may not be there yet
    return results


def greet(job, host, target):
    try:
        with socket.create_connection((target["address"], target["port"]), timeout=3) as peer:
            peer.sendall((host["host"] + "\n").encode())
            peer.settimeout(3)
            answer = peer.recv(256).decode("utf-8", "replace")
    except OSError as error:
        return describe(error)
    return "" if answer == job["nonce"] else STRANGER


def describe(error):
    if error.errno is None and "timed out" in str(error):  # its class differs with the version
        return "ETIMEDOUT: no answer"
    name = errno.errorcode.get(error.errno or 0, "error")
    return f"{name}: {error.strerror or error}"


TASKS = {
    "code": look_at_code,
    "model": look_at_model,
    "ranks": look_for_ranks,
    "listeners": look_for_listeners,
    "addresses": try_addresses,
    "disk": look_at_disk,
    "files": look_at_files,
    "environment": look_at_environment,
    "listen": listen,
    "connect": connect,
}


def collect(job, index):
    """Does everything at once and returns what is there when time is up."""
    host = job["hosts"][index]
    system = job.get("system") or platform.system()
    commands, tasks = {}, {}
    began = time.monotonic()

    def command(name, argv, within_s):
        commands[name] = run(argv, within_s, job["root"])

    def task(name):
        try:
            tasks[name] = TASKS[name](job, host)
        except Exception as error:  # whatever it is, the other answers are wanted
            tasks[name] = {"failed": f"{type(error).__name__}: {error}"}

    threads = [
        threading.Thread(target=command, args=(name, argv, min(limit, job["within_s"])))
        for name, (argv, limit) in host["commands"].get(system, {}).items()
    ]
    threads += [threading.Thread(target=task, args=(name,)) for name in job["tasks"]]
    for thread in threads:
        thread.daemon = True
        thread.start()
    for thread in threads:
        thread.join(max(0, began + job["within_s"] + 1 - time.monotonic()))
    wanted = host["commands"].get(system, {})
    return {
        "system": system,
        "python": sys.executable,
        "commands": {name: commands.get(name, {"state": "late"}) for name in wanted},
        "tasks": {name: tasks.get(name, {"failed": "no answer in time"}) for name in job["tasks"]},
        "seconds": round(time.monotonic() - began, 2),
    }


def main(job, index):
    answer = json.dumps(collect(job, index))
    sys.stdout.write(f"\n{job['begin']}\n{answer}\n{job['end']}\n")
    sys.stdout.flush()
    os._exit(0)  # threads that hang would hold the process
