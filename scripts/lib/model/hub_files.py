"""What a repo on the Hugging Face hub says of a model: its small files, and its weights' headers.

Weights are not downloaded: the hub gives a part of a file, and a header is at its beginning. Called
before anybody downloads hundreds of gigabytes. Needs huggingface-hub.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from server.protocol.fingerprint import MODEL_FILES, WEIGHT_FILES
from server.startup.weights_index import Weight

AT_ONCE = 8  # headers
LARGEST = 200_000_000  # bytes of a file that is no weights
INDEX = ".index.json"


class NotGiven(Exception):
    """The hub does not give the repo; the text says why and what to do."""


class NoWeights(NotGiven):
    """It does, and there is nothing in it that MLX can load."""


def fetch_small(repo: str, revision: str | None, folder: Path) -> dict[str, Weight]:
    """Puts the small files into the folder; returns what the weight files hold. Raises NotGiven."""
    with _told(repo, revision):
        from huggingface_hub import HfApi

        api = HfApi()
        info = api.model_info(repo, revision=revision, files_metadata=True)
        sizes = {each.rfilename: each.size or 0 for each in info.siblings}
        _fetch(repo, info.sha, [n for n in sizes if _is_small(n) and sizes[n] <= LARGEST], folder)
        weights = [name for name in sizes if _is_weights(name)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            headers = list(
                pool.map(
                    lambda name: api.parse_safetensors_file_metadata(repo, name, revision=info.sha),
                    weights,
                )
            )
    if not weights:
        raise NoWeights(f"{repo} has no model*.safetensors: not a model that MLX can load")
    return {
        name: Weight(tuple(told.shape), told.data_offsets[1] - told.data_offsets[0])
        for header in headers
        for name, told in header.tensors.items()
    }


def fetch_config(repo: str, revision: str | None, folder: Path) -> None:
    """Puts its config.json into the folder. Raises NotGiven."""
    with _told(repo, revision):
        from huggingface_hub import HfApi

        commit = HfApi().model_info(repo, revision=revision).sha
        _fetch(repo, commit, ["config.json"], folder)


def _fetch(repo: str, revision: str | None, names: list[str], folder: Path) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    for name in names:
        hf_hub_download(repo, name, revision=revision, local_dir=folder)


@contextmanager
def _told(repo: str, revision: str | None) -> Iterator[None]:
    """Whatever the hub's package raises becomes NotGiven: it raises what its HTTP library does, and
    that changes."""
    try:
        yield
    except Exception as error:
        raise NotGiven(_why(error, repo, revision)) from error


def _is_small(name: str) -> bool:
    path = Path(name)
    wanted = any(path.match(pattern) for pattern in MODEL_FILES)
    return "/" not in name and wanted and not path.match(WEIGHT_FILES)


def _is_weights(name: str) -> bool:
    return "/" not in name and Path(name).match("model*.safetensors")


def _why(error: Exception, repo: str, revision: str | None) -> str:
    """In words of ours, as far as the hub's package tells its errors apart."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = constants.ENDPOINT
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it, or name a folder that is here"
    if isinstance(error, GatedRepoError) or status == 403:
        return (
            f"{repo} is gated: ask for access on its page at {where}, and set HF_TOKEN to a token "
            "of that account"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return (
            f"there is no {repo} at {where}; or it is private, and HF_TOKEN is not set to a token "
            "that may read it"
        )
    if isinstance(error, HfHubHTTPError) and status is not None:
        return f"{where} answers {status} for {repo}: {said}"
    return f"{where} cannot be reached: {said}"
