"""What can go wrong in a store.

StoreError
├── InvalidOffset          the token is not one that this store could have issued
├── StreamNotFound         no such stream
├── GenerationNotFound     no such generation
├── FingerprintMismatch    the same ids were used before for another request
├── GenerationEnded        it reached its terminal event already
├── OwnerFenced            a newer epoch stands in the database; this owner is finished
├── ItemRefused            the engine refuses this batch for what is in it; sending it again cannot help
└── StoreUnavailable       the engine cannot be reached now; sent work may or may not have been done
"""

from __future__ import annotations


class StoreError(Exception):
    """The root of everything that a store raises on purpose."""


class InvalidOffset(StoreError):
    """The token is not an offset: neither `-1`, nor `now`, nor the fixed-width form."""


class StreamNotFound(StoreError):
    """There is no stream with that id."""


class GenerationNotFound(StoreError):
    """There is no generation under that key."""


class FingerprintMismatch(StoreError):
    """The key is taken by a request with another method, URL or body."""


class GenerationEnded(StoreError):
    """The generation is not in a state that this step may leave."""


class OwnerFenced(StoreError):
    """The owner's epoch is no longer the one in the database: somebody else ended its generations."""


class ItemRefused(StoreError):
    """The engine refuses the batch because of its content, not because of its own state."""


class StoreUnavailable(StoreError):
    """The engine is out of reach; whether the last commit happened is unknown until `settle` says so."""
