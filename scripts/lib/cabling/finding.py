"""One thing that the reader should know about the cabling."""

from dataclasses import dataclass

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """A text, and what to do about it, a line each.

    error: no hostfile can be written. warning: the hostfile is right, but a launch with it would
    fail, or is known to give trouble. note: what is good to know.
    """

    severity: str
    text: str
    fix: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"{self.severity}: {self.text}", *(f"    {line}" for line in self.fix)])
