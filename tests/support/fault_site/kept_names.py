"""The names that transformers could import, read once for all ranks that the tests start.

transformers reads all of its 3,000 files whenever it is imported, twice, to know what is in which:
half of what a rank of a tiny model takes to start. What it finds is kept for a session, in the file
that NAMES_KEPT names; conftest.py makes it. Without the function there is nothing to keep.
"""

import marshal
import os
from pathlib import Path
from types import ModuleType

CHANGED = "transformers.utils.import_utils"
_READS = "create_import_structure_from_path"


def keep_names(file: Path, module: ModuleType) -> None:
    """Has the names of transformers.models come from the file, or go there."""
    read = getattr(module, _READS, None)
    if read is None:
        return

    def kept(path):
        folder = os.path.dirname(path) if os.path.isfile(path) else os.fspath(path)
        if os.path.basename(folder) != "models":
            return read(path)
        if file.exists():
            place, found = marshal.loads(file.read_bytes())
            if place == folder:
                return found
        found = read(path)
        mine = file.with_suffix(f".{os.getpid()}")
        mine.write_bytes(marshal.dumps((folder, found)))
        mine.replace(file)  # whole, whoever else writes it now
        return found

    setattr(module, _READS, kept)
