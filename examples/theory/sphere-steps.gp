# title: A fixed η has to be chosen; MPI has none
# caption: Steps until the row is within 1° of v₁. When the weights double, M is four times what it was, and the same η is
# caption: four times as long; MPI takes 9 steps at any scale.
# height: 390
set logscale xy
set xrange [0.02:4]
set yrange [4:1000]
set xtics (0.02,0.05,0.1,0.2,0.5,1,2,4)
set ytics (5,10,20,50,100,200,500,1000)
set xlabel "fixed η (units of 1/σ₁²)"
set ylabel "steps until within 1° of v₁"
set label 1 "too long beyond" at 2.381,60 left rotate by 90 offset 0.8,0
set arrow 1 from 2.381,4 to 2.381,1000 nohead dt 2 lc rgb "#808080"
set key maxcols 1
plot "sphere-steps.csv" using 1:2 with lines ls 2 title "Eq. 9 with this η", \
  "" using 1:3 with lines ls 2 dt 2 title "the same, weights doubled", \
  "" using 1:4 with lines ls 1 title "MPI, both weights"
