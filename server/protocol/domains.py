"""The protection domains of a Mac: how the kernel is asked for them, and what it says.

A rank asks before it starts, the doctor whenever it is called. Standard library only.
"""

from __future__ import annotations

import re

KERNEL_CLASS = "AppleThunderboltRDMAProtectionDomain"
COUNT = ("/usr/sbin/ioclasscount", KERNEL_CLASS)
MOST = 11  # reported by owners; nothing of Apple's says it. PROTECTION_DOMAINS is for who knows


def parse_count(text: str) -> int | None:
    """What ioclasscount says: `AppleThunderboltRDMAProtectionDomain = 3`."""
    found = re.search(rf"^\s*{KERNEL_CLASS}\s*[=:]?\s*(\d+)", text, re.M)
    return int(found.group(1)) if found else None
