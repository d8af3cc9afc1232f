#!/usr/bin/env bash
# torchattacks 3.3.0: its wheel also installs packages named autoattack and robustbench, of an older date.
#
# Version:  torchattacks 3.3.0
# Expected: a distribution installs its own package. `import autoattack` fails where AutoAttack was never installed, and is
#           AutoAttack's own code, with l1, where it was.
# Seen:     top-level packages autoattack, robustbench and torchattacks. The Square attack of this autoattack takes Linf and
#           L2 alone (an assertion without a message refuses L1), so a benchmark "against AutoAttack" may run against this
#           copy, and whichever of two distributions was installed last has overwritten the other's files.
# Fails (exit 1) if that changes.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --no-deps torchattacks==3.3.0
"$place/venv/bin/python" - <<'PYTHON'
import ast
import sys
from importlib.metadata import files, version

held = [f for f in files("torchattacks") if f.suffix == ".py"]
tops = sorted({f.parts[0] for f in held})
(square,) = [f for f in held if f.parts[0] == "autoattack" and f.name == "square.py"]
tree = ast.parse(square.locate().read_text())
checks = [n.test for n in ast.walk(tree) if isinstance(n, ast.Assert) and "norm" in ast.unparse(n.test)]
norms = sorted({c.value for t in checks for c in ast.walk(t) if isinstance(c, ast.Constant) and str(c.value)[0] == "L"})
print("torchattacks", version("torchattacks"))
print("expected: ['torchattacks'], seen:", tops)
print("norms of its autoattack's Square: expected ['L1', 'L2', 'Linf'], seen:", norms)
sys.exit(0 if tops == ["autoattack", "robustbench", "torchattacks"] and norms == ["L2", "Linf"] else 1)
PYTHON
