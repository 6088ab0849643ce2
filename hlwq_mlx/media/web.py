"""Open web addresses, those of http and https alone.

What a server's client names may lead to this machine or its network, by a name or by a redirect.
So each connection of a public opener is made to an address that was checked, without a proxy.
"""

import ipaddress
import socket
import urllib.request
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Any


def opener(public_only: bool) -> urllib.request.OpenerDirector:
    """Return what opens addresses, so that no redirect reaches a file or ftp.

    With `public_only` it opens none of this machine and its network.
    """
    made = urllib.request.OpenerDirector()
    ways = PUBLIC if public_only else ANY
    for handler in (*ways, *ALWAYS):
        made.add_handler(handler())
    return made


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the internet."""
    return ipaddress.ip_address(address.partition("%")[0]).is_global


def connect(address: tuple[str, int], *options: Any) -> socket.socket:
    """Connect to a public address.

    Raises: OSError for one of this machine or its network.
    """
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    places = [str(each[4][0]) for each in found]
    if not all(map(is_public, places)):
        raise OSError(f"{address[0]}, which is on this machine or its network")
    return socket.create_connection((places[0], address[1]), *options)


class _Public(HTTPConnection):
    def connect(self) -> None:
        self.sock = connect((self.host, self.port), self.timeout)


class _PublicTLS(HTTPSConnection, _Public):
    """Encrypts what `_Public` connects, which comes next in the order of its bases."""


class _PublicHTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_Public, request)


class _PublicHTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_PublicTLS, request)


ANY = (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler)
PUBLIC = (_PublicHTTPHandler, _PublicHTTPSHandler)
ALWAYS = (
    *(urllib.request.UnknownHandler, urllib.request.HTTPRedirectHandler),
    *(urllib.request.HTTPErrorProcessor, urllib.request.HTTPDefaultErrorHandler),
)
