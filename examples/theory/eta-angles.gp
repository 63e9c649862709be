# title: The way to v₁ with five step sizes
# caption: Straight lines on this axis: tan θ shrinks by one factor at each step. Where the step is too long, the row ends
# caption: far from v₁.
# height: 420
set logscale y
set format y "10^{%T}"
set xrange [0:60]
set yrange [1e-12:200]
set xtics 10
set xlabel "step"
set ylabel "angle to v₁ (degrees)"
plot "eta-angles.csv" using 1:2 with lines lw 2 lc rgb "#808080" title "t = 0.1 (nearly Oja)", \
  "" using 1:3 with lines ls 3 title "t = 0.4", \
  "" using 1:4 with lines ls 1 title "t = 1 (MPI)", \
  "" using 1:5 with lines ls 4 title sprintf("t = %.2f (best)", best), \
  "" using 1:6 with lines ls 5 title sprintf("t = %.2f (too long)", over)
