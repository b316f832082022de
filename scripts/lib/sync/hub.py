"""A model from the Hugging Face hub, downloaded once, on this machine, into models/NAME.

Into NAME.partial, several files at a time. A file that is cut short is gone on with: of the ways
that huggingface-hub has, only http_get can do that from one start to the next (snapshot_download
and Xet begin such a file again, which with 8 of 5 GB under way is 40 GB). The folder gets its name
when every file has the hub's size and hash. What mlx-lm would load is downloaded, not other
formats of the same weights.
"""

import hashlib
import json
import shutil
import threading
from pathlib import Path

from scripts.lib.model import hub_errors
from scripts.lib.model.hub_errors import NotGiven
from scripts.lib.model.model_folder import folder_problems
from scripts.lib.sync.manifest import cache_file, read_items
from scripts.lib.sync.node_model import partial_of
from scripts.lib.sync.parallel import Failure, Voice, serve_all, size_text
from server.protocol.fingerprint import MODEL_FILES

NOTE = ".hub.json"  # in the model's folder: from where it came
SPARE_BYTES = 256_000_000
LOOK_EVERY_S = 1.0
AT_ONCE = 4  # files
CHUNK = 1 << 20  # bytes; what a cut can cost of each file
INCOMING = ".incoming"  # in NAME.partial: files that are not whole yet


def fetch(repo: str, revision: str | None, folder: Path, state: Path, voice: Voice) -> Path:
    """The folder with this revision of the repo, whole. Raises Failure, and NotGiven for what is
    the hub's or the network's."""
    note = _read_note(folder)
    try:
        with hub_errors.told(repo, revision):
            from huggingface_hub import HfApi

            info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    except NotGiven as error:
        if note.get("repo") == repo and revision in (None, note.get("commit")):
            voice.say(f"the hub does not answer ({error}): using {folder} as it is")
            return folder
        raise
    if folder.exists():
        if note.get("repo") == repo and note.get("commit") == info.sha:
            voice.say(f"{folder} is {repo} at {info.sha[:12]} already")
            return folder
        what = f"{note['repo']} at {note['commit'][:12]}" if note else "not from here"
        raise Failure(
            f"{folder} is there already, and it is {what}; {repo} is now at {info.sha[:12]}: move "
            "it away, or name another folder with --to, or give the folder to copy it as it is"
        )
    files = [each for each in info.siblings if _is_wanted(each.rfilename)]
    if not any(_is_weights(each.rfilename) for each in files):
        raise Failure(f"{repo} has no model*.safetensors: not a model that MLX can load")
    _download(repo, info.sha, files, partial_of(folder), voice)
    _verify(files, folder, state, voice)
    partial = partial_of(folder)
    (partial / NOTE).write_text(json.dumps({"repo": repo, "commit": info.sha}) + "\n")
    for leftover in (INCOMING, ".cache"):
        shutil.rmtree(partial / leftover, ignore_errors=True)
    partial.rename(folder)
    return folder


def _is_wanted(name: str) -> bool:
    return "/" not in name and any(Path(name).match(pattern) for pattern in MODEL_FILES)


def _is_weights(name: str) -> bool:
    return name.startswith("model") and name.endswith(".safetensors")


def _read_note(folder: Path) -> dict:
    try:
        note = json.loads((folder / NOTE).read_text())
        return note if isinstance(note, dict) and note.get("commit") else {}
    except (OSError, ValueError):
        return {}


def _download(repo: str, commit: str, files: list, partial: Path, voice: Voice) -> None:
    total = sum(each.size or 0 for each in files)
    (partial / INCOMING).mkdir(parents=True, exist_ok=True)
    there = _bytes_in(partial)
    free = shutil.disk_usage(partial).free
    needed = max(0, total - there) + SPARE_BYTES
    if free < needed:
        raise Failure(
            f"{size_text(free)} free for {partial}, which needs {size_text(needed)}: free some "
            "space, or name another disk with --to"
        )
    voice.say(f"downloading {repo} at {commit[:12]}: {size_text(total)}, {size_text(there)} here")
    wanted = {each.rfilename: each for each in files}
    turns = threading.Semaphore(AT_ONCE)
    over = threading.Event()
    theirs: list[Exception] = []  # what is the hub's or the network's; list.append is atomic

    def watch() -> None:
        while not over.wait(LOOK_EVERY_S):
            voice.progress(
                lambda: f"downloaded {size_text(_bytes_in(partial))} of {size_text(total)}"
            )

    def get(name: str) -> str:
        with turns:
            try:
                _download_file(repo, commit, wanted[name], partial)
            except Exception as error:  # It raises what its HTTP library raises, and that changes.
                if hub_errors.is_ours(error):
                    raise Failure(hub_errors.one_line(error)) from None
                theirs.append(error)
                raise Failure(hub_errors.why(error, repo, commit)) from None
        return ""

    threading.Thread(target=watch, daemon=True).start()
    outcomes = serve_all(list(wanted), get)
    over.set()
    for name, (fine, reason) in outcomes.items():
        if not fine:
            kind = NotGiven if theirs else Failure
            raise kind(f"the download of {name} broke off ({reason}); run it again to go on")


def _download_file(repo: str, commit: str, file, partial: Path) -> None:
    """One file, from where an earlier run was cut. Raises what the hub's package does."""
    from huggingface_hub import constants, hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, disable_progress_bars

    disable_progress_bars()  # Ours goes into a log file as well as onto a terminal.
    target = partial / file.rfilename
    if target.is_file() and target.stat().st_size == file.size:
        return  # Its hash is seen to when all are here.
    # Named for its content: another revision's bytes must not be gone on with.
    incoming = partial / INCOMING / f"{file.rfilename}.{file.blob_id}"
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK
    if (file.size or 0) > constants.MAX_HTTP_DOWNLOAD_SIZE:
        hf_hub_download(repo, file.rfilename, revision=commit, local_dir=partial)
        return
    with incoming.open("ab") as output:
        http_get(
            hf_hub_url(repo, file.rfilename, revision=commit),
            output,
            resume_size=output.tell(),
            headers=build_hf_headers(),
            expected_size=file.size,
        )
    incoming.replace(target)


def _bytes_in(folder: Path) -> int:
    """Everything below it, with what is on its way."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # Renamed meanwhile.
    return total


def _verify(files: list, folder: Path, state: Path, voice: Voice) -> None:
    partial = partial_of(folder)
    voice.say("checking the download")
    items = {item.name: item for item in read_items(partial, cache_file(state, folder))}
    bad = []
    for each in files:
        item = items.get(each.rfilename)
        if item is None or item.size != each.size or not _is_right(partial, each, item):
            bad.append(each.rfilename)
            (partial / each.rfilename).unlink(missing_ok=True)
    if bad:
        raise Failure(f"{', '.join(bad)} did not arrive whole and was removed: run it again")
    if problems := folder_problems(partial):
        raise Failure(f"{'; '.join(problems)}: the repo is not a whole model")


def _is_right(partial: Path, file, item) -> bool:
    """Weights have a sha256 on the hub; small files the hash that git gives their content."""
    if file.lfs:
        return item.sha256 == file.lfs.sha256
    data = (partial / file.rfilename).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == file.blob_id
