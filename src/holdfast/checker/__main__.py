"""``python -m holdfast.checker FILE [NET.onnx PROP.vnnlib]``: exit code 0 accepts, 1 rejects."""

import sys

from holdfast.checker.file import check
from holdfast.checker.rounding import Rejected

__all__ = ["main"]


def main(words: list[str]) -> int:
    """Prints what was checked, or the first reason why not."""
    if len(words) not in (1, 3) or words[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        found = check(*words)
    except Rejected as reason:
        print(f"rejected: {reason}")
        return 1
    print(f"accepted: the property holds in {found.arithmetic}")
    print(f"network   sha256 {found.network}\nproperty  sha256 {found.property}")
    print(f"{found.cases} cases, {found.leaves} leaves, {found.seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
