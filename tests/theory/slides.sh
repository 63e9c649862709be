#!/usr/bin/env bash
# slides.sh ROOT PROGRAMS: pandoc makes the slides, reads every formula as LaTeX, and fetches nothing.
set -euo pipefail
if ! command -v pandoc >/dev/null || ! command -v rsvg-convert >/dev/null; then
  echo "skipped: no pandoc or no rsvg-convert (apt-get install pandoc librsvg2-bin)"
  exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
"$1/examples/theory/slides.sh" "$1/docs" "$folder"
fail() { echo "$*"; exit 1; }
[[ -s $folder/lecture.tex ]] || fail "no LaTeX"
! grep -qE '\.svg}|includesvg' "$folder/lecture.tex" || fail "LaTeX takes no SVG"
! grep '^\\begin{frame}' "$folder/lecture.tex" | LC_ALL=C grep -q '[^ -~]' || fail "a frame's title has more than ASCII"
grep -q '^\\begin{frame}{' "$folder/lecture.tex" || fail "no frame has a title"
count=0
for picture in $(sed -n 's/.*\\includegraphics.*{\(.*\.pdf\)}.*/\1/p' "$folder/lecture.tex"); do
  [[ $(head -c 4 "$folder/$picture") == %PDF ]] || fail "$picture is no PDF"
  count=$((count + 1))
done
[[ $count -eq $(grep -c '\.svg)' "$1/docs/lecture-slides.md") ]] || fail "LaTeX has $count pictures"
slides=$(grep -c '^## ' "$1/docs/lecture-slides.md")
[[ $(grep -c '<section' "$folder/slides.html") -ge $slides ]] || fail "fewer slides than headings"
grep -q '<math' "$folder/slides.html" || fail "no formula is MathML"
! grep -qE '(src|href)="(https?:|figures/)' "$folder/slides.html" || fail "the slides need files beside them"
printf '## One\n\n$$\\frac{1{2}$$\n' >"$folder/lecture-slides.md"
if "$1/examples/theory/slides.sh" "$folder" "$folder" 2>/dev/null; then fail "a broken formula passed"; fi
