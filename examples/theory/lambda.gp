# title: One step lifts λ, but not the cosine
# caption: Nothing was ever trained here, so there is nothing to align with. λ is at 0.8 after one step; the row is still
# caption: nearly orthogonal to v₁.
# height: 370
set xlabel "step"
set ylabel "mean (dimensionless)"
set xrange [0:40]
set yrange [0:1]
set key maxcols 1
plot "lambda-steps.csv" using 1:2 with linespoints ls 1 title "λ = ‖rW‖/(‖r‖σ₁)", \
  "" using 1:3 with linespoints ls 5 title "cosine to v₁"
