"""Who is answered: hosts, web origins and API keys, all of them checked before a body is read."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address

from hawk.server.answers import ApiError
from hawk.server.config import ServerConfig

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/openapi.json"})
"""What is answered without an API key: nothing of it draws or tells what others draw."""

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Headers of every answer."""

HOST = re.compile(r"(?P<name>\[[^][/?#@\\]*\]|[^][/?#@\\:]*)(?::[0-9]{0,5})?")
"""A Host header: a name or an address, an IPv6 address in brackets, and a port. It has no user, path or query."""

METHODS_FOR_ORIGINS = "GET, POST, OPTIONS"
HEADERS_FOR_ORIGINS = "authorization, content-type"


class Doorkeeper:
    """The checks of a request's headers."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self._keys = [digest(key) for key in config.keys]

    def check(self, path: str, headers: Mapping[str, str]) -> str | None:
        """Check the headers (names in lower case) of a request; returns the name of the client whose key it has.

        Raises:
            ApiError: the host, the origin or the key is refused.
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.is_own(host):
            wanted = "start the server with --allowed-host for that name"
            raise ApiError(403, f"this server is not reached under that host name: {wanted}", code="host_refused")
        if origin is not None and not self.allows(origin, host):
            raise ApiError(403, "this server takes no requests from that web origin", code="origin_refused")
        return self.client(path, headers.get("authorization", ""))

    def is_own(self, host: str) -> bool:
        """Whether a Host header may be the server's own: localhost, an IP address, or a name that it was started with.

        A page of another site that has its name point to this machine (DNS rebinding) sends that name.
        """
        match = HOST.fullmatch(host)
        name = match["name"].strip("[]").lower().rstrip(".") if match else ""
        return name == "localhost" or name in self.config.hosts or is_address(name)

    def allows(self, origin: str, host: str) -> bool:
        """Whether a web origin may send requests: the server's own pages may, and those that it was started with."""
        return origin in self.config.origins or origin in (f"http://{host}", f"https://{host}")

    def client(self, path: str, authorization: str) -> str | None:
        """The client whose API key a header has, None where keys are not asked for; `ApiError` for a wrong key."""
        if not self._keys or path in OPEN_PATHS or path.startswith("/static/"):
            return None
        given = digest(key_of(authorization))
        found = [hmac.compare_digest(given, key) for key in self._keys]  # all are compared, whichever is right
        if not any(found):
            raise ApiError(
                401,
                "the API key is missing or wrong: send it as 'authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return f"key {found.index(True) + 1}"

    def cors(self, origin: str | None) -> Sequence[tuple[str, str]]:
        """The headers that let a browser show an answer to a page of that origin."""
        if origin is None or origin not in self.config.origins:
            return ()
        allowed = (
            ("access-control-allow-methods", METHODS_FOR_ORIGINS),
            (
                "access-control-allow-headers",
                HEADERS_FOR_ORIGINS,
            ),
        )
        return (("access-control-allow-origin", origin), ("vary", "Origin"), *allowed)


def digest(key: str) -> bytes:
    """A key at one length for all keys, so that a comparison's time tells nothing."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def key_of(authorization: str) -> str:
    """The key of an Authorization header: a bearer token, or the password of a user, as A1111's clients send it."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def is_address(name: str) -> bool:
    """Whether a host name is an IP address."""
    try:
        ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
