"""Foreign JSON by template and path: servers of other shapes are asked and read, what is no template is refused in words."""

import json
from contextlib import contextmanager

import pytest
import torch

from holdfast.core.errors import ModelError, UsageError
from holdfast.models import HttpModel
from holdfast.models.template import AnswerPath, Pair, RequestTemplate
from holdfast.models.wire import Answers

ROWS = torch.tensor([[[0.5, 0.25]], [[1.0, 0.0]]])
SCORES = [[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]]


@contextmanager
def answering(answer):
    """A server that answers ``answer(request)``; every request is kept."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps(answer(seen[-1])).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


def scores_of(row):
    """What the servers below compute: three classes from the first value of a row."""
    first = row[0] if not isinstance(row[0], list) else row[0][0]
    return [first / 2, first / 4, 1 - first * 3 / 4]


def kserve(request):
    (tensor,) = request["inputs"]
    n, size = tensor["shape"][0], len(tensor["data"]) // tensor["shape"][0]
    assert tensor["datatype"] == "FP32"
    rows = [tensor["data"][k * size : (k + 1) * size] for k in range(n)]
    flat = [s for row in rows for s in scores_of(row)]
    return {"outputs": [{"name": "p", "shape": [n, 3], "datatype": "FP32", "data": flat}]}


def best(row):
    scores = scores_of(row)
    top = max(range(3), key=scores.__getitem__)
    return {"label": ["ant", "bee", "cat"][top], "score": scores[top]}


def ranked(row):
    return [{"label": name, "score": s} for name, s in zip(["ant", "bee", "cat"], scores_of(row), strict=True)]


SERVERS = {
    "TensorFlow Serving": (
        lambda r: {"predictions": [scores_of(x) for x in r["instances"]]}, '{"instances": $inputs}', "predictions", {},
    ),
    "named inputs of TensorFlow Serving": (
        lambda r: {"predictions": [{"probs": scores_of(x["image"])} for x in r["instances"]]},
        '{"signature_name": "serving_default", "instances": [{"image": $row}]}', "predictions[*].probs", {},
    ),
    "KServe": (
        kserve, '{"inputs": [{"name": "x", "shape": $shape, "datatype": "FP32", "data": $data}]}', "outputs[0].data", {},
    ),
    "a list of all labels": (
        lambda r: {"predictions": [ranked(x) for x in r["images"]]},
        '{"images": "$inputs"}', "predictions[*]{label: score}", {},
    ),
    "the best label": (
        lambda r: {"predictions": [best(x) for x in r["images"]]},
        '{"images": $inputs}', "predictions[*]{label: score}", {"top_k": 1},
    ),
    "scores by name": (
        lambda r: [dict(zip(["ant", "bee", "cat"], scores_of(x), strict=True)) for x in r], "$inputs", "$[*]{*}", {},
    ),
    "one row a request": (
        lambda r: {"result": {"scores": scores_of(r["image"])}},
        '{"image": $row, "n": $rows, "cost": "$$5"}', "result.scores", {},
    ),
    "a batch of one": (
        lambda r: {"result": [scores_of(r["image"][0])]}, '{"image": [[$row], 0]}', "result[0]", {},
    ),
}  # fmt: skip


class TestServers:
    @pytest.mark.parametrize("name", [n for n in SERVERS if n != "a batch of one"])
    def test_a_server_of_another_shape_gives_its_scores(self, name):
        answer, request, path, more = SERVERS[name]
        x = torch.tensor([[[0.5]], [[1.0]], [[0.25]]])
        with answering(answer) as (url, _):
            api = HttpModel(url, classes=["ant", "bee", "cat"], max_queries=99, request=request, answer=path, **more)
            out = api(x).exp()
            api.close()
        wanted = torch.tensor([scores_of([v]) for v in (0.5, 1.0, 0.25)])
        if "top_k" in more:
            wanted = wanted.where(wanted == wanted.amax(1, keepdim=True), 0.0)
        assert torch.allclose(out, wanted)

    def test_labels_come_from_a_path_too(self):
        with answering(lambda r: {"predictions": [best(x) for x in r["images"]]}) as (url, _):
            api = HttpModel(
                url, classes=["ant", "bee", "cat"], access="labels", max_queries=9, request='{"images": $inputs}',
                answer="predictions[*].label",
            )  # fmt: skip
            assert api(torch.tensor([[1.0], [0.1]])).argmax(1).tolist() == [0, 2]
            api.close()

    def test_a_request_for_one_row_carries_one_row(self):
        answer, request, path, _ = SERVERS["one row a request"]
        with answering(answer) as (url, seen):
            api = HttpModel(url, classes=3, max_queries=9, request=request, answer=path)
            api(torch.tensor([[0.5], [1.0]]))
            api.close()
        assert sorted(r["image"][0] for r in seen) == [0.5, 1.0]
        assert {r["n"] for r in seen} == {1}
        assert {r["cost"] for r in seen} == {"$5"}


class TestRequest:
    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("$inputs", [[[0.5, 0.25]], [[1.0, 0.0]]]),
            ('{"a": [$data, $shape, $rows]}', {"a": [[0.5, 0.25, 1.0, 0.0], [2, 1, 2], 2]}),
            ('{"a": "$inputs", "b": "$$inputs"}', {"a": [[[0.5, 0.25]], [[1.0, 0.0]]], "b": "$inputs"}),
            ('[{"x": $row}]', [{"x": [[0.5, 0.25]]}, {"x": [[1.0, 0.0]]}]),
            ('{"a": [[$row]], "price in $": 1}', {"a": [[[[0.5, 0.25]], [[1.0, 0.0]]]], "price in $": 1}),
        ],
    )
    def test_placeholders_stand_for_values(self, text, wanted):
        assert json.loads(RequestTemplate.parse(text).encode(ROWS)) == wanted

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("{", "no JSON"),
            ('{"a": NaN, "b": $inputs}', "no JSON"),
            ('{"a": 1}', "holds no rows"),
            ('{"a": $shape}', "holds no rows"),
            ('{"a": $input}', "Did you mean \\$inputs"),
            ('{"a": "$__class__", "b": $inputs}', "no placeholder"),
            ('{"a": $inputs, "a": 1}', "twice"),
            ('{"a": $inputs, "b": [$row]}', "not both"),
            ('{"a": [$row], "b": [$row]}', "several lists"),
            ("[" * 100_000, "characters"),
            ("[" * 30_000, "no JSON"),
        ],
    )
    def test_what_is_no_request_is_refused(self, text, words):
        with pytest.raises(UsageError, match=words):
            RequestTemplate.parse(text)


class TestAnswer:
    @pytest.mark.parametrize(
        ("path", "answer", "found"),
        [
            ("$", [1], [1]),
            ("a.b[1]", {"a": {"b": [1, 2]}}, 2),
            ("$.a[-1]", {"a": [1, 2]}, 2),
            ('$["a b"][*].c', {"a b": [{"c": 1}, {"c": 2}]}, [1, 2]),
            ("a[*][*].s", {"a": [[{"s": 1}], [{"s": 2}]]}, [[1], [2]]),
            ("a{l: s}", {"a": [{"l": "x", "s": 1}]}, [Pair("x", 1)]),
            ("a-b.c_d", {"a-b": {"c_d": 3}}, 3),
        ],
    )
    def test_a_path_finds_its_place(self, path, answer, found):
        assert AnswerPath.parse(path).find(answer) == found

    @pytest.mark.parametrize(
        "text", ["", "a..b", "a.", "a[", "a[x]", "a[*", "a{b}", "a{b:c}.d", "a b", '["\\q"]', "[1e9]"]
    )
    def test_what_is_no_path_is_refused(self, text):
        with pytest.raises(UsageError, match="is no path"):
            AnswerPath.parse(text)

    @pytest.mark.parametrize(
        ("path", "body", "words"),
        [
            ("a.b", b'{"a": {"c": 1}}', "no list 'b' at 'a' .it has: c"),
            ("a[*].b", b'{"a": [{"b": [0.5, 0.5]}, {}]}', r"no list 'b' at 'a\[1\]'"),
            ("a[2]", b'{"a": [1]}', "no element 2 at 'a', where 1 are"),
            ("a[*]{l: s}", b'{"a": [{"l": 1}]}', "no 's' at"),
            ("a[*]", b'{"a": 3}', "no list at 'a'"),
            ("a", b'{"a": [[0.5, 0.5]]}', "1 rows for 2"),
            ("a", b'{"a": [[0.5, 0.5], [0.5]]}', "rows of numbers|shape"),
            ("a", b'{"a": [[0.5, "x"], [0.5, 0.5]]}', "rows of numbers"),
            ("a", b'{"a": [[0.5, null], [0.5, 0.5]]}', "rows of numbers"),
            ("a", b'{"a": [[true, false], [true, false]]}', "rows of numbers"),
            ("a", b'{"a": [{"0": 0.5}, {"1": 0.5}]}', "--top-k 1"),
            ("a", b'{"a": [{"0": 0.5, "00": 0.5}, {"1": 1}]}', "twice"),
            ("a", b'{"a": [{"x": 0.5, "y": 0.5}, {"x": 1}]}', "--class-names"),
            ("a", b'{"a": [[1e999, 0.5], [0.5, 0.5]]}', "NaN or infinite"),
        ],
    )
    def test_answers_that_are_something_else_are_named(self, path, body, words):
        with pytest.raises(ModelError, match=words):
            Answers(classes=2, path=AnswerPath.parse(path)).decode(body, 2)

    def test_one_score_of_two_classes_is_both(self):
        path = AnswerPath.parse("p")
        assert torch.allclose(
            Answers(classes=2, path=path).decode(b'{"p": [0.25, [1]]}', 2).exp(), torch.tensor([[0.75, 0.25], [0, 1]])
        )
        logits = Answers(classes=2, scores="logits", path=path).decode(b'{"p": [[2.0]]}', 1)
        assert torch.allclose(logits, torch.tensor([[0.0, 2.0]]).log_softmax(1))
