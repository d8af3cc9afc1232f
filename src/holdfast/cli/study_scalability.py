"""``holdfast study scalability``: what verifiers cost and reach as networks grow."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.cli import options as o
from holdfast.cli import single_options as one
from holdfast.cli.console import note, progress, say_json, table
from holdfast.cli.saving import typed
from holdfast.cli.spread import spread
from holdfast.core.errors import UsageError

__all__ = ["scalability"]

_LEARNT = 0.5
_METHODS = ("ibp", "fast_lin", "crown", "alpha_crown")


@spread
def scalability(
    out: one.Out,
    *,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method", help="Verifiers, with commas or repeated.", metavar="NAME,...", show_default=", ".join(_METHODS)
        ),
    ] = None,
    depth: Annotated[str, typer.Option(help="Hidden layers to try.", metavar="N,...")] = "1,2,4,8",
    width: Annotated[str, typer.Option(help="Neurons of a layer to try.", metavar="N,...")] = "32,64,128,256",
    side: Annotated[str, typer.Option(help="Pixels a side to try.", metavar="N,...")] = "8,16,32",
    samples: Annotated[int, typer.Option(help="Samples of each network.", metavar="N", min=1)] = 4,
    limit: Annotated[float, typer.Option(help="CPU seconds after which larger networks are left out.", min=0.1)] = 60.0,
    norm: one.NormName = None,
    seed: one.Seed = None,
    talk: o.TalkOptions,
) -> None:
    """Train networks of growing depth, width and input size on the digits, and measure what each verifier makes of them.

    Example: holdfast study scalability --method ibp,crown,alpha_crown --depth 2,4,8 --out runs/scalability
    """
    import json

    from holdfast.core.files import write_whole
    from holdfast.core.threat import Norm
    from holdfast.report.studies import page
    from holdfast.studies.scalability import BASE, Scalability

    def tried(name: str, text: str) -> tuple[int, ...]:
        return tuple(_sizes(name, text)) if text else ()

    asked = Scalability(
        methods=o.several(methods) or _METHODS, depth=tried("depth", depth), width=tried("width", width),
        side=tried("side", side), norm=norm or Norm.LINF, samples=samples, limit=limit, seed=seed or 0,
    )  # fmt: skip
    with progress() as tell:
        result = asked.run(progress=tell)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "scalability.json", json.dumps(result.to_dict(), indent=1))
    write_whole(out / "scalability.html", page(result, command=typed()))
    if talk.json:
        say_json(result.to_dict())
    else:
        table(
            ("varied", "size", "method", "CPU s a sample", "memory", "mean radius", "gap to the attack"),
            [
                (r.axis, r.size, r.method, f"{r.seconds:.3g}", "" if r.megabytes is None else f"{r.megabytes:.0f} MB",
                 f"{r.radius:.4g}", f"{r.gap:.0%}")
                for r in result.rows
            ],
        )  # fmt: skip
    for name, share in result.accuracy.items():
        if share < _LEARNT:
            note(
                f"warning: the network of {name} learnt little ({share:.0%} right): its radii say little about verifiers"
            )
    for name, axis, size, why in result.left_out:
        note(f"{name} at {axis} {size} is left out: {why}")
    note(f"base: depth {BASE['depth']}, width {BASE['width']}, side {BASE['side']}; saved {out / 'scalability.html'}")


def _sizes(name: str, text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--{name} takes whole numbers with commas, not '{text}'") from None
    if min(sizes) < 1:
        raise UsageError(f"--{name} starts at 1, got {min(sizes)}")
    return sizes
