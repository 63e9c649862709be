"""The program of docs/guide-pytorch.md prints what the page says. Exit status 77: there is no PyTorch."""

import contextlib
import io
import re
import sys
from pathlib import Path

try:
    import torch  # noqa: F401
except ImportError:
    print("skipped: python3 has no torch")
    sys.exit(77)

root = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(root / "python"))
page = (root / "docs" / "guide-pytorch.md").read_text(encoding="utf-8")
((program, expected),) = re.findall(r"```python\n(.*?)```\n```\n(.*?)```\n", page, re.S)
printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    exec(compile(program, "guide-pytorch.md", "exec"), {"__name__": "program"})
assert printed.getvalue() == expected, f"printed:\n{printed.getvalue()}the page says:\n{expected}"
print("docs/guide-pytorch.md prints what it says")
