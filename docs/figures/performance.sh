#!/usr/bin/env bash
# Draws performance.svg from performance.csv, and writes the rows of the tables of ../performance.md from it.
#
#   docs/figures/performance.sh            writes both; needs gnuplot
#   docs/figures/performance.sh --check    only says whether page and figure are those of the numbers
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

# The page with new rows in its tables: <!-- rows: NAME --> stands before the head of each.
page() {
  awk -F, '
    FNR == NR && /^#/ { next }
    FNR == NR {
      row = "|"
      for (i = 2; i <= NF; ++i) row = row " " $i " |"
      rows[$1] = rows[$1] row "\n"
      next
    }
    /^<!-- rows: / { split($0, word, " "); name = word[3] }
    name != "" && /^\|---/ { printf "%s\n%s", $0, rows[name]; name = ""; old = 1; next }
    old && /^\|/ { next }
    { old = 0; print }
  ' performance.csv ../performance.md
}
stamp="<!-- performance.csv: $(cksum <performance.csv) -->"

if [[ ${1-} == --check ]]; then
  page | diff ../performance.md - && grep -qF -- "$stamp" performance.svg && exit 0
  echo "docs/performance.md or its figure is not what performance.csv says: run docs/figures/performance.sh" >&2
  exit 1
fi

page >performance.md.new
mv performance.md.new ../performance.md
plot() { gnuplot <<'END'
set encoding utf8
set terminal svg size 700,640 dynamic enhanced font "sans-serif,14" linewidth 1.2
set datafile separator ","
set border 1
set logscale x
set xrange [0.95:16]
set xtics nomirror ("1" 1, "1.2" 1.2, "1.5" 1.5, "2" 2, "3" 3, "4" 4, "6" 6, "8" 8, "12" 12)
set yrange [-3.6:0.6]
set ytics nomirror scale 0
set grid xtics ytics linecolor rgb "#808080" linewidth 0.4
unset key
set lmargin at screen 0.19
set rmargin at screen 0.98
set style line 1 pt 7 ps 1.1 lc rgb "#3b7fd4"
set style line 2 pt 6 ps 1.1 lw 2 lc rgb "#3b7fd4"
set style line 3 pt 9 ps 1.1 lc rgb "#d0660a"
set style line 4 pt 5 ps 0.9 lc rgb "#2a9058"
set style line 5 pt 4 ps 0.9 lw 2 lc rgb "#2a9058"
# Of one shape, points that nearly meet lie a little above and below each other.
above = 0.16
below = -0.16
panel(k) = sprintf("set tmargin at screen %g; set bmargin at screen %g", 1.225 - k * 0.333, 1.055 - k * 0.333)
# The key: mark(n, style, text) is entry n of a line above the plot.
mark(n, style, text) = sprintf("set label %d '%s' at screen %g, graph 1.14 point ls %d offset 1,-0.3", \
                               n, text, n == 1 ? 0.22 : 0.34 + (n - 2) * 0.23, style)
set multiplot

eval panel(1)
set title "GPU (H100), bf16, forward: time / plain read" offset 0,1
rows = "< grep '^gpu-forward,.*,bf16,' performance.csv"
eval mark(1, 1, "ours")
eval mark(2, 2, "ours, at rest")
eval mark(3, 3, "cuBLAS")
eval mark(4, 4, "PyTorch")
plot rows using 5:(above-$0):ytic(2) with points ls 1, \
     rows using 6:(below-$0) with points ls 2, \
     rows using ($5*$10):(above-$0) with points ls 3, \
     rows using ($5*$11):(below-$0) with points ls 4

unset label 4
eval panel(2)
set title "GPU (H100), bf16, forward and backward: time / (plain read + copy)" offset 0,1
rows = "< grep '^gpu-both,.*,bf16,' performance.csv"
eval mark(1, 1, "ours")
eval mark(2, 4, "PyTorch, compiled")
eval mark(3, 5, "PyTorch, eager")
plot rows using 5:(-$0):ytic(2) with points ls 1, \
     rows using ($5*$7):(above-$0) with points ls 4, \
     rows using ($5*$6):(below-$0) with points ls 5

eval panel(3)
set title "CPU (Zen 3), f32, forward, one thread: time / plain read" offset 0,1
rows = "< grep '^cpu,.*,f32,' performance.csv"
eval mark(1, 1, "ours")
eval mark(2, 2, "ours, 2 threads")
eval mark(3, 3, "Eigen")
eval mark(4, 4, "OpenBLAS")
plot rows using 5:(above-$0):ytic(2) with points ls 1, \
     rows using 6:(below-$0) with points ls 2, \
     rows using 11:(above-$0) with points ls 3, \
     rows using 12:(below-$0) with points ls 4
unset multiplot
END
}

# A name and a description in place of gnuplot's, and ink for white and for black paper.
words='<title>Time over a plain read</title>\
<desc>Ours beside cuBLAS, PyTorch, Eigen and OpenBLAS; the numbers are those of performance.csv</desc>\
<style>\
[fill="black"] { fill: #1f2328; } [stroke="black"] { stroke: #1f2328; } [color="black"] { color: #1f2328; }\
@media (prefers-color-scheme: dark) {\
[fill="black"] { fill: #e6edf3; } [stroke="black"] { stroke: #e6edf3; } [color="black"] { color: #e6edf3; }\
}\
</style>'
plot | sed -e "s|<title>Gnuplot</title>|$words|" -e '/<desc>Produced by GNUPLOT/d' \
  -e 's|<title>gnuplot_plot_[^<]*</title>||' >performance.svg
printf '%s\n' "$stamp" >>performance.svg
