#!/usr/bin/env bash
# notebook.sh ROOT PROGRAMS: examples/theory/notebook.py, in numpy alone, finds the numbers that the programs write, and
# notices one that is changed.
set -euo pipefail
if ! python3 -c 'import numpy' 2>/dev/null; then
  echo "skipped: no numpy (apt-get install python3-numpy)"
  exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
for name in layer router ellipse logits targets sphere eta lambda drift gap one_step layouts; do
  PATH=/nonexistent "$2/theory_$name" "$folder" >/dev/null # no pictures: they are another test's
done
python3 "$1/examples/theory/notebook.py" "$folder"
sed -i '3s/^2,/3,/' "$folder/ellipse-circle.csv"
sed '/^# %% Logits/,/^# %%$/d' "$1/examples/theory/notebook.py" >"$folder/first_cells.py"
if python3 "$folder/first_cells.py" "$folder" >"$folder/said" || ! grep -q 'differ: ellipse' "$folder/said"; then
  echo "a changed number went unnoticed"
  exit 1
fi
# As a notebook: no __file__, the arguments are the kernel's, and nothing exits.
mkdir -p "$folder/project/examples/data" "$folder/project/examples/theory" "$folder/project/build/theory"
ln -s "$folder" "$folder/project/build/theory/figures"
cd "$folder/project/examples/theory"
python3 -c 'exec(open("../../../first_cells.py").read()); print("went on")' -f kernel.json >"$folder/said"
if ! grep -q 'differ: ellipse' "$folder/said" || ! grep -q 'went on' "$folder/said"; then
  echo "the notebook does not run where it is no file"
  exit 1
fi
