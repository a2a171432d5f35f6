"""The bearer tokens of warm pods' admin calls: made from one key, so that no Secret lies in users' namespaces.

A pool's token is never stored nor sent anywhere but in the calls to its own pods; the pods know its checksum only.
"""

import hashlib
import hmac
import secrets
from pathlib import Path

LEAST_KEY_BYTES = 16


def read_key(path: Path) -> bytes:
    """Raises ValueError, which never repeats what the file holds, and OSError."""
    key = path.read_bytes().strip()
    if len(key) < LEAST_KEY_BYTES:
        raise ValueError(f"{path} holds {len(key)} bytes: write at least {LEAST_KEY_BYTES} random ones into it")
    return key


def new_key() -> bytes:
    return secrets.token_bytes(32)


def pool_token(key: bytes, namespace: str, pool: str, uid: str) -> str:
    """By the pool's uid: a pool that is made anew under an old name gets another token."""
    return hmac.new(key, f"{namespace}/{pool}/{uid}".encode(), hashlib.sha256).hexdigest()
