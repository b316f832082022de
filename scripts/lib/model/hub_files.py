"""What a repo on the Hugging Face hub says of a model: its small files, and its weights' headers.

Weights are not downloaded: the hub gives a part of a file, and a header is at its beginning. Called
before anybody downloads hundreds of gigabytes. Needs huggingface-hub.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.lib.model.hub_errors import NotGiven, told
from server.protocol.fingerprint import MODEL_FILES, WEIGHT_FILES
from server.startup.weights_index import Weight

AT_ONCE = 8  # headers
LARGEST = 200_000_000  # bytes of a file that is no weights
INDEX = ".index.json"


class NoWeights(NotGiven):
    """It does, and there is nothing in it that MLX can load."""


def fetch_small(repo: str, revision: str | None, folder: Path) -> dict[str, Weight]:
    """Puts the small files into the folder; returns what the weight files hold. Raises NotGiven."""
    with told(repo, revision):
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
        name: Weight(tuple(tensor.shape), tensor.data_offsets[1] - tensor.data_offsets[0])
        for header in headers
        for name, tensor in header.tensors.items()
    }


def fetch_config(repo: str, revision: str | None, folder: Path) -> None:
    """Puts its config.json into the folder. Raises NotGiven."""
    with told(repo, revision):
        from huggingface_hub import HfApi

        commit = HfApi().model_info(repo, revision=revision).sha
        _fetch(repo, commit, ["config.json"], folder)


def _fetch(repo: str, revision: str | None, names: list[str], folder: Path) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    for name in names:
        hf_hub_download(repo, name, revision=revision, local_dir=folder)


def _is_small(name: str) -> bool:
    path = Path(name)
    wanted = any(path.match(pattern) for pattern in MODEL_FILES)
    return "/" not in name and wanted and not path.match(WEIGHT_FILES)


def _is_weights(name: str) -> bool:
    return "/" not in name and Path(name).match("model*.safetensors")
