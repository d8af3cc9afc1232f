"""A prediction API on the loopback: answers equal the model's, every row is counted, faults are borne or named."""

import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import nn

from holdfast.core.errors import BudgetError, ModelError, UsageError
from holdfast.models import HttpModel, serve
from holdfast.models.paid import PaidAnswers
from holdfast.models.wire import Answers
from holdfast.models.zoo import digits_mlp

X = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def module():
    torch.manual_seed(0)
    return digits_mlp().eval()


@contextmanager
def asked(url, **more):
    model = HttpModel(url, **{"classes": 10, "max_queries": 1000, "rows_per_request": 8, "backoff": 0.0, **more})
    try:
        yield model
    finally:
        model.close()


@contextmanager
def scripted(*replies):
    """A server that gives these replies, (status, headers, body), in turn and then the last one for ever."""
    seen, lock = [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                status, headers, content = replies[min(len(seen), len(replies) - 1)]
                seen.append((dict(self.headers), json.loads(body)["inputs"]))
            if status == 0:
                self.close_connection = True
                return self.connection.close()
            content = content(len(seen[-1][1])) if callable(content) else content
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for key, value in {"Content-Length": str(len(raw)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            return self.wfile.write(raw)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/predict", seen
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def dripping(answer):
    """A server that reads a request and then lets ``answer(connection)`` write."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run():
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.recv(1 << 16)
                    answer(connection)

    threading.Thread(target=run, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        listener.close()


def labels(n):
    return {"labels": [3] * n}


OK = (200, {}, labels)


class TestAnswers:
    def test_scores_equal_the_modules(self, module):
        with serve(module) as api, asked(api.url) as model:
            assert torch.allclose(model(X), module(X).log_softmax(1), atol=1e-6)
            assert model.usage.sent == api.rows == 50
            assert model.usage.requests == 7
            assert model.usage.retried == 0
            assert model.findings() == []
            assert not model.differentiable

    def test_labels(self, module):
        with serve(module, mode="labels") as api, asked(api.url, access="labels") as model:
            out = model(X)
            assert torch.equal(out.argmax(1), module(X).argmax(1))
            assert torch.equal(out.exp().sum(1), torch.ones(50))

    def test_top_k(self, module):
        with serve(module, top_k=3) as api, asked(api.url, top_k=3) as model:
            out, whole = model(X), module(X).log_softmax(1)
            best = whole.topk(3, 1)
            assert torch.equal(out.isfinite().sum(1), torch.full((50,), 3))
            assert torch.allclose(out.gather(1, best.indices), best.values, atol=1e-6)

    def test_inputs_arrive_to_the_bit(self):
        with serve(nn.Flatten()) as api, asked(api.url, classes=64, scores="probabilities") as model:
            assert torch.allclose(model(X), X.flatten(1).log_softmax(1), atol=1e-7)
        with scripted(OK) as (url, seen), asked(url, access="labels", rows_per_request=50) as model:
            model(X)
            assert torch.equal(torch.tensor(seen[0][1]), X)

    def test_class_names(self):
        answers = Answers(classes=3, names=("cat", "dog", "<b>"), top_k=2)
        out = answers.decode(b'{"top": [[["dog", 0.6], ["<b>", 0.3]]]}', 1).exp()
        assert torch.allclose(out, torch.tensor([[0.0, 0.6, 0.3]]))

    def test_logits(self):
        out = Answers(classes=2, scores="logits").decode(b'{"scores": [[1.0, 3.0]]}', 1)
        assert torch.allclose(out, torch.tensor([[1.0, 3.0]]).log_softmax(1))

    @pytest.mark.parametrize(
        ("answers", "body", "words"),
        [
            (Answers(classes=2), b"<html>", "no JSON"),
            (Answers(classes=2), b"[" * 100_000, "no JSON"),
            (Answers(classes=2), b"[1]", "no list 'scores'"),
            (Answers(classes=2), b'{"labels": [1]}', "it has: labels"),
            (Answers(classes=2), b'{"scores": []}', "0 rows for 1"),
            (Answers(classes=2), b'{"scores": [["a", 1]]}', "rows of numbers"),
            (Answers(classes=2), b'{"scores": [[0.2, 0.3, 0.5]]}', "2 classes were declared"),
            (Answers(classes=2), b'{"scores": [[3.0, -1.0]]}', "declare them as logits"),
            (Answers(classes=2), b'{"scores": [[NaN, 1.0]]}', "NaN"),
            (Answers(classes=2, access="labels"), b'{"labels": [2]}', "the label 2"),
            (Answers(classes=2, access="labels"), b'{"labels": [true]}', "the label True"),
            (Answers(classes=2, names=("a", "b"), access="labels"), b'{"labels": ["c"]}', "a, b"),
        ],
    )
    def test_unreadable_answers_are_named(self, answers, body, words):
        with pytest.raises(ModelError, match=words):
            answers.decode(body, 1)


class TestCounting:
    def test_no_maximum_no_question(self):
        with scripted(OK) as (url, seen), pytest.raises(BudgetError, match="--max-queries"):
            HttpModel(url, classes=10, max_queries=None)
        assert seen == []

    def test_rows_beyond_the_maximum_are_not_sent(self):
        with scripted(OK) as (url, seen), asked(url, access="labels", max_queries=60) as model:
            model(X)
            with pytest.raises(BudgetError, match="50 rows wanted and 10 of 60"):
                model(X)
            assert sum(len(rows) for _, rows in seen) == model.usage.sent == 50

    def test_retries_count_against_the_maximum(self):
        with scripted((500, {}, b"")) as (url, seen), asked(url, access="labels", max_queries=20, retries=9) as model:
            with pytest.raises(BudgetError, match="retries included"):
                model(X[:8])
            assert len(seen) == 2
            assert model.usage.sent == 16

    @pytest.mark.parametrize("rows", [8, 9, 20])
    def test_a_budget_that_retries_use_up_names_what_they_met(self, rows):
        script = (500, {}, b"CUDA out of memory")
        with scripted(script) as (url, _), asked(url, access="labels", max_queries=20, retries=9) as model:
            with pytest.raises(
                BudgetError, match=rf"{url} gave no answer but status 500 and 'CUDA out of memory'.*count"
            ):
                model(X[:rows])
            with pytest.raises(BudgetError, match="status 500 and 'CUDA out of memory'"):
                model(X[:20])

    def test_what_never_reached_the_server_is_not_counted(self, tmp_path):
        paid = PaidAnswers(tmp_path / "answers.sqlite", "run", lambda: True)
        with asked("http://127.0.0.1:9/", access="labels", max_queries=8, retries=3, paid=paid) as model:
            model.begin("clean")
            with pytest.raises(ModelError, match=r"failed 4 times.*Nobody listens there"):
                model(X[:8])
            assert (model.usage.sent, model.usage.requests, model.usage.retried) == (0, 0, 0)
            assert paid.begin("again") == 0

    @pytest.mark.parametrize(
        ("reply", "words"),
        [((500, {}, b"boom"), "status 500 and 'boom' (its rows count"), (None, "refused (no row was sent)")],
    )
    def test_why_there_is_no_answer_is_told_before_the_first_retry(self, caplog, reply, words):
        told_before = []

        def pause(_):
            told_before.append(caplog.text.count("gave no answer"))

        with scripted(reply or OK) as (url, _):
            if reply is None:
                url = "http://127.0.0.1:9/"
            with asked(url, access="labels", retries=2, sleep=pause) as model, pytest.raises(ModelError):
                model(X[:8])
        assert words in caplog.text
        assert url in caplog.text
        assert told_before == [1, 1], "once, not with each attempt"

    def test_an_answer_after_trouble_clears_it(self):
        with scripted((500, {}, b"boom"), OK) as (url, _), asked(url, access="labels", max_queries=20) as model:
            model(X[:8])
            with pytest.raises(BudgetError) as told:
                model(X[:8])
        assert "boom" not in str(told.value)


class TestFaults:
    @pytest.mark.parametrize("status", [429, 500, 502, 503, 0])
    def test_passing_faults_are_retried_and_counted(self, status):
        with scripted((status, {}, b""), (status, {}, b""), OK) as (url, seen), asked(url, access="labels") as model:
            assert model(X[:8]).argmax(1).tolist() == [3] * 8
            assert (model.usage.sent, model.usage.retried, len(seen)) == (24, 16, 3)
            assert [f.code for f in model.findings()] == ["http.retries"]

    def test_back_off_doubles_and_obeys_retry_after(self):
        waits = []
        script = ((500, {}, b""), (500, {}, b""), (429, {"Retry-After": "7"}, b""), OK)
        with scripted(*script) as (url, _), asked(url, access="labels", backoff=0.5, sleep=waits.append) as model:
            model(X[:8])
        assert waits == [0.5, 1.0, 7.0]

    def test_retry_after_as_a_date(self):
        waits = []
        script = ((503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b""), OK)
        with scripted(*script) as (url, _), asked(url, access="labels", sleep=waits.append) as model:
            model(X[:8])
        assert waits == [0.0]

    @pytest.mark.parametrize(
        "text", ["nan", "-5", "inf", "-inf", "1_0", "soon", "", "1e999", "0x10", "٣", "Wed, 99 Oct 2015"]
    )
    def test_a_retry_after_that_is_none_leaves_the_own_back_off(self, text):
        waits = []
        script = ((429, {"Retry-After": text.encode().decode("latin-1")}, b""), OK)
        with scripted(*script) as (url, _), asked(url, access="labels", backoff=0.25, sleep=waits.append) as model:
            model(X[:8])
        assert waits == [0.25]

    @pytest.mark.parametrize("where", ["body", "headers", "chunks"])
    def test_the_time_out_is_for_the_whole_answer(self, where):
        def drip(connection):
            body = json.dumps(labels(1)).encode()
            if where == "headers":
                text = b"HTTP/1.1 200 OK\r\n" + b"X-Pad: " + b"a" * 200
            elif where == "body":
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(body) + 200))
                text = b" " * 200 + body
            else:
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                text = b"1\r\n \r\n" * 40
            for byte in text:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)

        with dripping(drip) as url, asked(url, access="labels", retries=0, timeout=0.3) as model:
            start = time.monotonic()
            with pytest.raises(ModelError, match=r"no whole answer within 0\.3 s"):
                model(X[:1])
            assert time.monotonic() - start < 2

    def test_a_server_that_refuses_before_it_has_read_is_heard(self):
        script = (500, {}, b"out of memory")
        with (
            scripted(script) as (url, _),
            asked(url, access="labels", retries=1) as model,
            pytest.raises(ModelError, match=r"'out of memory'.*It is up and fails.*\$inputs"),
        ):
            model(X[:1])

    def test_a_long_wait_ends_the_run(self):
        script = (429, {"Retry-After": "86400"}, b"")
        with (
            scripted(script) as (url, _),
            asked(url, access="labels") as model,
            pytest.raises(ModelError, match="86400 s"),
        ):
            model(X[:8])

    def test_a_rate_limit_is_borne(self, module):
        with serve(module, rate=200) as api, asked(api.url, rows_per_request=2, concurrency=16) as model:
            assert torch.equal(model(X).argmax(1), module(X).argmax(1))
            assert api.refused > 0
            assert model.usage.sent == api.rows + model.usage.retried == 50 + model.usage.retried

    def test_giving_up_names_the_last_fault(self):
        with scripted((503, {}, b"")) as (url, seen), asked(url, access="labels", retries=2) as model:
            with pytest.raises(ModelError, match="failed 3 times, last with status 503"):
                model(X[:8])
            assert len(seen) == 3

    def test_nobody_there(self):
        url = "http://127.0.0.1:9/"
        with asked(url, access="labels", retries=1) as model, pytest.raises(ModelError, match="Nobody listens there"):
            model(X[:1])

    def test_time_out(self):
        hold = threading.Event()

        def slow(n):
            hold.wait(5)
            return labels(n)

        with scripted((200, {}, slow)) as (url, _), asked(url, access="labels", retries=0, timeout=0.1) as model:
            with pytest.raises(ModelError, match="TimeoutError"):
                model(X[:1])
            hold.set()

    @pytest.mark.parametrize(
        ("status", "headers", "words"),
        [
            (401, {}, "token"),
            (404, {}, "path"),
            (400, {}, "inputs"),
            (413, {}, "fewer rows"),
            (302, {"Location": "http://elsewhere/"}, "points to 'http://elsewhere/'"),
        ],
    )
    def test_refusals_are_not_retried(self, status, headers, words):
        with scripted((status, headers, b"no")) as (url, seen), asked(url, access="labels") as model:
            with pytest.raises(ModelError, match=words):
                model(X[:1])
            assert len(seen) == 1

    def test_changed_answers_show_in_the_canary(self):
        script = (OK, OK, OK, (200, {}, lambda n: {"labels": [4] * n}))
        with scripted(*script) as (url, _), asked(url, access="labels", canary_every=4, rows_per_request=4) as model:
            model(X[:4])
            assert model.usage.canaries == 0
            model(X[4:8])
            assert (model.usage.canaries, model.usage.drift) == (1, 0.0)
            model(X[8:12])
            assert (model.usage.canaries, model.usage.drift) == (2, 1.0)
            assert model.usage.sent == 14
            assert [f.code for f in model.findings()] == ["http.drift"]

    def test_canary_needs_a_row_and_a_budget(self):
        with scripted(OK) as (url, _), asked(url, access="labels", max_queries=4) as model:
            assert model.check_canary() is None
            model(X[:4])
            assert model.check_canary() is None

    def test_bad_rows_reach_the_user_as_words(self, module):
        with serve(module) as api, asked(api.url) as model, pytest.raises(ModelError, match="refused with status 400"):
            model(torch.rand(2, 3))


class TestSetUp:
    def test_token_from_the_environment(self, monkeypatch):
        monkeypatch.setenv("API_TOKEN", "secret")
        with scripted(OK) as (url, seen), asked(url, access="labels", token_env="API_TOKEN") as model:
            model(X[:1])
            assert seen[0][0]["Authorization"] == "Bearer secret"

    @pytest.mark.parametrize(
        ("url", "more", "words"),
        [
            ("ftp://a/b", {}, "no address"),
            ("http://api.example/", {"token_env": "API_TOKEN"}, "not encrypted"),
            ("https://api.example/", {"token_env": "NOT_SET_ANYWHERE"}, "is not set"),
            ("https://me:secret@api.example/", {}, "name or password"),
            ("https://api.example:99999999/", {}, "no address"),
            ("https://api.exa mple/", {}, "no address"),
            ("https://api.example/", {"request": '{"a": 1}'}, "holds no rows"),
            ("https://api.example/", {"answer": "a..b"}, "no path"),
            ("https://api.example/", {"concurrency": 0}, "start at 1"),
            ("https://api.example/", {"access": "labels", "top_k": 3}, "top_k is for scores"),
        ],
    )
    def test_errors_name_the_fix(self, monkeypatch, url, more, words):
        monkeypatch.setenv("API_TOKEN", "secret")
        with pytest.raises(UsageError, match=words):
            HttpModel(url, **{"classes": 2, "max_queries": 1, **more})

    def test_subject_is_the_address(self):
        with asked("https://api.example/v1") as model:
            assert model.subject.kind == "model"
            assert "https://api.example/v1" in model.subject.detail


class TestPaid:
    """Answers that were paid for are not asked again by the unit of work that paid for them."""

    def paid(self, folder, run="a"):
        return PaidAnswers(folder / "answers.sqlite", run, folder.is_dir)

    def test_a_unit_that_is_done_again_sends_only_what_is_new(self, tmp_path):
        with scripted(OK) as (url, seen):
            for k, rows in enumerate((8, 20)):
                with asked(url, access="labels", paid=self.paid(tmp_path)) as model:
                    model.begin("attack 0")
                    assert model(X[:rows]).argmax(1).tolist() == [3] * rows
                    assert model.usage.sent == (8, 20)[k]
            assert sum(len(rows) for _, rows in seen) == 20

    def test_the_maximum_holds_over_all_starts(self, tmp_path):
        with scripted(OK) as (url, _):
            for most, fits in ((10, True), (10, False), (30, True)):
                with asked(url, access="labels", paid=self.paid(tmp_path), max_queries=most) as model:
                    model.begin(f"unit {most} {fits}")
                    if fits:
                        model(X[:10])
                    else:
                        with pytest.raises(BudgetError, match="larger --max-queries goes on"):
                            model(X[:10])

    def test_a_question_asked_twice_keeps_two_answers(self, tmp_path):
        script = [(200, {}, {"labels": [k]}) for k in range(5)]
        with scripted(*script) as (url, seen):
            for _ in range(2):
                with asked(url, access="labels", paid=self.paid(tmp_path)) as model:
                    model.begin("unit")
                    assert [int(model(X[:1]).argmax(1)) for _ in range(3)] == [0, 1, 2]
            assert len(seen) == 3

    def test_another_unit_and_another_run_ask_anew(self, tmp_path):
        with scripted(OK) as (url, seen):
            for run, unit in (("a", "1"), ("a", "2"), ("b", "1")):
                with asked(url, access="labels", paid=self.paid(tmp_path, run)) as model:
                    model.begin(unit)
                    model(X[:1])
            assert len(seen) == 3

    def test_nothing_is_written_before_there_is_a_run_and_nothing_is_lost(self, tmp_path):
        folder = tmp_path / "run"
        with scripted(OK) as (url, seen):
            with asked(url, access="labels", paid=self.paid(folder)) as model:
                model.begin("preflight")
                model(X[:2])
                assert not folder.exists()
                folder.mkdir()
                model.begin("clean")
                model(X[:3])
            with asked(url, access="labels", paid=self.paid(folder)) as model:
                model.begin("clean")
                model(X[:3])
                assert model.usage.sent == 5
            assert sum(len(rows) for _, rows in seen) == 5
