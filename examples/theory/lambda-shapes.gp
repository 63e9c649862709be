# title: The null of λ: what an untrained matrix gives
# caption: Lines are limits for large matrices, points are measured. After one step the null is nowhere below 0.79: a λ
# caption: that MPI reaches has to be read beside it.
# height: 420
set xlabel "q = D/F (dimensionless)"
set ylabel "λ, or cosine (dimensionless)"
set logscale x 2
set xrange [0.1:10]
set yrange [0:1]
set xtics ("1/8" 0.125, "1/4" 0.25, "1/2" 0.5, "1" 1, "2" 2, "4" 4, "8" 8)
set key maxcols 1
stored(q) = 1/(1+sqrt(q))
one_step(q) = sqrt((1+3*q+q*q)/(1+q))/(1+sqrt(q))
plot one_step(x) with lines ls 3 title "limit of λ after one step", \
  stored(x) with lines ls 2 title "limit of λ before", \
  "lambda-shapes.csv" using 1:5 with points ls 3 title "λ after one step", \
  "" using 1:3 with points ls 2 title "λ before", \
  "" using 1:6 with points ls 5 title "cosine to v₁ after one step"
