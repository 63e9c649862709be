# title: How long one step is, while the weights move
# caption: The row is written back. Its steps shrink by κ² each, until they are as long as the weights turn: one step a
# caption: training step is then enough to keep up.
# height: 390
set xlabel "step"
set ylabel "length of the step, ψ (degrees)"
set logscale y
set format y "10^{%T}"
set yrange [1e-6:200]
set xrange [0:60]
course = "one_step-course.csv"
plot course using ($1==0.5 ? $2 : NaN):5 with linespoints ls 5 ps 0.4 title "W turns by 0.5° a step", \
  "" using ($1==0.02 ? $2 : NaN):5 with linespoints ls 1 ps 0.4 title "by 0.02° a step", \
  "" using ($1==0 ? $2 : NaN):5 with linespoints ls 3 ps 0.4 title "W stays"
