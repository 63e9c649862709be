"""Prints the lines of gpu_bench and bench_torch.py as one table, and writes them as one JSON list: table.py IN [OUT]."""

import json
import sys

rows = [json.loads(line) for line in open(sys.argv[1]) if line.startswith("{")]
if len(sys.argv) > 2:
    with open(sys.argv[2], "w") as out:
        json.dump(rows, out, indent=1)

floors = {(r["shape"], r["type"], r["work"]): r["us"] for r in rows}


def ratio(row, work):
    floor = floors.get((row["shape"], row["type"], work))
    return f"{row['us'] / floor:8.2f}" if floor else " " * 8


print(f"{'shape':28} {'type':13}  {'work':40} {'us':>10} {'/read':>8} {'/copy':>8}")
last = None
for r in sorted(rows, key=lambda r: (r["shape"], r["type"]) if "x" in r["shape"] else ("~", "")):
    if last not in (None, (r["shape"], r["type"])):
        print()
    last = (r["shape"], r["type"])
    print(f"{r['shape']:28} {r['type']:13}  {r['work']:40} {r['us']:10.2f} {ratio(r, 'read floor')} {ratio(r, 'copy floor')}")
