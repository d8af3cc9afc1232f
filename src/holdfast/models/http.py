"""A prediction API over HTTP, asked like a model: JSON in, labels or scores out, every row counted.

Request: ``{"inputs": [...]}``, nested lists of (rows, \\*features). Answer, by what the API gives away:
``{"labels": [3, ...]}``, ``{"scores": [[...], ...]}`` or ``{"top": [[[label, score], ...], ...]}``.
A label is a number or a class name. Other JSON is declared by a template and a path, see `holdfast.models.template`.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from holdfast.core.errors import BudgetError, ModelError, UsageError
from holdfast.core.findings import Finding, Severity
from holdfast.core.verdict import Subject
from holdfast.models.paid import PaidAnswers
from holdfast.models.template import AnswerPath, RequestTemplate
from holdfast.models.transport import HttpReply, Line, refusal, request_headers
from holdfast.models.wire import REQUEST, Answers

__all__ = ["HttpModel", "Usage"]

_log = logging.getLogger(__name__)

_MAX_WAIT = 120.0
_DRIFT = 1e-3


@dataclass
class Usage:
    """What an API was asked.

    Attributes:
        sent: rows that went out, each attempt and the canary's included; what a paid API may bill. Those of a request for
            which no connection was made are not among them.
        retried: the rows among them that were sent again after a failure.
        requests: HTTP requests.
        canaries: times that the canary row was asked again.
        drift: largest change of its answer, as a probability; 1 for a changed label.
    """

    sent: int = 0
    retried: int = 0
    requests: int = 0
    canaries: int = 0
    drift: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)


class HttpModel:
    """A model behind an API. Calling it gives log-probabilities, so that the oracles can use it as they use a module.

    The first row ever asked becomes the canary: it is asked again now and then, and a changed answer shows in
    ``usage.drift`` and in ``findings()``: verdicts on a model that changes under the audit are worth little.
    """

    differentiable = False

    def __init__(
        self,
        url: str,
        *,
        classes: int | Sequence[str],
        max_queries: int | None,
        access: Literal["labels", "scores"] = "scores",
        scores: Literal["probabilities", "logits"] = "probabilities",
        top_k: int | None = None,
        request: str | None = None,
        answer: str | None = None,
        before: Callable[[Tensor], Tensor] | None = None,
        paid: PaidAnswers | None = None,
        rows_per_request: int = 32,
        concurrency: int = 4,
        timeout: float = 30.0,
        retries: int = 5,
        backoff: float = 0.5,
        canary_every: int = 1000,
        headers: Mapping[str, str] | None = None,
        token_env: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Args:
        url: where to POST; https, or http to this machine (elsewhere only without a token).
        classes: how many classes, or their names in order.
        max_queries: most rows that may ever be sent, retries included: the consent to ask a service that may bill.
        access: what the API gives: ``labels`` or ``scores``.
        scores: what its scores are.
        top_k: if set, only the k best scores come back; the others count as -inf.
        request: the JSON of a request with placeholders, where the API wants other than ``{"inputs": $inputs}``.
        answer: the path of the rows in its answer, where that is another.
        before: what is done to rows (n, \\*features) before they are sent.
        paid: answers that were paid for before, and where new ones are kept.
        rows_per_request: rows in one request.
        concurrency: requests at a time.
        timeout: seconds to wait for one whole answer.
        retries: times that a request is sent again after 429, 5xx or a lost connection.
        backoff: seconds before the first retry, doubled each time; ``Retry-After`` overrides it.
        canary_every: rows between two looks at the canary.
        headers: to send with each request.
        token_env: name of the environment variable that holds a bearer token.
        sleep: how to wait.

        Raises:
            BudgetError: no ``max_queries``.
            UsageError: a URL or a number that cannot be used, a token that is not set.
        """
        if max_queries is None or max_queries < 1:
            raise BudgetError(f"asking {url} may cost money; say how many rows at most with --max-queries")
        if min(rows_per_request, concurrency, canary_every) < 1 or retries < 0 or timeout <= 0 or backoff < 0:
            raise UsageError(
                "rows per request, concurrency and canary interval start at 1, retries at 0, time-outs above 0"
            )
        if top_k is not None and (access == "labels" or top_k < 1):
            raise UsageError("top_k is for scores and starts at 1")
        names = None if isinstance(classes, int) else tuple(classes)
        self.classes = classes if isinstance(classes, int) else len(classes)
        path = None if answer is None else AnswerPath.parse(answer)
        self.answers = Answers(classes=self.classes, names=names, access=access, scores=scores, top_k=top_k, path=path)
        self.template = REQUEST if request is None else RequestTemplate.parse(request)
        if self.template.one_row:
            rows_per_request = 1
        self.url, self.max_queries = url, max_queries
        self.usage, self._paid, self._in_unit = Usage(), paid, False
        self._before = before
        self._rows, self._retries, self._backoff, self._sleep = rows_per_request, retries, backoff, sleep
        self._trouble, self._told = "", set[str]()
        self._canary_every, self._canary, self._next_canary = canary_every, None, canary_every
        self._line = Line(url, timeout, request_headers(url, headers, token_env))
        self._turn = threading.RLock()
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="holdfast-http")

    @property
    def changes_rows(self) -> bool:
        """Something is done to rows before they are sent."""
        return self._before is not None

    @property
    def subject(self) -> Subject:
        """The API by its address; what lies behind it cannot be hashed."""
        return Subject("model", hashlib.sha256(self.url.encode()).hexdigest(), f"API at {self.url}, weights unknown")

    def __call__(self, x: Tensor) -> Tensor:
        """(n, \\*features) -> (n, K) log-probabilities on x's device; a label alone is 0 there and -inf elsewhere.

        Raises:
            BudgetError: the rows would exceed ``max_queries``; none of them is sent.
            ModelError: the API fails or answers what cannot be read.
        """
        inputs = x.detach().to("cpu", torch.float32)
        inputs = (inputs if self._before is None else self._before(inputs)).contiguous()
        kept = self._paid if self._in_unit else None
        keys = [] if kept is None else kept.keys(inputs)
        known = {} if kept is None else kept.recall(keys)
        todo = torch.tensor([i for i in range(len(inputs)) if not keys or keys[i] not in known], dtype=torch.int64)
        with self.usage.lock:
            left = self.max_queries - self.usage.sent
        if len(todo) > left:
            raise BudgetError(
                f"{self._met('with ')}{len(todo)} rows wanted and {max(left, 0)} of {self.max_queries} queries left at "
                f"{self.url}; a larger --max-queries goes on from here"
            )
        parts = list(torch.split(todo, self._rows)) if len(todo) else []
        futures = [
            self._pool.submit(self._ask, inputs[part], [keys[i] for i in part] if keys else []) for part in parts
        ]
        try:
            answers = [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        answer = torch.empty(len(inputs), self.classes)
        for i, key in enumerate(keys):
            if key in known:
                answer[i] = known[key]
        if answers:
            answer[todo] = torch.cat(answers)
        if self._canary is None and len(inputs):
            self._canary = (inputs[:1].clone(), answer[:1].clone())
        elif self.usage.sent >= self._next_canary:
            self._next_canary = self.usage.sent + self._canary_every
            self.check_canary()
        return answer.to(x.device)

    def begin(self, unit: str) -> None:
        """Starts a unit of work of a run: what it was paid for before is not asked, and counts against the maximum."""
        if self._paid is not None:
            sent = self._paid.begin(unit)
            with self.usage.lock:
                self.usage.sent, self._in_unit = max(self.usage.sent, sent), True

    def check_canary(self) -> float | None:
        """Ask the first row again: how far its probabilities moved, or None if there is no row or no budget for it."""
        if self._canary is None or self.usage.sent >= self.max_queries:
            return None
        row, before = self._canary
        now = self._ask(row)
        drift = float((now.exp() - before.exp()).abs().max())
        self.usage.canaries += 1
        self.usage.drift = max(self.usage.drift, drift)
        return drift

    def findings(self) -> list[Finding]:
        """What the traffic showed: ``http.drift`` and ``http.retries``; empty if nothing."""
        use = self.usage
        found: list[Finding] = []
        if use.drift > _DRIFT:
            found.append(
                Finding(
                    code="http.drift",
                    severity=Severity.WARNING,
                    title="the API's answers changed",
                    message=f"The same input was asked {use.canaries + 1} times and its answer moved by up to {use.drift:.3g}.",
                    remedy="The model was replaced or is randomised: repeat the audit, or declare it randomised.",
                    data={"drift": use.drift, "canaries": use.canaries},
                )
            )
        if use.retried:
            found.append(
                Finding(
                    code="http.retries",
                    severity=Severity.NOTE,
                    title="requests were repeated",
                    message=f"{use.retried} of {use.sent} rows were sent again after a failure and count as queries.",
                    remedy="Lower the concurrency if the API limits its rate.",
                    data={"retried": use.retried, "sent": use.sent},
                )
            )
        return found

    def close(self) -> None:
        """Stop the threads; the model cannot be asked any more."""
        self._pool.shutdown(cancel_futures=True)
        if self._paid is not None:
            self._paid.close()

    def _ask(self, rows: Tensor, keys: Sequence[bytes] = ()) -> Tensor:
        with self._turn:
            pass  # nobody overtakes a request that has its turn
        with ExitStack() as turn:
            return self._answer(rows, keys, turn)

    def _answer(self, rows: Tensor, keys: Sequence[bytes], turn: ExitStack) -> Tensor:
        """The answer, after retries; a request that was refused for its rate has its turn alone until it is served.

        Those that wait for one rate limit wake together: the unlucky would be refused until their retries are used up.
        """
        body = self.template.encode(rows)
        reply = HttpReply(status=0, body=b"")
        for attempt in range(self._retries + 1):
            self._charge(len(rows), again=attempt > 0)
            reply = self._line.post(body)
            if not reply.sent:  # nothing went out, so nobody can have counted it
                self._charge(-len(rows), again=attempt > 0)
            if reply.status == 200:
                answer = self.answers.decode(reply.body, len(rows), one_row=self.template.one_row)
                if self._paid is not None and keys:
                    self._paid.keep(keys, answer)
                self._trouble = ""
                return answer
            if 0 < reply.status < 500 and reply.status != 429:
                raise ModelError(refusal(self.url, reply, self._wanted))
            self._trouble = reply.trouble
            if attempt < self._retries:
                pause = self._pause(attempt, reply.wait)
                self._tell(reply, pause, self._retries - attempt)
                self._sleep(pause)
                if reply.status == 429:
                    turn.enter_context(self._turn)
        raise ModelError(
            f"{self.url} failed {self._retries + 1} times, last with {reply.trouble}. {self._advice(reply)}"
        )

    def _advice(self, reply: HttpReply) -> str:
        if reply.status >= 500:
            return f"It is up and fails on what it is asked; {self._wanted}"
        if reply.fault.startswith("ConnectionRefused"):
            return "Nobody listens there: is it up, and are host and port right?"
        return "A longer time-out, more retries or less concurrency may help."

    def _tell(self, reply: HttpReply, pause: float, left: int) -> None:
        """Says at once why there is no answer, each kind of trouble once: the retries may take a while."""
        kind = reply.fault.partition(":")[0] or str(reply.status)
        with self.usage.lock:
            new = kind not in self._told
            self._told.add(kind)
        if new:
            counts = "its rows count, since the server may have counted them" if reply.sent else "no row was sent"
            _log.warning(
                "%s gave no answer but %s (%s); asking again in %.3g s, %d more times at most",
                self.url,
                reply.trouble,
                counts,
                pause,
                left,
            )

    def _met(self, word: str) -> str:
        """The trouble that the API is in, before what is said of the budget; nothing where it answers."""
        return f"{self.url} gave no answer but {self._trouble}, {word}" if self._trouble else ""

    @property
    def _wanted(self) -> str:
        """The JSON that is sent and wanted, for messages."""
        return (
            f"it is sent {self.template.text} and asked for {self.answers.wanted}; "
            "if it speaks other JSON, declare that with --request and --answer."
        )

    def _charge(self, rows: int, *, again: bool) -> None:
        """Counts rows before they are sent; a negative number takes back what then was not."""
        with self.usage.lock:
            if self.usage.sent + rows > self.max_queries:
                raise BudgetError(
                    f"{self._met('and ')}all {self.max_queries} queries at {self.url} are used up, retries included: of "
                    f"{self.usage.sent} rows that were sent, and that the server may have counted, {self.usage.retried} were "
                    "sent again after a failure; a larger --max-queries goes on from here"
                )
            self.usage.sent += rows
            self.usage.requests += 1 if rows > 0 else -1
            self.usage.retried += rows * again
        if self._paid is not None and self._in_unit:
            self._paid.charge(rows)

    def _pause(self, attempt: int, wait: float | None) -> float:
        if wait is not None and wait > _MAX_WAIT:
            raise ModelError(f"{self.url} asks to wait {wait:.0f} s before the next request; come back then and resume")
        return min(self._backoff * 2**attempt, _MAX_WAIT) if wait is None else wait
