"""What a server is started with: limits, keys, and whom it answers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from hawk.errors import HawkError

SHORTEST_KEY = 16
"""The fewest characters of an API key."""

MOST_IMAGES = 10
"""The most images of one request, as in OpenAI's API."""

LOG_FORMAT = "%(asctime)s %(message)s"

LABEL = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
HOST_NAME = re.compile(rf"{LABEL}(?:\.{LABEL})*")
ORIGIN = re.compile(rf"(?P<scheme>https?)://(?:{LABEL}(?:\.{LABEL})*|\[[0-9a-f:]+\])(?::(?P<port>[1-9][0-9]{{0,4}}))?")
"""A web origin as browsers send it in the header Origin."""


@dataclass(frozen=True)
class Limits:
    """The bounds of what clients may ask for.

    `body` is in bytes, `prompt` in characters, `timeout` in seconds from a request's arrival to its last image,
    `idle_seconds` the time until the head of a connection's next request has arrived, `body_seconds` and
    `write_seconds` the time that a client may take to send a body and to read a part of the answer.
    `queue` is the number of images that may wait, `per_client` the number of requests that a client may have at once,
    `area` the largest image as a multiple of the model's own number of pixels.
    """

    body: int = 256 * 1024
    prompt: int = 4000
    queue: int = 64
    per_client: int = 16
    connections: int = 1000
    timeout: float = 300.0
    idle_seconds: float = 20.0
    body_seconds: float = 20.0
    write_seconds: float = 30.0
    area: float = 4.0


@dataclass(frozen=True)
class ServerConfig:
    """The settings of a server.

    `keys` are the API keys that are accepted (none: everybody is), `origins` the web origins that may use the API from
    a browser, `hosts` the host names besides `localhost` and IP addresses under which the server is reached. `places`
    is the largest number of images that are drawn together. `behind_proxy` takes a client's address from the header
    X-Forwarded-For of a proxy on this machine.
    """

    places: int = 4
    limits: Limits = field(default_factory=Limits)
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    log_prompts: bool = False
    behind_proxy: bool = False

    @property
    def most_images(self) -> int:
        """The most images of one request."""
        return min(MOST_IMAGES, self.places + self.limits.queue)


def read_keys(path: Path) -> tuple[str, ...]:
    """The API keys of a file, one in a line; empty lines and lines that begin with # are skipped.

    Raises:
        HawkError: the file cannot be read, holds no key, or a key is too short or no printable ASCII text.
    """
    try:
        lines = path.read_text(encoding="ascii").split("\n")
    except OSError as error:
        raise HawkError(f"cannot read the API keys in {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise HawkError(f"the API keys in {path} must be ASCII text") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not keys:
        raise HawkError(f"{path} holds no API key: write one into a line of its own")
    for number, key in enumerate(keys, 1):
        if len(key) < SHORTEST_KEY or not key.isprintable() or " " in key:
            raise HawkError(f"API key {number} of {path} must have {SHORTEST_KEY} or more characters and no space")
    return keys


def host_name(name: str) -> str:
    """A host name as the server compares it; `HawkError` for what no client sends as a host name."""
    plain = name.lower().rstrip(".")
    if not HOST_NAME.fullmatch(plain):
        raise HawkError(
            "--allowed-host takes a host name alone, as images.example.org (no scheme, port, path or *; letters beyond "
            f"a-z in their xn-- form), not {name!r}"
        )
    return plain


def check_origin(origin: str) -> None:
    """Raise `HawkError` for what no browser sends as the origin of a page."""
    match = ORIGIN.fullmatch(origin)
    if match is None or (match["scheme"], match["port"]) in (("http", "80"), ("https", "443")):
        raise HawkError(
            "--cors takes an origin as a browser sends it: http:// or https://, a host name in small letters, and the "
            f"port unless it is 80 or 443, as https://example.org or http://localhost:3000, not {origin!r}"
        )
