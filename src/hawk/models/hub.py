"""Model and drafter folders on the Hugging Face Hub: what an id looks like, and which files are fetched."""

from __future__ import annotations

from pathlib import Path

from hawk.errors import HawkError, one_line

FETCHED = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.txt", "*vqgan.ckpt", "README.md")
"""The files of a hub repository that a model folder can hold: no code, and no pickle except VQGAN's tensors."""


def is_hub_id(name: str) -> bool:
    """Whether a name looks like `owner/name`, and not like a path."""
    return name.count("/") == 1 and not name.startswith(("/", ".", "~")) and not name.endswith("/")


def fetched(name: str) -> Path:
    """The local folder of a hub repository, downloaded unless it is in the cache; only files in `FETCHED` are taken."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(FETCHED)))
    except (OSError, HFValidationError) as error:  # every other hub error is an OSError
        raise HawkError(f"no folder {name!r} here, and the hub did not give it ({one_line(error)})") from error
