"""Keys that a process can check without knowing them: those of who started a service travel so over the cluster."""

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass

from genret.config import ServingConfig
from genret.serving.gates import Keys


@dataclass(frozen=True)
class SealedKeys(Keys):
    """Keys of which only salted digests are known; empty where none is set.

    Attributes:
        salt: What they were made with.
    """

    salt: str

    def completed(self, others: Keys) -> "SealedKeys":
        """These keys, and of others those that are not set here."""
        api, admin = (_digest(key, self.salt) if key else "" for key in (others.api, others.admin))
        return SealedKeys(self.api or api, self.admin or admin, self.salt)

    def problem(self, path: str, shown: str) -> str:
        """As of `Keys`."""
        return super().problem(path, _digest(shown, self.salt))


def own_keys(config: ServingConfig) -> Keys:
    """The keys of this process's environment."""
    return Keys(os.environ.get(config.api_key_variable, ""), os.environ.get(config.admin_key_variable, ""))


def sealed(keys: Keys) -> SealedKeys:
    """Keys without what must be shown."""
    salt = secrets.token_hex(16)
    api, admin = (_digest(key, salt) if key else "" for key in (keys.api, keys.admin))
    return SealedKeys(api, admin, salt)


def _digest(key: str, salt: str) -> str:
    return hmac.new(salt.encode(), key.encode(), hashlib.sha256).hexdigest()
