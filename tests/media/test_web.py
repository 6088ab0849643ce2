"""Which web addresses a server's clients may name."""

import pytest
from test_origin import CONTENT, server

from hlwq_mlx.errors import SourceError
from hlwq_mlx.media import web
from hlwq_mlx.media.origin import Access, open_origin

PUBLIC = Access(files=False, web=True, public_only=True, timeout_s=3.0)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", False),
        ("10.0.0.7", False),
        ("192.168.1.5", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("::ffff:127.0.0.1", False),
        ("8.8.8.8", True),
        ("2606:4700::1", True),
    ],
)
def test_addresses_of_this_network_are_not_public(address, expected):
    assert web.is_public(address) is expected


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_this_machine_is_not_asked_under_any_name(scheme):
    with server() as address:
        for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1"):
            url = f"{scheme}://{host}:{address.rpartition(':')[2]}/media"
            with pytest.raises(SourceError, match="on this machine or its network"):
                open_origin(url, PUBLIC)


def test_a_redirect_is_checked_too(monkeypatch):
    checked = []
    monkeypatch.setattr(web, "is_public", lambda each: checked.append(each) or len(checked) < 3)
    with server() as address:
        with open_origin(f"{address}/moved", PUBLIC) as file:
            assert file.read() == CONTENT
        assert len(checked) == 2
        with pytest.raises(SourceError, match="on this machine or its network"):
            open_origin(f"{address}/moved", PUBLIC)
