"""The page: safe whatever the names, offline, and alive in a real browser."""

import html
import json
import re
import shutil
import subprocess
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pytest

from holdfast.audits.document import Document
from holdfast.report.audits.page import render
from holdfast.report.audits.words import stage_name
from holdfast.report.template import embed

PAYLOADS = [
    "<script>document.title='PWNED'</script>",
    "</script><script>document.title='PWNED'</script>",
    '"><img src=x onerror="document.title=\'PWNED\'">',
    "<!--<script>",
    "'};document.title='PWNED';//",
    "{{ 7 * 7 }}${7*7}",
    "\u2028</title><svg onload=document.title='PWNED'>",
]
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
browser = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: the page was not tried in a browser")


class _Reader(HTMLParser):
    """Elements with attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


def _poisoned(make, document, payload):
    """The audit with the payload wherever a name or a sentence may stand."""
    row = document.samples[2]
    row = row.model_copy(update={"witness": row.witness.model_copy(update={"attack": payload, "sha256": payload})})
    finding = dict.fromkeys(("code", "title", "message", "remedy"), payload)
    method = dict.fromkeys(("name", "title", "paper", "section", "summary"), payload)
    parameter = dict.fromkeys(("name", "value", "meaning", "source"), payload)
    words = {"statement": payload, "upper_bound_weak": True, "upper_bound_note": payload}
    return make(
        model={"source": payload},
        data=document.data.model_copy(update={"source": payload, "class_names": [payload] * 10}),
        samples=[*document.samples[:2], row, *document.samples[3:]],
        findings=[{**finding, "severity": "error", "data": {payload: payload}}],
        suite=document.suite.model_copy(update={"name": payload, "stamp": payload}),
        methods=[{**method, "failure_modes": [payload], "parameters": [parameter]}],
        not_tested=[payload],
        command=payload,
        complete=False,
        stages=[{"name": payload, "status": "failed"}],
        headline=document.headline.model_copy(update=words),
        environment=document.environment.model_copy(update={"device": payload, "when": payload}),
    )


@pytest.mark.parametrize("payload", PAYLOADS)
def test_names_stay_text(make, document, pictures, payload):
    page = render(_poisoned(make, document, payload), pictures)
    clean = render(document, pictures)
    kinds = {tag for tag, _ in _Reader(page).elements}
    assert kinds <= {tag for tag, _ in _Reader(clean).elements} | {"code"}
    assert [t for t, _ in _Reader(page).elements].count("script") == 2
    assert not [a for _, attrs in _Reader(page).elements for a in attrs if a.startswith("on")]
    store = page.split('id="data">')[1].split("</script>")[0]
    assert not set("<>&") & set(store)
    assert json.loads(store)["names"] == [payload] * 10


def test_embedded_json_cannot_close_its_element():
    assert str(embed(["</script>", "&", "\u2028"])) == '["\\u003c/script\\u003e","\\u0026","\\u2028"]'


def test_page_loads_nothing(document, pictures):
    page = render(document, pictures)
    for tag, attrs in _Reader(page).elements:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            value = attrs.get(name) or ""
            assert value.startswith(("data:image/png;base64,", "#")) or not value, (tag, value[:80])
    style = page.split("<style>")[1].split("</style>")[0]
    assert re.findall(r"url\(([^)]*)", page) == re.findall(r"url\(([^)]*)", style)
    assert set(re.findall(r"url\(([^)]*)", style)) == {"#hatch", "#dots"}
    assert "@import" not in style
    policy = next(a["content"] for t, a in _Reader(page).elements if t == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert html.unescape(policy).startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_page_says_what_matters(document, pictures, make):
    page = render(document, pictures)
    for words in (
        "UNKNOWN is never counted as robust",
        "34.0\u00a0%",
        "49.0\u00a0%",
        "What was not tested",
        document.hashes.plan,
    ):
        assert words in page
    head = document.headline.model_copy(update={"upper_bound_weak": True, "upper_bound_note": "Gradients vanish."})
    wrong = {
        "id": 7,
        "radius": 0.1,
        "distance": 0.05,
        "guarantee": "sound",
        "method": "crown",
        "attack": "pgd",
        "sha256": "00",
    }
    page = render(make(headline=head, complete=False, contradictions=[wrong]))
    for words in ("CONTRADICTION", "INCOMPLETE", "UPPER BOUND WEAK", "Gradients vanish."):
        assert words in page
    assert "Inputs that break it" not in page


def _dump(file: Path, fragment: str = "") -> str:
    assert BROWSER is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    home = f"--user-data-dir={file.parent / 'profile'}"
    done = subprocess.run(
        [BROWSER, *flags, home, f"file://{file}{fragment}"], capture_output=True, text=True, timeout=120
    )
    return done.stdout


def _ids(dom: str) -> list[int]:
    return [int(i) for i in re.findall(r'<tr data-id="(\d+)"', dom)]


@browser
def test_browser_draws_the_table_under_the_policy(document, pictures, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(render(document, pictures))
    assert _ids(_dump(file)) == list(range(50))
    dom = _dump(file, "#samples?status=BROKEN&sort=distance&dir=down&find=apgd_t")
    wanted = [s for s in document.samples if s.status == "BROKEN" and s.witness and s.witness.attack == "apgd_t"]
    wanted.sort(key=lambda s: (-s.witness.distance if s.witness else 0, s.id))
    assert _ids(dom) == [s.id for s in wanted][:50]


@browser
def test_clicks_sort_filter_and_unfold(document, tmp_path):
    clicks = """<script>
      const rows = () => [...document.querySelectorAll('#table tbody tr[data-id]')].map((r) => +r.dataset.id);
      const click = (what) => { document.querySelector(what).click(); return rows(); };
      const out = {};
      out.up = click('th[data-key=radius] button');
      out.down = click('th[data-key=radius] button');
      out.sorted = document.querySelector('th[data-key=radius]').getAttribute('aria-sort');
      out.unknown = click('button[data-status=UNKNOWN]');
      out.all = click('button[data-status=""]');
      out.more = click('#more');
      click('tbody button');
      out.detail = document.querySelector('tr.detail').textContent;
      document.title = 'OUT' + btoa(JSON.stringify(out)) + 'END';
    </script></body>"""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", render(document)).replace("</body>", clicks)
    file = tmp_path / "report.html"
    file.write_text(page)
    dom = _dump(file)
    told = re.search(r"<title>OUT(.*?)END</title>", dom)
    assert told, dom[:400]
    out = json.loads(b64decode(told[1]))
    proved = [s for s in document.samples if s.certificate]
    up = sorted(proved, key=lambda s: (s.certificate.radius if s.certificate else 0, s.id))
    down = sorted(proved, key=lambda s: (-s.certificate.radius if s.certificate else 0, s.id))
    assert out["up"] == [s.id for s in up][:50]
    assert out["down"] == [s.id for s in down][:50]
    assert out["sorted"] == "descending"
    assert out["unknown"] == [s.id for s in down if s.status == "UNKNOWN"]
    assert out["all"] == out["down"]
    assert len(out["more"]) == 200
    assert "certificate: sound, by crown" in out["detail"]


@browser
def test_browser_runs_no_payload(make, document, pictures, tmp_path):
    file = tmp_path / "report.html"
    for payload in PAYLOADS[:3]:
        file.write_text(render(_poisoned(make, document, payload), pictures))
        dom = _dump(file)
        assert "<title>PWNED" not in dom
        assert len(_ids(dom)) == 50
        assert not [name for _, attrs in _Reader(dom).elements for name in attrs if name.startswith("on")]


def test_the_worst_class_and_the_easiest_samples_come_first(document):
    from holdfast.report.audits.tables import by_class, easiest

    rows = by_class(document)
    assert [r.empirical for r in rows] == sorted(r.empirical for r in rows)
    assert sum(r.samples for r in rows) == document.headline.samples
    for name in ("clean", "empirical", "certified"):
        whole = sum(getattr(r, name) * r.samples for r in rows) / document.headline.samples
        told = (
            document.headline.clean_accuracy
            if name == "clean"
            else getattr(document.headline, f"{name}_robust_accuracy")
        )
        assert whole == pytest.approx(told)
    near = easiest(document)
    assert len(near) == 10
    least = min(s.witness.distance for s in document.samples if s.status == "BROKEN")
    assert near[0].witness.distance == least


def test_a_weak_bound_is_drawn_as_no_result(make, document):
    weak = document.headline.model_copy(update={"upper_bound_weak": True, "upper_bound_note": "gradients vanish"})
    page = render(make(headline=weak))
    assert "says nothing about the model" in page
    assert 'class="line weak"' in page
    assert 'class="line weak"' not in render(document)


def test_a_certificate_with_a_chance_is_not_called_a_proof(document):
    told = document.model_dump(mode="json")
    for s in told["samples"]:
        if s["certificate"]:
            s["certificate"] |= {"guarantee": "probabilistic", "alpha": 0.001}
    told["subject"]["kind"] = "smoothed"
    page = render(Document.model_validate(told))
    assert "with probability 0.999" in page
    assert "proved safe: nothing" not in page
    assert "the smoothed model" in page
    assert "proved safe: nothing" in render(document)


def test_stages_are_named_in_words_and_a_suite_once(document):
    page = render(document)
    stamp = document.suite.stamp
    assert stamp is None or f"{document.suite.name}: {stamp}" not in page
    for name in document.cost.by_stage:
        assert f">{name}</th>" not in page or name == stage_name(name)
