"""What this rank's computer is, and what its process takes of its memory.

Called on the main thread of every rank; MLX is asked only for what it alone knows. A value that
this system does not tell is None or empty, never a guess.
"""

import ctypes
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import mlx.core as mx

from server.observe.fleet import Machine, Vitals

SYSCTL_S = 5.0
PROC_PIDTASKINFO = 4  # of macOS's <sys/proc_info.h>


def describe_machine() -> Machine:
    """The computer's chip, system and memory."""
    gpu = mx.default_device().type == mx.DeviceType.gpu
    limit = mx.device_info().get("max_recommended_working_set_size") if gpu else None
    return Machine(_chip(), _system(), _memory_total(), None if limit is None else int(limit))


def measure_vitals() -> Vitals:
    """This process's memory now. Takes some microseconds."""
    return Vitals(mx.get_active_memory(), mx.get_peak_memory(), resident_bytes())


def resident_bytes() -> int:
    """Physical memory that this process holds; on systems unknown to us, the most it ever held."""
    if sys.platform == "linux":
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    if sys.platform == "darwin":
        # struct proc_taskinfo begins with the virtual and the resident size; it has 96 bytes.
        info = (ctypes.c_uint64 * 12)()
        asked = ctypes.CDLL(None).proc_pidinfo(
            os.getpid(), PROC_PIDTASKINFO, ctypes.c_uint64(0), info, ctypes.sizeof(info)
        )
        if asked == ctypes.sizeof(info):
            return int(info[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _chip() -> str:
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _system() -> str:
    if sys.platform == "darwin":
        build = _sysctl("kern.osversion")
        return f"macOS {platform.mac_ver()[0]}" + (f" ({build})" if build else "")
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def _memory_total() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None


def _sysctl(name: str) -> str:
    try:
        done = subprocess.run(
            ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=SYSCTL_S
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
