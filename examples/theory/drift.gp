# title: Drift: who follows weights that turn?
# caption: The stateless row is one step from a stored row that stays where it was (in training its gradient moves it). The
# caption: stateful row is written back, and stays a little behind: the floor κ²δ/(1 − κ²).
# height: 390
set xlabel "time step"
set ylabel "angle to v₁ (degrees)"
set yrange [0:90]
set ytics 15
set key maxcols 1
plot "drift-course.csv" using 1:2 with lines lw 2 lc rgb "#808080" title "stored row r", \
  "" using 1:3 with lines ls 2 title "stateless: one step from it", \
  "" using 1:4 with lines ls 1 title "stateful: written back"
