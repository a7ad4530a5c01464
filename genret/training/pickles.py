"""What is said of pretrained models that cannot be loaded, or whose weights are pickles, which may run code then."""

import re
import shlex

from genret.errors import InputError

# Where the hub's cache keeps a revision of the model that the folder before it is named after.
_SNAPSHOT = re.compile(r"/snapshots/[^/]+$")
# What transformers says of a model on the hub, which it then advises to load as a pickle.
LACKS_SAFETENSORS = "cannot be loaded with `safetensors`"


def own_name(name: str) -> str:
    """A model's name without owner or folder; of a snapshot in the hub's cache the folder that holds the snapshots."""
    return _SNAPSHOT.sub("", name.rstrip("/")).rpartition("/")[2]


def cannot_load(setting: str, name: str, revision: str, error: Exception) -> InputError:
    """The error of a model that is not there, or is none.

    Args:
        setting: The section that names the model, such as `sft.model`.
        name: Hub name or local folder.
        revision: Branch, tag or commit on the hub.
        error: What the library says.
    """
    return InputError(f"{setting}.name: cannot load {name!r} at {revision!r}: {error}")


def lacks_safetensors(setting: str, name: str, found: str, revision: str = "main") -> InputError:
    """The error that says how to get safetensors.

    Args:
        setting: The section that names the model, such as `sft.model`.
        name: Hub name or local folder.
        found: What there is instead.
        revision: Branch, tag or commit on the hub.
    """
    copy = own_name(name).removeprefix("models--").replace("--", "-")
    options = [] if revision == "main" else ["--revision", revision]
    command = shlex.join(["genret", "convert", name, f"models/{copy}", *options])
    return InputError(
        f"{setting}.name: {name}: expected weights in safetensors, found {found}; pickles may run code when they are "
        f"loaded. Copy the model with its weights converted, `{command}`, and set {setting}.name to the copy; or "
        f"name a revision that has safetensors ({setting}.revision)"
    )
