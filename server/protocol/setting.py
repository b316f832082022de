"""What a setting is, and which text is a right value of it.

`parse` alone says so, so bash and Python cannot differ. Blanks around a value do not count, and
one that is empty counts as not set. Numbers are ASCII digits without sign, leading zeros or
separators; where parts are allowed also 2.5 and 1e3.

Imports nothing of ours and runs under Python 3.9: scripts read it before there is an environment.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

RUN, SERVICE = "run_openai_cluster_server", "install_service"
MOST_CHARACTERS = 32_768  # of any value; the system itself bounds the environment

WHOLE = re.compile(r"0|[1-9][0-9]{0,14}")
DECIMAL = re.compile(r"(0|[1-9][0-9]{0,11})(\.[0-9]{1,9})?([eE]\+?[0-9]{1,2})?")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Where an entry of folders ends: a path may hold blanks and commas, but not what begins another.
NEXT_FOLDER = re.compile(r"[,\s]+(?=[^\s,=]+=[/~])")

LISTS = ("words", "folders", "keys")  # kinds whose values are tuples

Value = "int | float | bool | str | tuple[str, ...] | None"


class SettingError(ValueError):
    """A setting has a value that is not allowed. The message names all three."""


@dataclass(frozen=True)
class Setting:
    """One row. Without a default a number that is 0 means the same as none at all.

    kind: whole, decimal, choice, switch (0 or 1), text, path, program (a name or a path), words
    (commas or blanks between), folders (the same, NAME=/FOLDER each), keys (commas between), or
    free (any text; of ours, not the user's).
    """

    name: str
    kind: str
    help: str
    readers: tuple[str, ...]
    default: int | float | str | None = None
    otherwise: str = ""  # the default in words, where it is worked out
    least: float = 0
    most: float = 0
    unit: str = ""
    choices: tuple[str, ...] = ()
    pattern: str = ""  # of a text
    allowed: str = ""  # the pattern in words
    secret: bool = False  # never shown and never in a command line
    field: str = ""  # in Settings, if it is not the name in lower case

    @property
    def attribute(self) -> str:
        """The field of Settings."""
        return self.field or self.name.lower()

    def read_by(self, reader: str) -> bool:
        """Whether this script, or RANK or LAUNCH, reads it."""
        return (RUN if reader == SERVICE else reader) in self.readers


def parse(setting: Setting, text: str) -> Value:
    """What the text says: None or the default if it is empty. Raises SettingError.

    whole: int; decimal: float; switch: bool; words, folders and keys: a tuple; anything else: str.
    It looks at the text alone: whether a path leads anywhere is for those who go there.
    """
    if setting.kind == "free":
        return text.strip()
    text = text.strip()
    if not text:
        return _default(setting)
    if len(text) > MOST_CHARACTERS:
        raise _wrong(setting, text[:100] + "...", f"at most {MOST_CHARACTERS} characters")
    if CONTROL.search(text) and not (setting.kind in LISTS and "\0" not in text):
        raise _wrong(setting, text, "one line, without control characters")
    if setting.kind in ("whole", "decimal"):
        return _number(setting, text)
    if setting.kind in ("choice", "switch"):
        choices = setting.choices or ("0", "1")
        if text not in choices:
            raise _wrong(setting, text, allowed(setting))
        return text == "1" if setting.kind == "switch" else text
    if setting.kind == "words":
        words = tuple(text.replace(",", " ").split())
        for word in words:
            if setting.pattern and not re.fullmatch(setting.pattern, word):
                raise _wrong(setting, word, allowed(setting))
        return words
    if setting.kind == "folders":
        return _folders(setting, text)
    if setting.kind == "keys":
        return _keys(setting, text)
    if setting.kind == "path":
        return os.path.expanduser(text)
    if setting.pattern and not re.fullmatch(setting.pattern, text):
        raise _wrong(setting, text, allowed(setting))
    return text


def plain(setting: Setting, text: str) -> str:
    """The same value as one line of text that bash and awk can use, too. Raises SettingError."""
    value = parse(setting, text)
    if value is None or not text.strip():
        return "0" if text.strip() else ""
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        # Bash cannot count with 1e3.
        return text.strip() if "e" not in text.lower() else f"{value:.9f}".rstrip("0").rstrip(".")
    return value if isinstance(value, str) else text.strip()


def allowed(setting: Setting) -> str:
    """What a value may be, in words."""
    if setting.kind == "whole":
        return f"a whole number from {number(setting.least)} to {number(setting.most)}"
    if setting.kind == "decimal":
        return f"{setting.unit} from {number(setting.least)} to {number(setting.most)}"
    kinds = {
        "choice": "one of " + ", ".join(setting.choices),
        "switch": "0 or 1",
        "path": "a path",
        "program": "a program",
        "words": "words, commas or blanks between",
        "keys": "one or more keys without blanks, separated by commas",
    }
    return setting.allowed or kinds.get(setting.kind, "text")


def default_words(setting: Setting) -> str:
    """What holds when it is not set."""
    if setting.otherwise:
        return setting.otherwise
    return setting.default if isinstance(setting.default, str) else number(setting.default or 0)


def number(value: float) -> str:
    """Without an exponent, and without a point where it can be."""
    return str(int(value)) if value == int(value) else f"{value:g}"


def _default(setting: Setting) -> Value:
    if setting.kind in LISTS:
        return ()
    if setting.kind == "switch":
        return bool(setting.default)
    if setting.kind == "decimal" and setting.default is not None:
        return float(setting.default)
    if setting.kind == "text":
        return setting.default or ""
    return setting.default


def _number(setting: Setting, text: str) -> int | float | None:
    value: int | float = setting.least - 1
    if setting.kind == "whole" and WHOLE.fullmatch(text):
        value = int(text)
    elif setting.kind == "decimal" and DECIMAL.fullmatch(text):
        value = float(text)
    if not setting.least <= value <= setting.most:
        raise _wrong(setting, text, allowed(setting))
    return None if value == 0 and setting.default is None else value


def _folders(setting: Setting, text: str) -> tuple[str, ...]:
    entries = []
    for entry in NEXT_FOLDER.split(text.strip(", \t\r\n")):
        if CONTROL.search(entry) or not re.fullmatch(setting.pattern, entry):
            raise _wrong(setting, entry, allowed(setting))
        name, _, path = entry.partition("=")
        entries.append(f"{name}={os.path.expanduser(path)}")  # as whoever starts it, on every host
    return tuple(entries)


def _keys(setting: Setting, text: str) -> tuple[str, ...]:
    keys = tuple(key.strip() for key in text.split(",") if key.strip())
    if not keys:
        # Nothing but commas must not silently let everybody in.
        raise SettingError(f"{setting.name} holds no key: must be {allowed(setting)}")
    if any(key.split() != [key] for key in keys):
        # In a file of keys what follows a blank is a label: rank 0 elsewhere would know another.
        raise SettingError(f"{setting.name} holds a key with a blank: must be {allowed(setting)}")
    return keys


def _wrong(setting: Setting, text: str, must_be: str) -> SettingError:
    # Secrets are never shown, not even wrong ones.
    shown = setting.name if setting.secret else f"{setting.name}={text!r}"
    return SettingError(f"{shown}: must be {must_be}")
