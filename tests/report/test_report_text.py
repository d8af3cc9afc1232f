"""The summary in a terminal and off it."""

from io import StringIO

from rich.console import Console

from holdfast.audits.document import Document
from holdfast.report.audits.text import show

NASTY = "[bold red]x[/] \x1b[2J\x07"


def _shown(document, terminal: bool) -> str:
    console = Console(
        file=StringIO(), force_terminal=terminal, width=100, color_system="truecolor" if terminal else None
    )
    show(document, console)
    return console.file.getvalue()


def test_plain_summary_has_the_figures_and_no_colour(document):
    text = _shown(document, terminal=False)
    assert "certified 34.0 % <= true robust accuracy <= empirical 49.0 %" in text
    assert "95 % interval 41.9 to 56.1 %" in text
    assert "never counted as robust" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 160


def test_what_was_judged_is_said_where_it_is_not_the_model_itself(document):
    told = document.model_dump(mode="json")
    for s in told["samples"]:
        if s["certificate"]:
            s["certificate"] |= {"guarantee": "probabilistic", "alpha": 0.001}
    told["subject"] |= {"kind": "smoothed", "detail": "sigma=0.25"}
    said = (
        "judged: the model smoothed with noise, sigma=0.25; a certificate holds with probability 0.999 for each sample"
    )
    assert said in _shown(Document.model_validate(told), terminal=False).splitlines()
    assert said[:50] in _shown(Document.model_validate(told), terminal=True)
    assert "judged:" not in _shown(document, terminal=False)


def test_terminal_summary_draws_a_bar_of_fixed_width(document):
    text = _shown(document, terminal=True)
    assert "\x1b[" in text
    assert sum(text.count(block) for block in "█▓▒░") == 60


def test_names_cannot_steer_the_terminal_nor_be_read_as_markup(make):
    document = make(
        model={"source": NASTY}, findings=[{"code": NASTY, "severity": "error", "title": NASTY, "message": NASTY}]
    )
    for terminal in (False, True):
        text = _shown(document, terminal)
        assert "[bold red]x[/] ?[2J?" in text
        assert "\x1b[2J" not in text
        assert "\x07" not in text


def test_a_weak_bound_and_an_unfinished_run_are_said(make, document):
    head = document.headline.model_copy(update={"upper_bound_weak": True, "upper_bound_note": "Gradients vanish."})
    text = _shown(make(headline=head, complete=False), terminal=False)
    assert "UPPER BOUND WEAK: Gradients vanish." in text
    assert "INCOMPLETE:" in text
    assert "(weak)" in text
