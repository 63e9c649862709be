#!/usr/bin/env bash
# slides.sh ROOT PROGRAMS: pandoc makes the slides, reads every formula as LaTeX, and fetches nothing.
set -euo pipefail
if ! command -v pandoc >/dev/null; then
  echo "skipped: no pandoc (apt-get install pandoc)"
  exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
"$1/examples/theory/slides.sh" "$1/docs" "$folder"
fail() { echo "$*"; exit 1; }
[[ -s $folder/lecture.tex ]] || fail "no LaTeX"
slides=$(grep -c '^## ' "$1/docs/lecture-slides.md")
[[ $(grep -c '<section' "$folder/slides.html") -ge $slides ]] || fail "fewer slides than headings"
grep -q '<math' "$folder/slides.html" || fail "no formula is MathML"
! grep -qE '(src|href)="(https?:|figures/)' "$folder/slides.html" || fail "the slides need files beside them"
printf '## One\n\n$$\\frac{1{2}$$\n' >"$folder/lecture-slides.md"
if "$1/examples/theory/slides.sh" "$folder" "$folder" 2>/dev/null; then fail "a broken formula passed"; fi
