"""Several proxies over one database, as one: where the next request goes.

They know the same generations, so whatever one began another continues, and a repeat at another one joins the first. The
first of them names all: local records are kept under it.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamkeep.client._rules import wire


class Places:
    """The base URLs, and the one that is asked now."""

    def __init__(self, bases: Sequence[str]) -> None:
        self._bases = tuple(dict.fromkeys(bases))
        self._origins = {wire.origin(base) for base in self._bases}
        self._now = self._bases[0]

    @property
    def name(self) -> str:
        return self._bases[0]

    def __len__(self) -> int:
        return len(self._bases)

    def __contains__(self, url: str) -> bool:
        """Whether a URL is on one of these servers: then it may see their credentials."""
        return wire.origin(url) in self._origins

    def of(self, url: str) -> str:
        """Where to send a request for this URL now; one that is on none of these servers stays as it is."""
        base = max((base for base in self._bases if url.startswith(f"{base}/")), key=len, default=None)
        return url if base is None else self._now + url[len(base) :]

    def failed(self, url: str) -> None:
        """A request to this URL came to nothing: the next goes elsewhere, unless another failure has seen to that."""
        if url.startswith(f"{self._now}/"):
            at = self._bases.index(self._now)
            self._now = self._bases[(at + 1) % len(self._bases)]
