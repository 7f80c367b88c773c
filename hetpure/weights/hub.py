"""Folders of weights on the Hugging Face hub, asked for by `hf://owner/name[@revision]` only."""

import re
from pathlib import Path

from hetpure.errors import InputError
from hetpure.trust import check_download

HUB = "hf://"
CONFIGS = ("*.json", "unet/*.json", "scheduler/*.json")
WEIGHTS = ("model", "diffusion_pytorch_model", "unet/diffusion_pytorch_model")  # .safetensors


def fetch(name: str) -> Path:
    """The folder of `hf://owner/name[@revision]`: that of the cache, else it is downloaded."""
    repository, revision = _parts(name)
    try:
        return _snapshot(repository, revision, download=False)
    except Exception:  # not in the cache, whatever the library says of that
        check_download(name)
        print(f"{name}: downloading its weights and configs", flush=True)
    try:
        return _snapshot(repository, revision, download=True)
    except Exception as error:  # of the network, of the hub, of the disk
        at = f" --revision {revision}" if revision else ""
        raise InputError(
            f"{name} is not in the cache and cannot be downloaded"
            f" ({' '.join(str(error).split())[:200]}): run `hf download {repository}{at}` where"
            " there is a network and bring the cache (HF_HOME), or give the folder's path"
        ) from None


def is_cached(name: str) -> bool:
    """Whether the folder of `hf://owner/name[@revision]` is in the cache."""
    try:
        _snapshot(*_parts(name), download=False)
    except InputError:
        raise
    except Exception:  # whatever the library says of that
        return False
    return True


def _parts(name: str) -> tuple[str, str | None]:
    match = re.fullmatch(rf"{HUB}([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?", name)
    if match is None or ".." in name:
        raise InputError(f"{name} is no hf://owner/name or hf://owner/name@revision")
    repository, revision = match.groups()
    return repository, revision


def _snapshot(repository: str, revision: str | None, *, download: bool) -> Path:
    """The folder with its weights: safetensors, or where there are none a `.bin`."""
    from huggingface_hub import snapshot_download  # nobody else waits for its import

    for ending in ("safetensors", "bin"):
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[*CONFIGS, *(f"{name}.{ending}" for name in WEIGHTS)],
                local_files_only=not download,
            )
        )
        if any((folder / f"{name}.{ending}").exists() for name in WEIGHTS):
            return folder
    raise FileNotFoundError("it holds no weights of a known name")
