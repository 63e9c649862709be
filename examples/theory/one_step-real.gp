# title: The first step of real rows
# caption: How far the stored row of each expert is from v₁, and how far one step turns it. A row far away can have a
# caption: short step: it is near another singular direction.
# height: 430
set xlabel "angle θ of the row to v₁ (degrees)"
set ylabel "length of the step, ψ (degrees)"
set xrange [0:90]
set yrange [0:90]
set xtics 15
set ytics 15
set key maxcols 1
plot "one_step-course.csv" using ($1==0 ? $3 : NaN):5 with linespoints ls 3 title "rows that step on while W stays", \
  "one_step-real.csv" using ($1==0 ? $2 : NaN):3 with points ls 2 title "rows of the usual tiny model", \
  "" using ($1==1 ? $2 : NaN):3 with points ls 1 title "rows of the MPI tiny model"
