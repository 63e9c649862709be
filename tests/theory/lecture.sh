#!/usr/bin/env bash
# lecture.sh ROOT PROGRAMS: LaTeX compiles lecture.tex, with a page for each slide, and nothing runs over its edge.
set -euo pipefail
latex=$(command -v pdflatex || command -v lualatex || true)
for tool in pandoc rsvg-convert "$latex"; do
  if [[ -z $tool ]] || ! command -v "$tool" >/dev/null; then
    echo "skipped: no ${tool:-pdflatex or lualatex} (apt-get install pandoc librsvg2-bin texlive-latex-recommended lmodern)"
    exit 77
  fi
done
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
"$1/examples/theory/slides.sh" "$1/docs" "$folder"
cd "$folder"
fail() { echo "$*"; exit 1; }
if ! "$latex" -interaction=nonstopmode -halt-on-error lecture.tex >said; then
  if grep -qE "^! LaTeX Error: File .*\.(sty|cls|def)' not found" said; then
    grep '^! LaTeX Error: File' said | sed 's/^! LaTeX Error: /skipped: /'
    exit 77
  fi
  cat said
  fail "$latex fails"
fi
! grep -A3 '^Overfull' said || fail "a slide runs over its edge"
pages=$(sed -n 's/^Output written on lecture.pdf (\([0-9]*\) pages.*/\1/p' said)
slides=$(grep -c '^## ' "$1/docs/lecture-slides.md")
[[ $pages -eq $((slides + 1)) ]] || fail "$pages pages for $slides slides and a title"
