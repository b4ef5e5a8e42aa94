"""Which addresses may be dialled because a tenant named them: those on the public internet. Pure.

An allow-list of our own, not `ipaddress.is_global`: that one differs between Python versions, and
counts addresses as global that lead back inside. Addresses that carry another one (IPv4-mapped,
NAT64, 6to4, Teredo) are refused, never unwrapped.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

# IANA's special-purpose registry (RFC 6890 and its updates), multicast, and the reserved end.
IPV4_REFUSED = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # public by number, but Azure's own services inside every machine
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# The only block that global unicast addresses are handed out from, less what is special in it.
IPV6_ALLOWED = IPv6Network("2000::/3")
IPV6_REFUSED = tuple(
    IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
IPV4_LOOPBACK = IPv4Network("127.0.0.0/8")
IPV6_LOOPBACK = IPv6Address("::1")


def is_public(ip: IPv4Address | IPv6Address) -> bool:
    """Is this an address on the public internet, and nothing else?"""
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in IPV4_REFUSED)
    if ip.scope_id is not None or ip not in IPV6_ALLOWED:
        return False
    return not any(ip in network for network in IPV6_REFUSED)


def is_loopback(ip: IPv4Address | IPv6Address) -> bool:
    return ip in IPV4_LOOPBACK if isinstance(ip, IPv4Address) else ip == IPV6_LOOPBACK
