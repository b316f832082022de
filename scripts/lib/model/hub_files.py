"""What a repo on the Hugging Face hub says of a model: its small files, and its weights' headers.

Weights are not downloaded: the hub gives a part of a file, and a header is at its beginning. Called
before anybody downloads hundreds of gigabytes. Needs huggingface-hub.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from server.protocol.fingerprint import MODEL_FILES, WEIGHT_FILES
from server.startup.weights_index import Weight

AT_ONCE = 8  # headers
LARGEST = 200_000_000  # bytes of a file that is no weights
INDEX = ".index.json"


class NotGiven(Exception):
    """The hub does not give the repo; the text says why and what to do."""


def fetch_small(repo: str, revision: str | None, folder: Path) -> dict[str, Weight]:
    """Puts the small files into the folder; returns what the weight files hold. Raises NotGiven."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi()
    try:
        info = api.model_info(repo, revision=revision, files_metadata=True)
        names = [each.rfilename for each in info.siblings]
        for each in info.siblings:
            if _is_small(each.rfilename) and (each.size or 0) <= LARGEST:
                hf_hub_download(repo, each.rfilename, revision=info.sha, local_dir=folder)
        weights = [name for name in names if _is_weights(name)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            headers = list(
                pool.map(
                    lambda name: api.parse_safetensors_file_metadata(repo, name, revision=info.sha),
                    weights,
                )
            )
    except Exception as error:  # it raises what its HTTP library raises, and that changes
        raise NotGiven(_why(error, repo, revision)) from error
    if not weights:
        raise NotGiven(f"{repo} has no model*.safetensors: not a model that MLX can load")
    return {
        name: Weight(tuple(told.shape), told.data_offsets[1] - told.data_offsets[0])
        for header in headers
        for name, told in header.tensors.items()
    }


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
