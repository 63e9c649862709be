#!/usr/bin/env bash
# slides.sh FOLDER OUT: makes OUT/slides.html, one file that opens from disk, and OUT/lecture.tex, the same for LaTeX's
# beamer, of docs/lecture-slides.md, with the pictures of FOLDER/figures. Needs pandoc, and rsvg-convert, for LaTeX
# takes PDF and no SVG. A formula that is no LaTeX fails.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
page="$here/../../docs/lecture-slides.md"
if [[ -e $1/lecture-slides.md ]]; then page="$1/lecture-slides.md"; fi
make() { pandoc "$page" -f markdown-implicit_figures --standalone --slide-level=2 --fail-if-warnings --resource-path="$1" "${@:2}"; }
mkdir -p "$2"
make "$1" -t dzslides --self-contained --mathml --css "$here/slides.css" -o "$2/slides.html"
make "$1" -t beamer -V aspectratio=169 --lua-filter="$here/columns.lua" -o "$2/lecture.tex"
mapfile -t pictures < <(grep -oE '[A-Za-z0-9_/-]+\.svg' "$page")
for picture in "${pictures[@]}"; do
  mkdir -p "$2/$(dirname "$picture")"
  rsvg-convert -f pdf -o "$2/${picture%.svg}.pdf" "$1/$picture"
done
