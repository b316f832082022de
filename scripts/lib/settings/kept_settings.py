"""Settings as scripts see them: from an option, else the environment, else cluster.env, else none.

cluster.env in the checkout keeps settings. It is parsed, never run:

    # A comment, on a line of its own or after a blank.
    NAME=value
    NAME="a value that begins or ends with a blank, or has a # in it"

One setting a line. Blanks around the value do not count. In one pair of quotes, single or double,
everything up to the other quote is taken as it stands. Nothing is expanded, except that paths may
begin with ~/ and else are meant from the folder of the file. Empty counts as not set.

Ranks never read the file: what it says reaches them as the environment does. Standard library
alone, Python 3.9; scripts/lib/settings/settings.py is the command line.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.protocol.misspelt import complaint, find_misspelt
from server.protocol.setting import Setting, SettingError, Value, parse, plain
from server.protocol.settings_table import BY_NAME, OF_USERS, TABLE

ROOT = Path(__file__).resolve().parents[3]
FILE = "cluster.env"
MOST_BYTES = 65_536
LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*(.*)")
QUOTED = re.compile(r"""(["'])(.*?)\1[ \t]*(?:[ \t]#.*)?""")
ELSEWHERE = ("CLUSTER_ENV",)  # has no meaning in the file itself


class MissingFile(SettingError):
    """CLUSTER_ENV names a file that is not there."""


@dataclass(frozen=True)
class Found:
    """One setting as it holds: its text as bash may use it ("" for the default), and from where."""

    setting: Setting
    text: str
    origin: str  # an option, environment, the file's name, or default

    @property
    def value(self) -> Value:
        """As the table says: the default where nothing is set."""
        return parse(self.setting, self.text)


def resolve(
    reader: str,
    env: Mapping[str, str],
    options: Sequence[str] = (),
    own: Mapping[str, tuple[str, str]] | None = None,
) -> tuple[list[Found], list[str]]:
    """What this script reads, in the table's order, and every problem, in words.

    options: NAME=VALUE, for all ranks; those that are no settings of theirs are none of ours. own:
    by name of a setting, the script's own option that stands for it, and its value. Raises
    SettingError if the file cannot be taken as a whole.
    """
    path = file_of(env)
    kept, problems = parse_file(path.read_bytes(), path.name) if path else ({}, [])
    if path and (problem := too_open(path, kept)):
        problems.append(problem)
    given = dict(option.split("=", 1) for option in options)
    misspelt = find_misspelt({**env, **given}, BY_NAME)
    problems += [complaint(name, meant) for name, meant in misspelt.items()]
    found = []
    for setting in TABLE:
        if not setting.read_by(reader) or setting.name in ELSEWHERE:
            continue
        places = [("environment", env.get(setting.name, ""))]
        if setting.read_by("rank") or setting.read_by("launch"):
            places.insert(0, ("--env", given.get(setting.name, "")))
        if own and setting.name in own:
            places.insert(0, own[setting.name])
        if path:
            places.append((path.name, kept.get(setting.name, "")))
        origin, text = next(((o, t) for o, t in places if t.strip()), ("default", ""))
        try:
            text = plain(setting, text)
        except SettingError as error:
            # Of the environment it is said as ever; a file or an option is where to look.
            where = "" if origin == "environment" else f" (from {origin})"
            problems.append(f"{error}{where}")
            continue
        if path and origin == path.name:
            text = from_folder(setting, text, path.parent)
        found.append(Found(setting, text, origin))
    return found, problems


def lookup(name: str, env: Mapping[str, str], default: bool = True) -> Value:
    """One setting, parsed, for programs that no script starts; without its default None where it is
    not set. Raises SettingError."""
    setting = BY_NAME[name]
    for slip in find_misspelt(env, [name]):
        raise SettingError(complaint(slip, name))
    text = env.get(name, "")
    if not text.strip() and (path := file_of(env)):
        kept, problems = parse_file(path.read_bytes(), path.name)
        problems += filter(None, [too_open(path, kept)])
        if problems:
            raise SettingError("; ".join(problems))
        text = kept.get(name, "")
    return parse(setting, text) if default or text.strip() else None


def first_key(env: Mapping[str, str]) -> str:
    """The key that a client of ours sends, or "" for none. Raises SettingError."""
    return next(iter(lookup("API_KEY", env)), "")


def file_of(env: Mapping[str, str]) -> Path | None:
    """The file that CLUSTER_ENV names, else the checkout's; None if there is none."""
    setting = BY_NAME["CLUSTER_ENV"]
    named = plain(setting, env.get(setting.name, ""))
    path = Path(named).absolute() if named else ROOT / FILE
    if str(path) == os.devnull or not (named or path.exists()):
        return None
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # to open a pipe would wait for who writes it
            raise SettingError(f"{path}: must be a file of settings, and is no file")
        if about.st_size > MOST_BYTES:
            raise SettingError(f"{path}: must be at most {MOST_BYTES} bytes")
        path.open("rb").close()
    except OSError as error:
        raise MissingFile(f"{path}: cannot be read: {error.strerror}") from None
    return path


def parse_file(data: bytes, file: str) -> tuple[dict[str, str], list[str]]:
    """Texts by name, and every problem with its line. It executes and expands nothing."""
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        return {}, [f"{file}: must be UTF-8: {error}"]
    texts: dict[str, str] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{file} line {number}"
        match = LINE.fullmatch(line)
        if not match:
            problems.append(f"{where}: must be NAME=value, a comment with #, or empty")
            continue
        name, text = match[1], _unquoted(match[2])
        if text is None:
            problems.append(f"{where}: {name}: must end with the quote it begins with")
        elif name not in BY_NAME or BY_NAME[name] not in OF_USERS or name in ELSEWHERE:
            problems.append(f"{where}: {name}: no such setting{nearest(name)}")
        elif name in texts:
            problems.append(f"{where}: {name}: is there twice")
        else:
            texts[name] = text
    return texts, problems


def nearest(name: str) -> str:
    """A hint at the known name that is most like this one, if one is."""
    import difflib  # costs time that a right file need not take

    names = [setting.name for setting in OF_USERS if setting.name not in ELSEWHERE]
    close = difflib.get_close_matches(name.upper(), names, 1)
    return f"; did you mean {close[0]}?" if close else ": hostfiles/cluster.env.template has all"


def too_open(path: Path, kept: Mapping[str, str]) -> str:
    """Why the secrets in the file are none, or nothing."""
    secrets = [name for name, text in kept.items() if BY_NAME[name].secret and text.strip()]
    if not secrets or not stat.S_IMODE(path.stat().st_mode) & 0o077:
        return ""
    close = f"chmod 600 {shlex.quote(str(path))}"
    return f"{path.name} holds {' and '.join(secrets)}, and others may read it: {close}"


def from_folder(setting: Setting, text: str, folder: Path) -> str:
    """A path of the file, from the root. A program without a slash is looked up on PATH."""
    if setting.kind == "program" and "/" in text:
        text = os.path.expanduser(text)
    elif setting.kind != "path":
        return text
    return os.path.join(folder, text) if text else text


def _unquoted(text: str) -> str | None:
    """The value without its quotes or comment; None if a quote is not closed."""
    if text[:1] in ("'", '"'):
        match = QUOTED.fullmatch(text)
        return match[2] if match else None
    return re.split(r"(?:^|[ \t])#", text, maxsplit=1)[0].strip()
