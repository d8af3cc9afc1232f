"""The generated pages: ``python -m holdfast.cli.docs docs`` writes ``methods/*.md`` and ``coverage.md``.

Which methods belong to a coverage row stands on their cards. ``docs/status.yaml`` says the rest: rows that a part of
the house serves rather than a method, and rows of which something is still missing.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import yaml

from holdfast.api.methods import card_as_dict
from holdfast.core.files import write_whole
from holdfast.core.registry import card, kind, method, names

__all__ = ["build", "pages", "shown"]

_NOTICE = "<!-- written by `make docs`; do not edit -->\n"
_ARCH = "--arch holdfast.models.zoo:digits_cnn"
_EPS = {"l0": "5", "l1": "3", "l2": "0.5", "linf": "0.1"}
_VERBS = {
    "attack": "attack {}", "shared attack": "attack {}", "semantic attack": "attack {}",
    "certifier": "certify {}", "set certifier": "certify {}", "training defence": "harden",
}  # fmt: skip
_SIGNS = {"works": "works", "part": "in part", "open": "open"}


def build(folder: Path) -> None:
    """Writes the pages and removes those of methods that are gone."""
    made = pages(folder)
    for stale in (folder / "methods").glob("*.md"):
        if f"methods/{stale.name}" not in made:
            stale.unlink()
    for name, text in made.items():
        write_whole(folder / name, text)


def pages(folder: Path) -> dict[str, str]:
    """Path in ``folder`` -> content of each generated page; reads ``coverage.csv`` and ``status.yaml`` there."""
    cards = {name: {"kind": kind(name), **card_as_dict(card(name), method(name))} for name in names()}
    made = {f"methods/{name}.md": _method(name, c) for name, c in cards.items()}
    made["methods/index.md"] = _index(cards)
    made["coverage.md"] = _coverage(folder, cards)
    return made


def _method(name: str, c: dict[str, Any]) -> str:
    facts = [
        ("Name", f"`{name}`"),
        ("Kind", c["kind"]),
        ("Paper", c["paper"]),
        ("Survey", f"section {c['section']}"),
        ("Coverage rows", ", ".join(c["rows"])),
        ("Phase", c["phase"]),
        ("Access", c["access"]),
        ("Formulation", c["formulation"]),
        ("Goals", ", ".join(c["goals"]) if c["kind"].endswith("attack") else ""),
        ("Norms", ", ".join(c["norms"])),
        ("Guarantee", c["guarantee"]),
        ("Must know", ", ".join(c["knows"])),
    ]
    out = [_NOTICE, f"# {c['title']}\n", f"{c['summary']}\n", "| | |", "|---|---|"]
    out += [f"| {key} | {_cell(value)} |" for key, value in facts if value]
    if c["parameters"]:
        out += ["\n## Parameters\n", "| name | default | meaning | where the default comes from |", "|---|---|---|---|"]
        out += [
            f"| `{p['name']}` | `{p['default']}` | {_cell(p['meaning'])} | {_cell(p['source'])} |"
            for p in c["parameters"]
        ]
    if c["failure_modes"]:
        out += ["\n## Known failure modes\n", *(f"- {mode}" for mode in c["failure_modes"])]
    if c["checked_by"]:
        out += ["\n## Checked by\n", c["checked_by"]]
    return "\n".join(out) + "\n"


def _index(cards: dict[str, dict[str, Any]]) -> str:
    out = [_NOTICE, "# Methods\n"]
    for group in dict.fromkeys(c["kind"] for c in cards.values()):
        out += [
            f"## {_plural(group).capitalize()}\n",
            "| name | | access or guarantee | norms | rows |",
            "|---|---|---|---|---|",
        ]
        out += [
            f"| [`{name}`]({name}.md) | {_cell(c['title'])} | {c['access'] or c['guarantee'] or ''} | "
            f"{' '.join(c['norms'])} | {' '.join(c['rows'])} |"
            for name, c in cards.items()
            if c["kind"] == group
        ]
        out.append("")
    return "\n".join(out)


def _plural(kind: str) -> str:
    return f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"


def _coverage(folder: Path, cards: dict[str, dict[str, Any]]) -> str:
    with (folder / "coverage.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    told = yaml.safe_load((folder / "status.yaml").read_text(encoding="utf-8"))
    serving = {r["id"]: [name for name, c in cards.items() if r["id"] in c["rows"]] for r in rows}
    states = {i: told.get(i, {}).get("state", "works" if serving[i] else "open") for i in serving}
    count = {state: sum(s == state for s in states.values()) for state in _SIGNS}
    out = [
        _NOTICE,
        "# Coverage of the survey\n",
        f"{len(rows)} rows: {count['works']} work, {count['part']} in part, {count['open']} open. "
        "A row works only when each method that it names does.\n",
        "| row | method | state | served by | shown by |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        by = ", ".join(f"[`{name}`](methods/{name}.md)" for name in serving[r["id"]])
        remark = told.get(r["id"], {}).get("note", "")
        server = "; ".join(filter(None, (by, _cell(remark))))
        shown = told.get(r["id"], {}).get("command") or _command(serving[r["id"]], cards)
        shown = f"`{_cell(shown)}`" if shown else ""
        out.append(f"| {r['id']} | {_cell(r['method'])} | {_SIGNS[states[r['id']]]} | {server} | {shown} |")
    return "\n".join(out) + "\n"


def _command(serving: list[str], cards: dict[str, dict[str, Any]]) -> str:
    """The command that shows the first method of a row at work."""
    if not serving:
        return ""
    name = serving[0]
    return shown(name, cards[name]["kind"], cards[name]["norms"], cards[name]["access"])


def shown(name: str, of: str, norms: list[str], access: str | None) -> str:
    """The command that shows a method on the demo's models.

    Example:
        >>> shown("crown", "certifier", ["l2"], None)[:24]
        'holdfast certify crown -'
    """
    model = f"--model runs/demo/before.safetensors {_ARCH}"
    given = f"--data digits:test --norm {norms[0]} --eps {_EPS[norms[0]]}" if norms else "--data digits:test"
    if access == "transfer":
        given += " --surrogate runs/demo/after.safetensors --surrogate-arch holdfast.models.zoo:digits_cnn"
    if of == "shared attack":
        given = f"--train-data digits:train {given}"
    verb = _VERBS.get(of)
    if verb is None:  # a kind that no command serves yet
        return ""
    verb = verb.format(name)
    return f"holdfast {verb} {model} {given} --out /tmp/{name}"


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
