"""`python scripts/lib/doctor ...`, as verify_cluster.sh calls it."""

import sys
from pathlib import Path

# A folder that is run stands on sys.path itself; its modules are found from the one above.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from doctor.main import main  # noqa: E402

try:
    sys.exit(main(sys.argv[1:]))
except KeyboardInterrupt:
    sys.exit(130)
