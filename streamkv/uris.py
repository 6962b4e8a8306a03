"""What of a source's address may be shown."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit, urlunsplit

_SECRET = re.compile(r"token|key|secret|pass|pwd|sig|auth|cred|user|streamid", re.IGNORECASE)
_PAIR = re.compile(r"([A-Za-z]+)=([^_&;,/]*)")
"""Some cameras want their user in the path: `/user=admin_password=1234_channel=1`."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_url(text: str) -> bool:
    """Whether this names its scheme (`rtsp://…`), so is no path of a file."""
    return _URL.match(text) is not None


def redact_uri(uri: str) -> str:
    """The URI as it may be shown: no user, no password, no tokens in its query or path."""
    if not is_url(uri):
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri.split("://", 1)[0] + "://***"
    host = parts.netloc.rpartition("@")[2]
    netloc = f"***@{host}" if "@" in parts.netloc else host
    query = "&".join(map(_hide_value, parts.query.split("&")))
    path = "/".join(_PAIR.sub(_hide_pair, step) for step in parts.path.split("/"))
    return urlunsplit((parts.scheme, netloc, path, query, parts.fragment))


def _hide_value(pair: str) -> str:
    name, is_pair, _ = pair.partition("=")
    return f"{name}=***" if is_pair and _SECRET.search(unquote(name)) else pair


def _hide_pair(pair: re.Match[str]) -> str:
    return f"{pair[1]}=***" if _SECRET.search(pair[1]) else pair[0]
