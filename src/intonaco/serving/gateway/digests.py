"""What stands for a unit or a prompt where the real one must not: keyed digests.

Every use has a key of its own, derived from the instance key, so that one digest can never pass for
another.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

UNIT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Digests:
    instance_key: bytes = field(repr=False)

    def unit(self, unit: str) -> str:
        """An opaque name of a unit, the same for the life of the instance key."""
        return self.mac("unit", unit.encode("utf-8", "surrogatepass"))[:UNIT_BYTES].hex()

    def prompt(self, prompt: str) -> str:
        return self.mac("prompt", prompt.encode("utf-8", "surrogatepass")).hex()

    def mac(self, use: str, data: bytes) -> bytes:
        """HMAC-SHA256 (RFC 2104) under the key of that use."""
        key = hmac.digest(self.instance_key, use.encode(), hashlib.sha256)
        return hmac.digest(key, data, hashlib.sha256)
