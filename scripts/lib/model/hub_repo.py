"""How a repo of the Hugging Face hub is named, for all verbs that take one."""

import re

REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
