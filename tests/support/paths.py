"""Where things are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAULT_SITE = ROOT / "tests" / "support" / "fault_site"  # PYTHONPATH of ranks
