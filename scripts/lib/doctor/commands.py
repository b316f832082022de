"""Which of its own tools a host is asked to run, by absolute path: ssh has nearly no PATH.

One table for the probe, for the answer without Python, and for --dry-run. Every command only
reads. A name is the tool's, with what it is asked about after a colon: `ibv_devinfo:rdma_en2`.
"""

from scripts.lib.cabling.network import ASKED
from scripts.lib.doctor.plan import Plan
from server.protocol.domains import COUNT

PACKAGES = ("mlx", "mlx-lm", "transformers", "huggingface-hub", "llguidance", "prometheus-client")

# Asked of the ranks' interpreter.
PYTHON_NAMES = ("versions", "mlx", "check_model", "formats", "check_models")

# Each: argv, and how many seconds it may take.
Command = tuple[list[str], float]

VERSIONS = """\
import json, os, platform, sys, sysconfig
from importlib.metadata import PackageNotFoundError, version
def find(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
# python.org's and Homebrew's bin/python3 only starts this one, which is what a firewall sees.
name = sysconfig.get_config_var("PYTHONFRAMEWORK") or ""
app = os.path.join(sys.base_prefix, "Resources", name + ".app", "Contents", "MacOS", name)
print(json.dumps({
    "binary": os.path.realpath(app if name and os.path.exists(app) else sys.executable),
    "python": platform.python_version(),
    "machine": platform.machine(),
    "system": sys.platform,
    "packages": {name: find(name) for name in sys.argv[1].split(",")},
}))
"""

# A line after each step, so that it is known where it hangs.
MLX = """\
import json
import mlx.core as mx
def say(**words):
    print(json.dumps(words), flush=True)
say(jaccl=mx.distributed.is_available("jaccl"))
answer = mx.ones(3) + 1
mx.eval(answer)
say(sum=sum(answer.tolist()))
info = mx.device_info() if mx.default_device().type == mx.DeviceType.gpu else {}
say(gpu_limit=info.get("max_recommended_working_set_size"))
"""

FIREWALL = "/usr/libexec/ApplicationFirewall/socketfilterfw"
SYSCTL_CONF = "/etc/sysctl.conf"
GENERAL = {
    "sw_vers": (["/usr/bin/sw_vers"], 5),
    "sysctl": (
        ["/usr/sbin/sysctl", "hw.memsize", "iogpu.wired_limit_mb", "machdep.cpu.brand_string"],
        5,
    ),
    "limit_kept": (
        ["/usr/bin/grep", "-rls", "iogpu.wired_limit_mb", "/Library/LaunchDaemons", SYSCTL_CONF],
        5,
    ),
    "vm_stat": (["/usr/bin/vm_stat"], 5),
    "pmset": (["/usr/bin/pmset", "-g"], 5),
    "displays": (["/usr/sbin/system_profiler", "SPDisplaysDataType", "-json"], 30),
    "fdesetup": (["/usr/bin/fdesetup", "status"], 5),
    "daemons": (["/bin/ls", "/Library/LaunchDaemons"], 5),
    "firewall:state": ([FIREWALL, "--getglobalstate"], 5),
    "firewall:block": ([FIREWALL, "--getblockall"], 5),
    "firewall:apps": ([FIREWALL, "--listapps"], 5),
    "brew": (["/opt/homebrew/bin/brew", "--prefix"], 5),
    "getifaddr:en0": (["/usr/sbin/ipconfig", "getifaddr", "en0"], 5),
    "getifaddr:en1": (["/usr/sbin/ipconfig", "getifaddr", "en1"], 5),
}
THUNDERBOLT = {
    "rdma_ctl": (["/usr/bin/rdma_ctl", "status"], 10),
    "ibv_devices": (["/usr/bin/ibv_devices"], 10),
    **{name: (list(argv), 10) for name, argv in ASKED.items()},
    "networksetup": (["/usr/sbin/networksetup", "-listallhardwareports"], 10),
    "system_profiler": (
        ["/usr/sbin/system_profiler", "SPThunderboltDataType", "-json"],
        30,
    ),
    "ioclasscount": (list(COUNT), 5),
    "ioreg": (["/usr/sbin/ioreg", "-r", "-c", "AppleThunderboltIPPort", "-l"], 10),
}
LINUX = {
    "meminfo": (["/bin/cat", "/proc/meminfo"], 5),
    "os-release": (["/bin/cat", "/etc/os-release"], 5),
}


def commands_for(plan: Plan, host: str, needed: set[str]) -> dict[str, dict[str, Command]]:
    """System (as uname says) to name to command, as far as `needed` names the tool."""
    mac: dict[str, Command] = {**GENERAL}
    if plan.rdma:
        mac |= THUNDERBOLT
        for device in plan.devices(host):
            mac[f"ibv_devinfo:{device}"] = (["/usr/bin/ibv_devinfo", "-v", "-d", device], 10)
    for port in plan.ports_on(host):
        mac[f"lsof:{port}"] = (["/usr/sbin/lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN"], 10)
    both = python_commands(plan, host) | {
        f"ls:{name}": (["/bin/ls", path], 5.0) for name, path in plan.folders.items()
    }
    return {
        system: {
            name: command
            for name, command in {**table, **both}.items()
            if name.partition(":")[0] in needed
        }
        for system, table in (("Darwin", mac), ("Linux", LINUX))
    }


def python_commands(plan: Plan, host: str) -> dict[str, Command]:
    """What the interpreter of the ranks is asked, rather than the one that runs the probe."""
    commands: dict[str, Command] = {
        "versions": ([plan.python, "-c", VERSIONS, ",".join(PACKAGES)], 20),
        "mlx": ([plan.python, "-c", MLX], 30),
    }
    module = [plan.python, f"{plan.checkout}/scripts/lib/module.py"]
    ranks, trust = str(len(plan.ranks)), ["--trust-remote-code"] * plan.trust_remote_code
    if plan.several:
        options = ["--parallel", plan.parallel, "--json", *trust]
        argv = [*module, "lib.model.check_models", ranks, *options, *plan.listed]
        commands["check_models"] = (argv, 45)
    if plan.model_dir is not None:
        options = ["--parallel", plan.parallel, "--json", "--kv-bits", plan.kv_bits, *trust]
        if plan.draft_model_dir is not None and host == plan.rank0:
            options += ["--draft", plan.draft_model_dir]
        argv = [*module, "lib.model.check_model", plan.model_dir, ranks, *options]
        commands["check_model"] = (argv, 30)
        commands["formats"] = ([*argv, "--full"], 45)  # which imports mlx, and may hang there
    return commands
