"""Who may talk to the page: its own address and the browsers that were given the token, and nobody else.

Gradio answers every program that reaches its port. Here a request needs a host name that cannot be pointed at this
machine by somebody else's DNS, no foreign origin, and the token; it goes to what the page itself asks, and the files
it names must be uploads. What fails all the same is one sentence, in the terminal and for whoever asked.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from facessl.core.escape import printable

#: Bytes of a request with uploads and of another one, at most; Gradio limits each file, and takes 1,000 in a request.
_LARGEST_UPLOAD, _LARGEST = 65 << 20, 4 << 20
#: What Gradio asks its own server when it starts, without a token; neither tells anything.
_OWN = (("GET", "/gradio_api/startup-events"), ("HEAD", "/"))
_UPLOAD = "/gradio_api/upload"
#: What the page sends; Gradio takes more.
_SENT = (_UPLOAD, *(f"/gradio_api/{name}" for name in ("queue/join", "component_server", "cancel", "reset")))
#: The browser fetches nothing from other addresses, whatever the page shows. Gradio's own page has inline scripts.
_POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; base-uri 'self'"
#: What a sentence tells of an error.
_LONGEST = 160

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


@dataclass
class Door:
    """What a request must have.

    Attributes:
        host: address that is listened on.
        folder: of the uploads.
        token: in the address of the page.
        public: other host names of the page.
    """

    host: str
    folder: Path
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    public: set[str] = field(default_factory=set)

    def opens(self, host: str) -> bool:
        """Whether a host name, which may have a port, is one of this page."""
        name = _part(f"//{host}", "hostname")
        if name in {"127.0.0.1", "localhost", "::1", self.host.lower(), *self.public}:
            return True
        if not is_address(self.host, "is_unspecified"):
            return False
        return is_address(name, "version") or name in (socket.gethostname().lower(), socket.getfqdn().lower())


class Guard:
    """ASGI middleware that answers 403 to what `Door` does not let in, and 400 to what Gradio fails at.

    Gradio keeps uploads apart from other files only where a request says of itself that it names a file, and fetches
    the addresses that a request names.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], door: Door) -> None:
        self.app, self.door = app, door

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer or refuse a request."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        cookie = f"facessl-{(scope.get('server') or ('', 0))[1]}"
        asked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if refusal := self._refusal(scope, headers, asked, cookie):
            return await _refuse(send, refusal)
        if (scope["method"], scope["path"]) == ("HEAD", "/"):  # Gradio's own, which it waits for but 3 s
            return await _refuse(send, "", 200)
        if scope["path"].rstrip("/") == _UPLOAD:
            if not _is_short(headers):
                return await _refuse(send, f"At most {_LARGEST_UPLOAD >> 20} MB are uploaded at a time.")
        elif scope["method"] == "POST":
            body = await _body(receive)
            if body is None or not self._names_uploads(body):
                return await _refuse(send, "The request names a file that was not uploaded, or is not valid JSON.")
            receive = _again(body, receive)
        more = [(b"content-security-policy", _POLICY)]
        if self._is_token(asked):
            told = f"{cookie}={asked}; Path=/; HttpOnly; SameSite=Strict"
            more += [(b"set-cookie", told.encode()), (b"referrer-policy", b"same-origin")]
        return await self._answer(scope, receive, _with_headers(send, more))

    async def _answer(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Gradio's answer; where it fails, a sentence."""
        begun = False

        async def answer(message: _Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, answer)
        except Exception as error:  # at a request that the page would not make
            tell_failure(f"a request to {scope['path']}", error)
            if not begun:
                await _refuse(send, "The request was not understood.", 400)

    def _refusal(self, scope: _Message, headers: dict[str, str], asked: str, cookie: str) -> str:
        """What is wrong with a request; "" where nothing is."""
        host, origin, path = headers.get("host", ""), headers.get("origin"), scope["path"]
        if not self.door.opens(host):
            return "This page is not served under that host name: open the address that facessl app printed."
        if origin is not None and _part(origin, "netloc") != host.lower():
            return "Requests of other pages are not answered."
        if scope["method"] not in ("GET", "HEAD") and (scope["method"] != "POST" or path.rstrip("/") not in _SENT):
            return "The page sends no such request."
        if "/proxy=" in path or "file=http" in path:
            return "Nothing is fetched from other addresses."
        if (scope["method"], path) in _OWN or any(
            map(self._is_token, (asked, _cookie(headers.get("cookie", ""), cookie)))
        ):
            return ""
        return "This page needs its token: open the whole address that facessl app printed in its terminal."

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.door.token.encode())

    def _names_uploads(self, body: bytes) -> bool:
        try:
            asked = json.loads(body or b"null", parse_constant=_refused)
            return all(is_inside(path, self.door.folder) for path in _paths(asked))
        except (ValueError, RecursionError):
            return False


def tell_failure(what: str, error: Exception) -> None:
    """Tell in one sentence, on standard error, that something failed."""
    what, reason = (printable(text)[:_LONGEST] for text in (what, f"{type(error).__name__}: {error}"))
    print(f"facessl app: {what} was not understood ({reason})", file=sys.stderr, flush=True)


def is_inside(path: object, folder: str | Path) -> bool:
    """Whether a path, with its links followed, lies in a folder; the file need not exist."""
    try:
        return isinstance(path, str) and Path(path).resolve().is_relative_to(Path(folder).resolve())
    except (OSError, ValueError, RuntimeError):
        return False


def is_address(host: str, kind: str) -> bool:
    """Whether a host is an IP address, of a kind such as "is_loopback"."""
    try:
        return bool(getattr(ipaddress.ip_address(host), kind))
    except ValueError:
        return False


def _part(url: str, name: str) -> str:
    """A part of a URL ("hostname", "netloc") in lowercase; "" where there is none."""
    try:
        return (getattr(urlsplit(url), name) or "").lower()
    except ValueError:
        return ""


def _cookie(header: str, name: str) -> str:
    """A cookie; `http.cookies` would take none after an odd one of another program of this machine."""
    given = (part.strip().partition("=") for part in header.split(";"))
    return next((value for key, _, value in given if key == name), "")


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not in JSON")


def _paths(value: object) -> Iterator[object]:
    """All that a request calls `path`, at any depth."""
    if isinstance(value, dict):
        if value.get("path") is not None:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _paths(part)


def _is_short(headers: dict[str, str]) -> bool:
    """Whether the length of an upload is known and small enough."""
    length = headers.get("content-length", "")
    return length.isdecimal() and "transfer-encoding" not in headers and int(length) <= _LARGEST_UPLOAD


async def _body(receive: _Receive) -> bytes | None:
    """The body of a request; None where it is too large or breaks off."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or len(body) > _LARGEST:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _again(body: bytes, receive: _Receive) -> _Receive:
    """`receive` of a request whose body was read."""
    left = [body]

    async def received() -> _Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return received


def _with_headers(send: _Send, more: list[tuple[bytes, bytes]]) -> _Send:
    async def sent(message: _Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *more]
        await send(message)

    return sent


async def _refuse(send: _Send, sentence: str, status: int = 403) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{sentence}\n".encode()})
