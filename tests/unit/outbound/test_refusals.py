"""URLs that must lead nowhere: not one connection, whatever the spelling and the DNS say.

The canary listens on loopback, on a port that the policy allows, for http, with a DNS that
answers 127.0.0.1 for every name: nothing but the guard stands between a URL and it.
"""

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from shared.core.outbound.addresses import (
    LOOPBACK,
    IPAddress,
    OutboundPolicy,
    embedded_ipv4,
    is_allowed,
)
from shared.core.outbound.client import GuardedClient
from shared.core.outbound.url import (
    AddressNotAllowed,
    OutboundError,
    UnresolvableHost,
    UrlNotAllowed,
    check_url,
)
from tests.unit.outbound.servers import OK, Dials, Peer, answering, peer

# A client that never reaches TLS needs no certificates, and loading them takes 20 ms.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

ANY = str(IPv4Address(0))

# One address at each end of every range that is not public.
RANGES = [
    ANY, "0.0.0.1", "0.255.255.255", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.127.255.255",
    "100.100.100.200", "127.0.0.0", "127.0.0.1", "127.255.255.255", "169.254.0.0",
    "169.254.169.254", "169.254.170.2", "169.254.255.255", "172.16.0.0", "172.31.255.255",
    "192.0.0.0", "192.0.0.170", "192.0.0.192", "192.0.0.255", "192.0.2.0", "192.0.2.255",
    "192.31.196.1", "192.52.193.1", "192.88.99.0", "192.88.99.255", "192.168.0.0",
    "192.168.255.255", "192.175.48.1", "198.18.0.0", "198.19.255.255", "198.51.100.0",
    "198.51.100.255", "203.0.113.0", "203.0.113.255", "224.0.0.0", "224.0.0.1",
    "239.255.255.255", "240.0.0.0", "255.255.255.254", "255.255.255.255",
    "::", "::1", "::2", "::ffff:ffff", "100::", "100::1", "100:0:0:1::1", "64:ff9b::",
    "64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", "2001::", "2001:1::1", "2001:2::1",
    "2001:10::1", "2001:20::1", "2001:1ff:ffff::1", "2001:db8::", "2001:db8:ffff::1", "2002::",
    "2002:ffff::1", "2620:4f:8000::1", "3fff::", "3fff:fff:ffff::1", "4000::1", "5f00::1",
    "5f00:ffff::1", "fc00::", "fc00::1", "fd00:ec2::254", "fdff:ffff::1", "fe00::1", "fe80::",
    "fe80::1", "febf::1", "fec0::1", "feff::1", "ff00::", "ff02::1", "ff0e::1", "1::1", "8000::1",
]  # fmt: skip

PRIVATE = ["127.0.0.1", "169.254.169.254", "10.0.0.1", "192.168.1.1", "100.100.100.200", ANY]


def wrapped(four: str) -> list[str]:
    """The IPv6 addresses that lead to an IPv4 address, by every way of embedding there is."""
    value = int(IPv4Address(four))
    high, low = value >> 16, value & 0xFFFF
    inverted_high, inverted_low = high ^ 0xFFFF, low ^ 0xFFFF
    return [
        f"::ffff:{four}", f"::ffff:{high:x}:{low:x}", f"::{four}", f"::ffff:0:{four}",
        f"64:ff9b::{four}", f"64:ff9b::{high:x}:{low:x}", f"64:ff9b:1::{four}",
        f"64:ff9b:1:{high:x}:{low >> 8:x}:{(low & 0xFF) << 8:x}::", f"2002:{high:x}:{low:x}::1",
        f"2001:0:{high:x}:{low:x}::1", f"2001:0:808:808::{inverted_high:x}:{inverted_low:x}",
        f"2600::5efe:{high:x}:{low:x}", f"2600::200:5efe:{high:x}:{low:x}",
    ]  # fmt: skip


EMBEDDED = [six for four in PRIVATE for six in wrapped(four)]

LOOPBACK_SPELLINGS = [
    # One loopback address in every form that some resolver takes.
    "127.1", "127.0.1", "0177.0.0.1", "0177.1", "0x7f.0.0.1", "0x7f.1", "0x7F.1", "0X7F.1",
    "0x7f000001", "0x7F000001", "2130706433", "02130706433", "017700000001", "0x0000007f.1",
    "127.0.0.01", "127.0.0.001", "127.00.0.1", "0127.0.0.1", "127.0.0.0x1", "127.0x0.1",
    "127.0.0.1.", "127.1.", "0x7f.1.", "0", "0x0", "0.0", "00", "0x", "0.0.0", "127.0.0.256",
    "127.0.0.1.1", "4294967296", "4429185025", "99999999999999999999", "1.2.3.4.5", "127.0.0.-1",
    "127..0.1", ".127.0.0.1", "127.0.0.1..", "+127.0.0.1", "127.0.0.1e0", "127.0.0.٣",
    # In other scripts and shapes.
    "１２７.0.0.1", "127。0。0。1", "127．0．0．1", "127｡0｡0｡1", "①②⑦.⓪.⓪.①", "127.0.0.𝟏",
    "𝟙𝟚𝟟.𝟘.𝟘.𝟙", "2130706433\u200d", "１２７．１", "０ｘ７ｆ．１", "１２７．０．０．０１",
    "ⅼocalhost", "ｌｏｃａｌｈｏｓｔ", "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
    "LOCALHOST", "localhost", "localhost.", "a.localhost", "a.b.LocalHost", "loc\u00adalhost",
    "127.0.0.1\u00ad", "127.0.0.1\u2024", "\u200b127.0.0.1",
    # Brackets.
    "[::1]", "[0:0:0:0:0:0:0:1]", "[0000::0001]", "[::0.0.0.1]", "[::127.0.0.1]", "[::ffff:7f00:1]",
    "[::FFFF:127.0.0.1]", "[0:0:0:0:0:ffff:127.0.0.1]", "[::ffff:0:127.0.0.1]", "[::]",
    "[::1%25lo]", "[::1%lo]", "[fe80::1%25eth0]", "[::1", "::1]", "::1", "[127.0.0.1]",
    "[localhost]", "[[::1]]", "[::1]]", "[::1].example.com", "[v1.fe80::a]", "[::ffff:127.1]",
    "[::ffff:0177.0.0.1]", "[]", "[:]", "[::1::]", "[１::1]",
    # Names that a lying DNS answers for, and hosts that are no names at all.
    "example.com", "public.example", "bücher.example", "127.0.0.1.example.com", "1.example", "a",
    "xn--bcher-kva.example", "0x7f.example", "metadata.google.internal", "redis", "_dns.example",
    "127.0.0.1%2eexample.com", "%6c%6f%63%61%6c%68%6f%73%74", "127%2e0%2e0%2e1", "%31%32%37.0.0.1",
    "exa mple.com", "example.com\\", "example.com;", "example,com", "exa'mple", "a..b",
    "-a.example", "a-.example", "a" * 64 + ".example", "a." * 127 + "example",
    "*.example.com", "ex\u0000ample", "xn--", "xn--a", "xn--0", "\ud800.example",
    "example.com\u2028",
]  # fmt: skip

# Whole URLs; `PORT` is the canary's.
ODD_URLS = [
    "http://user@127.0.0.1:PORT/", "http://user:pass@127.0.0.1:PORT/", "http://@127.0.0.1:PORT/",
    "http://8.8.8.8@127.0.0.1:PORT/", "http://8.8.8.8:80@127.0.0.1:PORT/", "http://:@127.0.0.1:PORT",
    "http://user@example.com:PORT/", "http://127.0.0.1:PORT@example.com/", "http://a%40b@c:PORT/",
    "http://8.8.8.8\\@127.0.0.1:PORT/", "http://8.8.8.8#@127.0.0.1:PORT/\n", "http:127.0.0.1:PORT/",
    "http:/127.0.0.1:PORT/", "http:///127.0.0.1:PORT/", "http:////127.0.0.1:PORT/",
    "//127.0.0.1:PORT",
    "http:\\\\127.0.0.1:PORT\\", "http://127.0.0.1:PORT\\a", " http://127.0.0.1:PORT/",
    "http://127.0.0.1:PORT/ ", "\thttp://127.0.0.1:PORT/", "ht\ntp://127.0.0.1:PORT/",
    "http://127.0.\t0.1:PORT/", "http://127.0.0.1\r\n:PORT/", "http://\u00a0127.0.0.1:PORT/",
    "http://127.0.0.1:PORT/\r\nHost:%20x", "\x00http://127.0.0.1:PORT/", "127.0.0.1:PORT", "",
    "http://", "http://:PORT/", "http://?", "http:", "localhost:PORT", "HTTP://127.0.0.1:PORT/",
    "ftp://127.0.0.1:PORT/", "gopher://127.0.0.1:PORT/_x", "file:///etc/passwd", "dict://127.0.0.1:PORT",
    "ws://127.0.0.1:PORT/", "unix:///var/run/docker.sock", "jar:http://127.0.0.1:PORT/!/",
    "javascript:alert(1)", "data:text/plain,x", "http+unix://%2Fvar%2Frun/", "url:http://127.0.0.1:PORT/",
    "http://127.0.0.1:0PORT/", "http://127.0.0.1:+PORT/", "http://127.0.0.1:PORT:80/",
    "http://127.0.0.1:-1/", "http://127.0.0.1:99999/", "http://127.0.0.1:0/", "http://127.0.0.1:/",
    "http://127.0.0.1: PORT/", "http://127.0.0.1:８０/", "http://127.0.0.1:0x50/", "http://127.0.0.1:8_0/",
    "http://example.com:PORT/" + "a" * 3000,
]  # fmt: skip


@dataclass(frozen=True)
class Trap:
    canary: Peer
    client: GuardedClient
    policy: OutboundPolicy


def client_with(answer: list[IPAddress], policy: OutboundPolicy) -> GuardedClient:
    """A client for whom every name leads to `answer`."""
    return GuardedClient(policy, resolver=lambda _: answer, ssl_context=NO_TLS)


@pytest.fixture(scope="module")
def trap() -> Iterator[Trap]:
    with peer(answering(OK)) as canary:
        policy = OutboundPolicy(allow_http=True, allowed_ports=frozenset({80, 443, canary.port}))
        lying_dns = client_with([IPv4Address("127.0.0.1")], policy)
        yield Trap(canary, lying_dns, policy)
        assert canary.accepted == 0


def refusal(trap: Trap, url: str) -> OutboundError:
    """What `url` is refused with, having dialled nothing."""
    with Dials() as dials, pytest.raises(OutboundError) as caught:
        trap.client.send("GET", url, deadline_s=10)
    assert dials.addresses == []
    assert trap.canary.accepted == 0
    return caught.value


def test_the_canary_sings_when_the_guard_lets_it() -> None:
    """The counter-test: what the others assert is 0 can be something else."""
    with peer(answering(OK)) as canary, Dials() as dials:
        client = GuardedClient(OutboundPolicy(allow_http=True, allowed_networks=LOOPBACK))
        client.send("GET", f"http://127.0.0.1:{canary.port}/")
        assert canary.accepted == 1
        assert dials.addresses == [("127.0.0.1", canary.port)]


def test_there_are_more_than_two_hundred() -> None:
    cases = {*RANGES, *EMBEDDED, *LOOPBACK_SPELLINGS, *ODD_URLS}
    assert len(cases) > 300


@pytest.mark.parametrize("address", [*RANGES, *EMBEDDED])
def test_an_address_that_is_not_public_is_refused(trap: Trap, address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    for port in (trap.canary.port, 443, 80):
        assert isinstance(refusal(trap, f"http://{host}:{port}/"), AddressNotAllowed)
    with pytest.raises(AddressNotAllowed):
        check_url(f"https://{host}/", OutboundPolicy())


@pytest.mark.parametrize("address", [*RANGES, *EMBEDDED])
def test_a_name_that_leads_to_such_an_address_is_refused(trap: Trap, address: str) -> None:
    for answer in ([ip_address(address)], [ip_address("8.8.8.8"), ip_address(address)]):
        client = client_with(answer, trap.policy)
        with Dials() as dials, pytest.raises(AddressNotAllowed):
            client.send("GET", f"http://hooks.example:{trap.canary.port}/")
        assert dials.addresses == []


@pytest.mark.parametrize("host", LOOPBACK_SPELLINGS)
def test_no_spelling_of_loopback_gets_through(trap: Trap, host: str) -> None:
    error = refusal(trap, f"http://{host}:{trap.canary.port}/")
    assert isinstance(error, UrlNotAllowed | AddressNotAllowed)


@pytest.mark.parametrize("url", ODD_URLS)
def test_no_odd_url_gets_through(trap: Trap, url: str) -> None:
    error = refusal(trap, url.replace("PORT", str(trap.canary.port)))
    assert isinstance(error, UrlNotAllowed | AddressNotAllowed)


@pytest.mark.parametrize("host", [host for host in LOOPBACK_SPELLINGS if host.isascii()])
def test_what_the_system_makes_of_a_spelling_does_not_matter(trap: Trap, host: str) -> None:
    """The same with a resolver that, as the C library does, takes numbers in any base."""

    def as_the_c_library(name: str) -> list[IPAddress]:
        return [IPv4Address(socket.inet_aton(name))]

    client = GuardedClient(trap.policy, resolver=as_the_c_library, ssl_context=NO_TLS)
    with Dials() as dials, pytest.raises((UrlNotAllowed, AddressNotAllowed, UnresolvableHost)):
        client.send("GET", f"http://{host}:{trap.canary.port}/")
    assert dials.addresses == []


@pytest.mark.parametrize(
    ("url", "policy"),
    [
        ("http://example.com/", OutboundPolicy()),
        ("https://example.com:8443/", OutboundPolicy()),
        ("https://8.8.8.8:22/", OutboundPolicy()),
        ("https://8.8.8.8:22/", OutboundPolicy(allowed_networks=LOOPBACK)),
        ("https://example.com:65536/", OutboundPolicy(allowed_networks=LOOPBACK)),
    ],
)
def test_scheme_and_port_are_known_at_registration(url: str, policy: OutboundPolicy) -> None:
    with pytest.raises(UrlNotAllowed):
        check_url(url, policy)


def test_a_named_network_does_not_open_other_ports_of_public_names() -> None:
    """Where a network is allowed, a name's port can only be judged with its address."""
    policy = OutboundPolicy(allowed_networks=LOOPBACK)
    check_url("https://hooks.example:8443/", policy)
    client = client_with([IPv4Address("8.8.8.8")], policy)
    with Dials() as dials, pytest.raises(UrlNotAllowed):
        client.send("GET", "https://hooks.example:8443/")
    assert dials.addresses == []


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("64:ff9b::7f00:1", "64:ff9b::/96"),
        ("::ffff:127.0.0.1", "127.0.0.0/8"),
        ("2002:a00:1::1", "2002::/16"),
        ("10.0.0.1", "10.0.0.2/32"),
        ("::1", "127.0.0.0/8"),
    ],
)
def test_a_named_network_admits_no_more_than_it_says(address: str, network: str) -> None:
    assert not is_allowed(ip_address(address), [ip_network(network)])


def test_nat64_works_for_an_operator_who_has_one() -> None:
    nat64 = [ip_network("64:ff9b::/96")]
    assert is_allowed(ip_address("64:ff9b::808:808"), nat64)
    assert not is_allowed(ip_address("64:ff9b::a00:1"), nat64)
    assert is_allowed(ip_address("64:ff9b::a00:1"), [*nat64, ip_network("10.0.0.0/8")])


@pytest.mark.parametrize("four", PRIVATE)
def test_the_address_inside_is_found(four: str) -> None:
    for six in wrapped(four):
        assert IPv4Address(four) in list(embedded_ipv4(ip_address(six))), six


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0",
     "126.255.255.255", "128.0.0.0", "169.253.255.255", "172.15.255.255", "172.32.0.0",
     "192.0.1.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0",
     "203.0.112.255", "223.255.255.255", "2001:200::1", "2001:4860:4860::8888", "2003::1",
     "2606:4700::1111", "2a00:1450::1", "3ffe:ffff::1", "3fff:1000::1"],
)  # fmt: skip
def test_public_neighbours_of_those_ranges_are_allowed(address: str) -> None:
    assert is_allowed(ip_address(address), [])


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("https://example.com", "example.com", 443, "/"),
        ("HTTPS://Example.COM:443/A?b=c#d", "example.com", 443, "/A?b=c"),
        ("https://example.com:80/%2e%2e/x", "example.com", 80, "/%2e%2e/x"),
        ("https://bücher.example/ä?ö=ü", "xn--bcher-kva.example", 443, "/%C3%A4?%C3%B6=%C3%BC"),
        ("https://8.8.8.8/", "8.8.8.8", 443, "/"),
        ("https://[2606:4700:0::1111]/", "2606:4700::1111", 443, "/"),
        ("https://hooks_1.a-b.example?x", "hooks_1.a-b.example", 443, "/?x"),
        ("https://example.com/?next=http://user@127.0.0.1/", "example.com", 443,
         "/?next=http://user@127.0.0.1/"),
    ],
)  # fmt: skip
def test_an_ordinary_url_is_taken_apart(url: str, host: str, port: int, path: str) -> None:
    target = check_url(url, OutboundPolicy())
    assert (target.host, target.port, target.path) == (host, port, path)
