#!/usr/bin/env bash
# notebook.sh ROOT PROGRAMS: examples/theory/notebook.py, in numpy alone, finds the numbers that the programs write, draws
# each figure where there is matplotlib, and notices a number that is changed.
set -euo pipefail
if ! python3 -c 'import numpy' 2>/dev/null; then
  echo "skipped: no numpy (apt-get install python3-numpy)"
  exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
for name in layer router ellipse weights logits targets sphere eta lambda drift gap one_step layouts; do
  PATH=/nonexistent "$2/theory_$name" "$folder" >/dev/null # no pictures: they are another test's
done
python3 "$1/examples/theory/notebook.py" "$folder" | tee "$folder/said"
if python3 -c 'import matplotlib' 2>/dev/null; then
  wanted=$(find "$1/examples/theory" -name '*.gp' -not -name style.gp -printf '%f\n' | sed 's/gp$/svg/' | sort)
  if [[ $(ls "$folder/notebook") != "$wanted" ]]; then
    echo "the figures are" "$folder"/notebook/*
    exit 1
  fi
elif ! grep -q 'no figures, for there is no matplotlib' "$folder/said"; then
  echo "that there are no figures is not said"
  exit 1
fi
if [[ -n ${MPIROUTER_LIBRARY-} ]] && ! grep -q 'compared with the library too' "$folder/said"; then
  echo "the library is there and was not asked"
  exit 1
fi
# The first cells, as a project of their own, on a number that was changed.
project=$folder/project
mkdir -p "$project/examples/data" "$project/examples/theory" "$project/build/theory"
ln -s "$folder" "$project/build/theory/figures"
cp "$1"/examples/theory/*.gp "$project/examples/theory"
sed '/^# %% Logits/,/^# %%$/d' "$1/examples/theory/notebook.py" >"$project/examples/theory/first_cells.py"
sed -i '3s/^2,/3,/' "$folder/ellipse-circle.csv"
cd "$project/examples/theory"
if python3 first_cells.py "$folder" >"$folder/said" || ! grep -q 'differ: ellipse' "$folder/said"; then
  echo "a changed number went unnoticed"
  exit 1
fi
# As a notebook: no __file__, the arguments are the kernel's, and nothing exits.
python3 -c 'exec(open("first_cells.py").read()); print("went on")' -f kernel.json >"$folder/said"
if ! grep -q 'differ: ellipse' "$folder/said" || ! grep -q 'went on' "$folder/said"; then
  echo "the notebook does not run where it is no file"
  exit 1
fi
