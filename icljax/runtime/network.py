"""Whether a download can work at all, asked before a library tries for minutes."""

import urllib.parse
from collections.abc import Iterable

_PROBE_SECONDS = 5


def unreachable(urls: Iterable[str]) -> str:
    """Says why none of the hosts answers, within some seconds each; empty: one does."""
    import requests

    reasons = []
    hosts = {urllib.parse.urlsplit(url).netloc: url for url in urls if url.startswith("http")}
    for host, url in hosts.items():
        try:
            if requests.head(url, timeout=_PROBE_SECONDS).status_code < 500:
                return ""
            reasons.append(f"{host} is out of order")
        except requests.RequestException as error:
            reasons.append(f"{host} cannot be reached: {type(error).__name__}")
    return ", ".join(reasons)
