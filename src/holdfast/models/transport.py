"""Requests to a prediction API: connections that stay open, one limit of time for a whole answer, headers, no redirects."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from holdfast.core.errors import ModelError, UsageError

__all__ = ["HttpReply", "Line", "excerpt", "refusal", "request_headers"]

_MAX_ANSWER = 64 << 20
_SHOWN = 200


@dataclass(frozen=True, kw_only=True)
class HttpReply:
    """What came back.

    Attributes:
        status: of HTTP; 0 if there was no answer.
        body: its content.
        wait: seconds that the server asks to wait, if it does; finite and at least 0.
        fault: why there was no answer.
        location: where a redirect points.
        sent: whether any of the request went out, so that the server may have counted it.
    """

    status: int
    body: bytes
    wait: float | None = None
    fault: str = ""
    location: str = ""
    sent: bool = True

    @property
    def trouble(self) -> str:
        """What was met in place of an answer: the status and the beginning of its body, or why there was none."""
        if self.fault:
            return self.fault
        return f"status {self.status}{f' and {excerpt(self.body)}' if self.body else ''}"


class Line:
    """Connections that stay open, one for each thread. Redirects are not followed: they could carry a token away."""

    def __init__(self, url: str, timeout: float, headers: Mapping[str, str]) -> None:
        at = urlsplit(url)
        self._kind = HTTPSConnection if at.scheme == "https" else HTTPConnection
        self._host, self._port, self._timeout, self._headers = at.hostname or "", at.port, timeout, headers
        self._path = (at.path or "/") + (f"?{at.query}" if at.query else "")
        self._local = threading.local()

    def post(self, body: bytes) -> HttpReply:
        """Send one request and read its answer; a lost connection, or one too slow, is a reply too.

        Raises:
            ModelError: an answer too long to be one.
        """
        line: HTTPConnection | None = getattr(self._local, "line", None)
        if line is None:
            line = self._local.line = self._kind(self._host, self._port, timeout=self._timeout)
        sent = False
        with _deadline(line, self._timeout) as late:
            try:
                if line.sock is None:
                    line.connect()
                    if late.is_set():
                        raise TimeoutError
                sent = True
                try:
                    line.request("POST", self._path, body, dict(self._headers))
                except (BrokenPipeError, ConnectionResetError):
                    if late.is_set():
                        raise
                    # a server that refuses early may have answered without reading the request to its end
                answer = line.getresponse()
                content = answer.read(_MAX_ANSWER + 1)
            except (OSError, HTTPException, ValueError) as fault:
                line.close()
                if late.is_set() or isinstance(fault, TimeoutError):
                    what = f"no whole answer within {self._timeout:g} s" if sent else "no connection"
                    return HttpReply(status=0, body=b"", fault=f"TimeoutError: {what}", sent=sent)
                return HttpReply(status=0, body=b"", fault=f"{type(fault).__name__}: {fault}", sent=sent)
        if late.is_set():  # the end came by the closed line, which reads like the end of an answer without a length
            line.close()
            return HttpReply(status=0, body=b"", fault=f"TimeoutError: no whole answer within {self._timeout:g} s")
        if len(content) > _MAX_ANSWER:
            line.close()
            raise ModelError(f"{self._host} answered with more than {_MAX_ANSWER >> 20} MiB; is it the prediction API?")
        wait = _seconds(answer.headers.get("Retry-After"))
        return HttpReply(status=answer.status, body=content, wait=wait, location=answer.headers.get("Location", ""))


@contextmanager
def _deadline(line: HTTPConnection, seconds: float) -> Generator[threading.Event, None, None]:
    """Cuts the line when the time is over, however often a byte came: a socket's own time-out is for each read."""
    late = threading.Event()

    def cut() -> None:
        late.set()
        if line.sock is not None:
            with suppress(OSError):  # closed already
                # of the plain socket: to end an encrypted line in good order would wait for the other side
                socket.socket.shutdown(line.sock, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _seconds(text: str | None) -> float | None:
    """A Retry-After header: seconds, or a date; None if it is neither, so that the own back-off decides."""
    if text is None:
        return None
    if re.fullmatch(r"\s*\d{1,18}(\.\d*)?\s*", text):
        return float(text)
    try:
        when = parsedate_to_datetime(text)
        return max(0.0, (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def request_headers(url: str, headers: Mapping[str, str] | None, token_env: str | None) -> dict[str, str]:
    """The headers of every request, the token from the environment among them.

    Raises:
        UsageError: no usable address, no token in the variable, or a token over an unencrypted line.
    """
    at = urlsplit("")
    try:
        at = urlsplit(url)
        usable = at.scheme in ("http", "https") and bool(at.hostname) and at.port != 0 and url.isascii()
    except ValueError:  # a port or an address that is none
        usable = False
    if not usable or any(c.isspace() for c in url):
        raise UsageError(f"'{url}' is no address of an API; wanted https://host/path")
    if at.username or at.password:
        raise UsageError(
            "the address of an API holds a name or password, which reports would show; put a token into HOLDFAST_API_TOKEN"
        )
    given = {"Content-Type": "application/json", "Accept": "application/json", **(headers or {})}
    if token_env is not None:
        token = os.environ.get(token_env)
        if not token:
            raise UsageError(f"the environment variable {token_env}, which should hold the API's token, is not set")
        if any(ord(c) < 33 or ord(c) > 126 for c in token):
            raise UsageError(f"the token in {token_env} holds blanks or other signs that no header can carry")
        if at.scheme == "http" and at.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise UsageError(f"{url} is not encrypted and would give the token away; use https")
        given["Authorization"] = f"Bearer {token}"
    return given


def excerpt(body: bytes) -> str:
    """The beginning of an answer, for a message."""
    text = " ".join(body[: 4 * _SHOWN].decode("utf-8", "replace").split())
    return repr(text[:_SHOWN])


def refusal(url: str, reply: HttpReply, wanted: str) -> str:
    """An answer that no retry will better, in words with a remedy."""
    advice = {
        401: "Is the token set (HOLDFAST_API_TOKEN)?",
        403: "Is the token set (HOLDFAST_API_TOKEN), and may it do this?",
        404: "Is the path right?",
        405: "Does this path take POST?",
        413: "Send fewer rows in a request.",
    }.get(reply.status, wanted)
    if reply.location:
        advice = f"It points to {reply.location[:200]!r}; if that is right, use that address."
    return f"{url} refused with status {reply.status}: {excerpt(reply.body)}. {advice}"
