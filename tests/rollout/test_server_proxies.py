"""Servers and the proxies that the environment names."""

import sys

import pytest
from moody_server import serve

from sharevl_lite.rollout import server_client
from sharevl_lite.rollout.errors import RolloutError
from sharevl_lite.rollout.proxies import proxy_of, shown
from sharevl_lite.rollout.server import check_servers

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "VLLM_API_KEY")


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    monkeypatch.setattr(server_client, "FIRST_PAUSE", 0.02)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def proxy(make_app, monkeypatch):
    """A proxy that lets nobody through, in the environment with a password; `proxy.seen` is what came there."""
    other = make_app()
    other.key = "nobody has it"
    with serve(other) as address:
        other.address = address.removesuffix("/v1")
        monkeypatch.setenv("http_proxy", other.address.replace("//", "//someone:secret-of-this-test@"))
        yield other


def test_this_machine_is_asked_without_the_proxy(recipe, url, proxy, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    for host in ("127.0.0.1", "localhost"):
        check_servers(recipe(url.replace("127.0.0.1", host)))
    assert proxy.seen == []


def test_another_machine_is_asked_through_the_proxy_which_a_message_names(recipe, proxy):
    with pytest.raises(RolloutError, match=r"wants another key, or the proxy .* lets nobody through \(401\)") as caught:
        check_servers(recipe("http://gpu.invalid:8000/v1"))
    assert [path for path, _, _ in proxy.seen] == ["http://gpu.invalid:8000/v1/models"]
    assert f"the proxy {proxy.address} lets" in str(caught.value)
    assert "NO_PROXY" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_fault_that_may_be_the_proxys_names_it(recipe, proxy):
    proxy.key = None
    told = rf"gpu\.invalid:8000/v1 \(through the proxy {proxy.address}\) answers /v1/models with 404"
    with pytest.raises(RolloutError, match=told):
        check_servers(recipe("http://gpu.invalid:8000/v1"))


def test_a_socks_proxy_without_its_package(recipe, url, monkeypatch):
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", "socks5://someone:secret-of-this-test@proxy:1080")
    check_servers(recipe(url))
    with pytest.raises(
        RolloutError, match=r"the proxy socks5://proxy:1080 .*pip install 'httpx\[socks\]', or"
    ) as caught:
        check_servers(recipe("http://gpu.invalid:8000/v1"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["gopher://someone:secret-of-this-test@proxy:70", "http://someone:secret@proxy:x"])
def test_an_address_that_is_no_proxys(recipe, monkeypatch, address):
    monkeypatch.setenv("ALL_PROXY", address)
    with pytest.raises(RolloutError, match=r"cannot be used: correct its address") as caught:
        check_servers(recipe("http://gpu.invalid:8000/v1"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "no_proxy", "proxy"),
    [
        ("http://gpu1:8000/v1", "", "http://plain:1"),
        ("https://gpu1/v1", "", "http://any:2"),
        ("http://gpu1:8000/v1", "other,gpu1", None),
        ("http://gpu1.lab:8000/v1", ".lab", None),
        ("http://gpu1:8000/v1", "*", None),
        ("http://10.0.0.7:8000/v1", "10.0.0.7", None),
        ("http://127.1.2.3:8000/v1", "", None),
        ("http://0.0.0.0:8000/v1", "", None),
        ("http://[::1]:8000/v1", "", None),
        ("http://LOCALHOST:8000/v1", "", None),
        ("http://localhost.lab:8000/v1", "", "http://plain:1"),
    ],
)
def test_which_proxy(monkeypatch, url, no_proxy, proxy):
    monkeypatch.setenv("http_proxy", "plain:1")
    monkeypatch.setenv("ALL_PROXY", "http://any:2")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert proxy_of(url) == proxy


def test_a_password_is_not_shown():
    assert shown("http://someone:pass@word@proxy:3128") == "http://proxy:3128"
