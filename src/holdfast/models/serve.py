"""A model as a prediction API on this machine: the other end of `holdfast.models.http`, for tests and examples."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import ceil
from typing import Any, Literal

import torch
from torch import nn
from typing_extensions import override

from holdfast.core.arrays import listed

__all__ = ["RunningServer", "serve"]

_MAX_REQUEST = 256 << 20


@dataclass
class RunningServer:
    """A running server.

    Attributes:
        url: where it listens.
        rows: rows answered.
        refused: requests turned away because they came too fast.
    """

    url: str
    rows: int = 0
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)


@contextmanager
def serve(
    module: nn.Module,
    *,
    mode: Literal["labels", "scores"] = "scores",
    top_k: int | None = None,
    rate: float | None = None,
    port: int = 0,
) -> Generator[RunningServer, None, None]:
    """Serve a classifier on 127.0.0.1 for as long as the block lasts.

    Args:
        module: (n, \\*features) -> (n, K) logits; served in its present mode, one request at a time.
        mode: answer labels or probabilities.
        top_k: only the k best probabilities, with their labels.
        rate: most requests in a second; faster ones get 429 with Retry-After.
        port: where to listen; 0 takes a free one.

    Example:
        >>> from holdfast.models.http import HttpModel
        >>> with serve(nn.Flatten(), mode="labels") as api:
        ...     HttpModel(api.url, classes=2, access="labels", max_queries=10)(torch.eye(2)).argmax(1)
        tensor([0, 1])
    """
    state = RunningServer("")
    next_slot = [0.0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            if length > _MAX_REQUEST:
                self.close_connection = True
                return self.reply(413, {"error": "too many rows in one request"})
            body = self.rfile.read(length)
            with state.lock:
                wait = next_slot[0] - time.monotonic()
                if rate is not None and wait > 0:
                    state.refused += 1
                    return self.reply(429, {"error": "too many requests"}, wait)
                next_slot[0] = time.monotonic() + (1 / rate if rate else 0.0)
                try:
                    with torch.no_grad():
                        logits = module(torch.tensor(json.loads(body)["inputs"], dtype=torch.float32))
                except Exception as fault:  # the client's inputs may be anything
                    return self.reply(400, {"error": f"{type(fault).__name__}: {fault}"})
                state.rows += len(logits)
            return self.reply(200, _answer(logits.double().softmax(1), mode, top_k))

        def reply(self, status: int, content: dict[str, Any], wait: float | None = None) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if wait is not None:
                self.send_header("Retry-After", f"{ceil(1000 * wait) / 1000:.3f}")
            self.end_headers()
            self.wfile.write(body)

        @override
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(probabilities: torch.Tensor, mode: str, top_k: int | None) -> dict[str, Any]:
    if mode == "labels":
        return {"labels": listed(probabilities.argmax(1))}
    if top_k is None:
        return {"scores": listed(probabilities)}
    best = probabilities.topk(top_k, 1)
    pairs = zip(listed(best.indices), listed(best.values), strict=True)
    return {"top": [[list(pair) for pair in zip(labels, values, strict=True)] for labels, values in pairs]}
