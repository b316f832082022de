"""Text from elsewhere as printable text: what reaches a terminal or a log line goes through here.

A client may write what a terminal obeys (escape sequences, C1 controls), what begins a new line
in one reader and not in another, or what turns the direction of text around. All of it is shown
as an escape, as in a Python string. Called by every rank's logging, by the scripts that relay or
show a log, and for the events that /health tells. Standard library only, for any Python 3.
"""

import logging
import sys
import threading

MESSAGE_CHARS = 16_000  # of a log line; a request's target alone may have 65,536
CONTINUED = "    "  # before the lines of a traceback, so that none can pose as a log line


def printable(text: str) -> str:
    """Without anything but printable characters: line ends, tabs and lone surrogates are escaped,
    too. Printable text, in whatever script, stays as it is."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def printable_line(line: bytes) -> bytes:
    """A line, without its end, that some process wrote. Tabs stay; they move nothing but blanks."""
    text = line.decode("utf-8", "backslashreplace")
    return "\t".join(printable(part) for part in text.split("\t")).encode()


class PrintableFormatter(logging.Formatter):
    """One line a record, whatever its arguments hold; a traceback follows, indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(_cut(super().formatMessage(record)))

    def formatException(self, ei) -> str:  # noqa: N802
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _indented(super().formatStack(stack_info))


def log_what_python_prints(log: logging.Logger) -> None:
    """Has uncaught exceptions and warnings logged: Python prints them to stderr as they are."""

    def of_main(kind, error, trace) -> None:
        log.critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace))

    def of_thread(args) -> None:
        if args.exc_type is not SystemExit:
            name = args.thread.name if args.thread else "?"
            about = (args.exc_type, args.exc_value, args.exc_traceback)
            log.critical("uncaught %s in thread %s", args.exc_type.__name__, name, exc_info=about)

    sys.excepthook = of_main
    threading.excepthook = of_thread
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a record that cannot be put in words would be printed raw


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _cut(text: str) -> str:
    if len(text) <= MESSAGE_CHARS:
        return text
    return f"{text[:MESSAGE_CHARS]}... ({len(text) - MESSAGE_CHARS} characters more)"


def _indented(text: str) -> str:
    return "\n".join(CONTINUED + printable(_cut(line)) for line in text.split("\n"))
