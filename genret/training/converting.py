"""Copies of pretrained models whose weights are pickles, with the same weights in safetensors."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from torch import Tensor

from genret.errors import InputError

_PICKLES = "pytorch_model*.bin"
_WEIGHTS = "model.safetensors"
# Weights of other libraries, and what lists the files of sharded ones.
_OTHERS = ("*.h5", "*.msgpack", "*.ot", "*.onnx", "*.tflite", "*.gguf", "*.bin.index.json")


def convert_model(name: str, revision: str, folder: Path) -> list[str]:
    """Copy a model into a folder, with its weights in safetensors.

    Pickles are read by PyTorch's own reader of weights, which refuses everything else in them: nothing is run. A folder
    that has weights in safetensors keeps those.

    Args:
        name: Hub name or local folder.
        revision: Branch, tag or commit on the hub.
        folder: Where to; made here, whole or not at all.

    Returns:
        The files that were made of pickles, relative to the folder.

    Raises:
        InputError: There is no such model or it has no pickled weights; a pickle holds other things than tensors; or
            something lies in the folder's place.
    """
    if folder.exists():
        raise InputError(f"{folder}: expected a folder that does not exist yet, found one")
    source = _local(name, revision)
    pickles = {path.parent for path in source.rglob(_PICKLES) if not list(path.parent.glob("*.safetensors"))}
    if not pickles:
        raise InputError(f"{name}: expected weights in {_PICKLES} beside no safetensors, found none")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:
        whole = Path(place) / "whole"
        shutil.copytree(source, whole, ignore=shutil.ignore_patterns(_PICKLES, *_OTHERS, ".git", ".cache"))
        made = [(parent / _WEIGHTS).relative_to(source) for parent in sorted(pickles)]
        for file in made:
            save_file(dict(_weights(source / file.parent)), whole / file, metadata={"format": "pt"})
        whole.rename(folder)
    return [file.as_posix() for file in made]


def _local(name: str, revision: str) -> Path:
    """The model's folder on this machine; of one on the hub what it needs is fetched."""
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, revision=revision, ignore_patterns=list(_OTHERS)))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name}: expected a local folder or a model on the hub, found none at {revision!r}: {error}"
        ) from error


def _weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and values of all weights of a folder's pickles, each with memory of its own."""
    for path in sorted(folder.glob(_PICKLES)):
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (UnpicklingError, RuntimeError, EOFError) as error:
            raise InputError(f"{path}: expected a pickle of tensors alone, found something else: {error}") from error
        if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
            raise InputError(f"{path}: expected tensors by name, found {type(found).__name__} of other things")
        yield from ((name, value.detach().clone().contiguous()) for name, value in found.items())
