# title: Eq. 3 and Eckart–Young: one best direction
# caption: ρ(r) and the squared error of the best matrix with the one row direction r add up to ‖A‖_F² at
# caption: every angle. So the row with the largest ρ is also that of the best approximation of A by rank one.
# height: 370
set xrange [0:180]
set xtics 30
set yrange [0:5.4]
set xlabel "direction of the row r (degrees)"
set ylabel "square of a length"
set arrow 1 from principal,0 to principal,5.4 nohead dt 2 lc rgb "#808080"
set label 1 "v₁" at principal,5.15 left offset 0.6,0
plot "ellipse-circle.csv" using 1:6 with lines ls 1 title "ρ(r) = ‖Ar‖²", \
  "" using 1:7 with lines ls 5 title "error ‖A − Ar rᵀ‖_F²", \
  "" using 1:($6+$7) with lines lw 1.5 dt 2 lc rgb "#808080" title "their sum, ‖A‖_F²", \
  "ellipse-path.csv" using 6:7 with points ls 2 ps 1 title "r and four steps"
