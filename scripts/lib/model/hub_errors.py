"""What it means for somebody that the Hugging Face hub does not give a repo, in a sentence.

For all verbs that ask the hub: whatever its package raises becomes NotGiven. Needs huggingface-hub.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

ANSWERS_WITHIN_S = 30.0  # to each question; the hub's package waits for ever
AGAIN = "try again later"


class NotGiven(Exception):
    """The hub does not give the repo; the text says why and what to do."""


@contextmanager
def told(repo: str, revision: str | None) -> Iterator[None]:
    """Whatever the hub's package raises becomes NotGiven: it raises what its HTTP library does, and
    that changes."""
    try:
        from huggingface_hub.utils import get_session
    except ImportError:
        missing = "huggingface-hub is not installed: pip install -r requirements.txt"
        raise NotGiven(missing) from None
    try:
        get_session().timeout = ANSWERS_WITHIN_S
        yield
    except Exception as error:
        raise NotGiven(why(error, repo, revision)) from error


def is_ours(error: Exception) -> bool:
    """Whether it is this machine's that a file could not be written, not the network's."""
    network = (ConnectionError, TimeoutError, ssl.SSLError)
    return isinstance(error, OSError) and bool(error.errno) and not isinstance(error, network)


def why(error: Exception, repo: str, revision: str | None) -> str:
    """In words of ours, as far as the hub's package tells its errors apart."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # It says that nothing is in the cache; this, what went wrong.
    where = constants.ENDPOINT
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = one_line(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it, or name a folder that is here"
    if isinstance(error, GatedRepoError) or status == 403:
        return (
            f"{repo} is gated: ask for access on its page at {where}, and set HF_TOKEN to a token "
            "of that account"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}"
    if isinstance(error, RemoteEntryNotFoundError):
        return f"{where} has not every file of {repo}: {said}"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return (
            f"there is no {repo} at {where}; or it is private, and HF_TOKEN is not set to a token "
            "that may read it"
        )
    if status == 429:
        return f"{where} answers 429 for {repo}, it was asked too often: {AGAIN}, or set HF_TOKEN"
    if isinstance(error, HfHubHTTPError) and status is not None:
        return f"{where} answers {status} for {repo}: {said}; {AGAIN}"
    if is_ours(error):
        return f"{repo} cannot be kept here: {said}"
    return (
        f"{where} cannot be reached: {said}; {AGAIN}, or set HTTPS_PROXY to a proxy, or "
        "HF_ENDPOINT to another hub"
    )


def one_line(error: Exception) -> str:
    """The first line of what it says, without the stop at its end; or its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
