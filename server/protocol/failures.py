"""Whose failure it is: one request's, on every rank alike, or this rank's own.

Called on the main thread of every rank. A message is made of data that all ranks have, and so is
all that the engine's bookkeeping does with it: what goes wrong there goes wrong on every rank in
the same way. Then each rank gives the request up and goes on, and rank 0 answers with an error.

But memory, a device and the link are each rank's own. Where one rank alone fails, the others have
taken the request up; a rank that went on without it would wait in other collectives than they do,
or add its numbers to the wrong sum. So such a failure ends the rank, the others notice, and the
supervisor starts all of them again.

The rule goes by the type of the exception, since a rank can't ask the others: MLX, its devices, its
allocator and its backends raise RuntimeError, MemoryError or OSError themselves, and Python's own
errors about values and names come from data.
"""

SHARED = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RecursionError,
)


class Refused(ValueError):
    """A message that cannot be carried out, judged by what every rank knows before it has changed
    anything."""


OF_A_LINK = ("[jaccl]", "[ring]")  # JACCL reports what it cannot post as a ValueError.


def is_shared(error: BaseException) -> bool:
    """Whether every rank that does the same with the same data fails in the same way."""
    return isinstance(error, SHARED) and not str(error).startswith(OF_A_LINK)
