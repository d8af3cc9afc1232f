"""Requests to a prediction API: connections that stay open, time-outs, headers, and no redirects."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from holdfast.core.errors import ModelError, UsageError

__all__ = ["Line", "Reply", "refusal", "request_headers"]

_MAX_ANSWER = 64 << 20


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        status: of HTTP; 0 if there was no answer.
        body: its content.
        wait: seconds that the server asks to wait, if it does.
        fault: why there was no answer.
        location: where a redirect points.
    """

    status: int
    body: bytes
    wait: float | None = None
    fault: str = ""
    location: str = ""


class Line:
    """Connections that stay open, one for each thread. Redirects are not followed: they could carry a token away."""

    def __init__(self, url: str, timeout: float, headers: Mapping[str, str]) -> None:
        at = urlsplit(url)
        self._kind = HTTPSConnection if at.scheme == "https" else HTTPConnection
        self._host, self._port, self._timeout, self._headers = at.hostname or "", at.port, timeout, headers
        self._path = (at.path or "/") + (f"?{at.query}" if at.query else "")
        self._local = threading.local()

    def post(self, body: bytes) -> Reply:
        """Send one request and read its answer; a lost connection is a reply too.

        Raises:
            ModelError: an answer too long to be one.
        """
        line: HTTPConnection | None = getattr(self._local, "line", None)
        if line is None:
            line = self._local.line = self._kind(self._host, self._port, timeout=self._timeout)
        try:
            line.request("POST", self._path, body, dict(self._headers))
            answer = line.getresponse()
            content = answer.read(_MAX_ANSWER + 1)
        except (OSError, HTTPException) as fault:
            line.close()
            return Reply(0, b"", fault=f"{type(fault).__name__}: {fault}")
        if len(content) > _MAX_ANSWER:
            line.close()
            raise ModelError(f"{self._host} answered with more than {_MAX_ANSWER >> 20} MiB; is it the prediction API?")
        wait = _seconds(answer.headers.get("Retry-After"))
        return Reply(answer.status, content, wait, location=answer.headers.get("Location", ""))


def _seconds(text: str | None) -> float | None:
    """A Retry-After header: seconds, or a date."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError):
        return None


def request_headers(url: str, headers: Mapping[str, str] | None, token_env: str | None) -> dict[str, str]:
    """The headers of every request, the token from the environment among them.

    Raises:
        UsageError: no usable address, no token in the variable, or a token over an unencrypted line.
    """
    at = urlsplit(url)
    if at.scheme not in ("http", "https") or not at.hostname:
        raise UsageError(f"'{url}' is no address of an API; wanted https://host/path")
    given = {"Content-Type": "application/json", "Accept": "application/json", **(headers or {})}
    if token_env is not None:
        token = os.environ.get(token_env)
        if not token:
            raise UsageError(f"the environment variable {token_env}, which should hold the API's token, is not set")
        if at.scheme == "http" and at.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise UsageError(f"{url} is not encrypted and would give the token away; use https")
        given["Authorization"] = f"Bearer {token}"
    return given


def refusal(url: str, reply: Reply) -> str:
    """An answer that no retry will better, in words with a remedy."""
    text = reply.body[:200].decode("utf-8", "replace")
    advice = {
        401: "Is the token set (token_env)?",
        403: "Is the token set (token_env)?",
        404: "Is the path right?",
        405: "Does this path take POST?",
        413: "Send fewer rows in a request.",
    }.get(reply.status, "Does it take {'inputs': [...]}?")
    if reply.location:
        advice = f"It points to {reply.location[:200]!r}; if that is right, use that address."
    return f"{url} refused with status {reply.status}: {text!r}. {advice}"
