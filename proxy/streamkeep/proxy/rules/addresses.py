"""Which addresses and host names belong to the public internet.

The list is the registries of special-purpose addresses, written out: `ipaddress.is_global` gives other answers in other
Python versions. IPv6 is public only inside 2000::/3, which by itself refuses loopback, unique-local, link-local,
site-local, multicast, and the v4-compatible and v4-translated forms. A form that carries an IPv4 address to a network
is judged by that address (mapped, NAT64), or refused altogether where nothing public needs it (6to4, Teredo).
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_NOT_PUBLIC_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # "this host": connects to the machine itself
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared address space; a cloud's metadata service lives in it
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's wire server: outside every private range, and inside every virtual machine
        "169.254.0.0/16",  # link-local; the usual place of metadata services
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
_PUBLIC_V6 = IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: carries any IPv4 address, private ones too
        "3fff::/20",  # documentation
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP_MARKS = frozenset({0x0000_5EFE, 0x0200_5EFE})

# Where people run servers of their own. Left out of what is not public: link-local and metadata addresses, multicast.
_LOOPBACK = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
_PRIVATE = (
    *_LOOPBACK,
    IPv4Network("10.0.0.0/8"),
    IPv4Network("100.64.0.0/10"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv6Network("fc00::/7"),
)
_METADATA = frozenset({IPv4Address("100.100.100.200"), IPv6Address("fd00:ec2::254")})

_PRIVATE_SUFFIXES = (".local", ".localhost", ".internal", ".lan", ".home.arpa", ".svc", ".cluster.local")


def is_public_address(address: str) -> bool:
    """Whether a numeric address, as a socket reports it, is one that any host on the internet could reach.

    A zone id (`%eth0`) is ignored. What is no address at all is not public.
    """
    bare = address.partition("%")[0]
    try:
        return _is_public_v6(IPv6Address(bare)) if ":" in bare else _is_public_v4(IPv4Address(bare))
    except AddressValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether a server that listens on a host is reached from this machine alone. IPv6 addresses stand without brackets."""
    if host.lower() == "localhost":
        return True
    address = _parsed(host)
    return address is not None and any(address in network for network in _LOOPBACK)


def may_reach(host: str, address: str, *, may_be_private: bool) -> bool:
    """Whether a socket for a host may be opened to a numeric address that the host resolved to.

    With `may_be_private` an address that the host itself spells is admitted, whatever it is. A name then leads to
    loopback and private networks, but never to link-local, metadata or multicast addresses, and `localhost` leads to
    loopback alone: a resolver decides less than the rule's author did.
    """
    if is_public_address(address):
        return True
    if not may_be_private:
        return False
    found = _parsed(address)
    if found is None or found == _parsed(host):
        return found is not None
    name = host.lower().removesuffix(".")
    networks = _LOOPBACK if name == "localhost" or name.endswith(".localhost") else _PRIVATE
    return found not in _METADATA and any(found in network for network in networks)


def is_private_host(host: str) -> bool:
    """Whether a normalised host can only be private: an address that is not public, or a name with no public meaning.

    IPv6 addresses stand in brackets. A name that looks public may still lead to a private address: what it resolves to
    is checked where the socket is made.
    """
    if host.startswith("["):
        return not is_public_address(host[1:-1])
    if host.rpartition(".")[2].isdigit():
        return not is_public_address(host)
    return "." not in host or host.endswith(_PRIVATE_SUFFIXES)


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _is_public_v4(address: IPv4Address) -> bool:
    return not any(address in network for network in _NOT_PUBLIC_V4)


def _is_public_v6(address: IPv6Address) -> bool:
    if address.ipv4_mapped is not None:
        return _is_public_v4(address.ipv4_mapped)
    embedded = IPv4Address(int(address) & 0xFFFF_FFFF)
    if address in _NAT64:
        return _is_public_v4(embedded)
    if address not in _PUBLIC_V6 or any(address in network for network in _NOT_PUBLIC_V6):
        return False
    is_isatap = (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP_MARKS
    return not is_isatap or _is_public_v4(embedded)
