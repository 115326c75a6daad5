"""Which proxy of the environment leads to a server: HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, none for hosts of NO_PROXY.

This machine's own addresses never need one. (httpx by itself would hand requests for them, with the key, to the proxy.)
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from sharevl_lite.rollout.errors import RolloutError


def proxy_of(url: str) -> str | None:
    """The address of the proxy by whose way `url` is reached, with its password if it has one."""
    parts = urlsplit(url)
    if _is_this_machine(parts.hostname or "") or proxy_bypass(parts.netloc):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def shown(proxy: str) -> str:
    """A proxy's address for a message: no user, no password."""
    return f"{proxy.partition('://')[0]}://{proxy.partition('://')[2].rpartition('@')[2]}"


def transports(urls: Sequence[str], limits: httpx.Limits) -> dict[str, httpx.AsyncHTTPTransport]:
    """httpx's `mounts` for the servers that are reached through a proxy.

    Raises RolloutError where a proxy cannot be used.
    """
    mounts = {}
    for url in urls:
        proxy = proxy_of(url)
        if not proxy:
            continue
        parts = urlsplit(url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        try:
            mounts[f"{parts.scheme}://{host}"] = httpx.AsyncHTTPTransport(proxy=proxy, limits=limits)
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            needed = "pip install 'httpx[socks]'" if isinstance(error, ImportError) else "correct its address"
            raise RolloutError(
                f"rollout.server_urls: {url} is reached through the proxy {shown(proxy)} of the environment, which "
                f"cannot be used: {needed}, or name the server's host in NO_PROXY if it needs no proxy"
            ) from None  # what httpx says of an address shows its password
    return mounts


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
