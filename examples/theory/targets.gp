# title: Rival targets: what a row could be
# caption: λ = 1 is v₁ itself. The mean of the neurons, the rows of A, costs one read and no step. An untrained
# caption: matrix has λ = 0.414, and 0.793 after a step. The share σ₁²/‖A‖_F² is all that any single direction can hold
# caption: of the gate matrix (Eckart–Young).
# height: 420
set style data histograms
set style histogram clustered gap 1
set style fill solid 0.85 noborder
set boxwidth 0.9
set yrange [0:1.05]
set ylabel "λ, or share (dimensionless)"
set xtics ("usual, 0" 0, "usual, 1" 1, "MPI, 0" 2, "MPI, 1" 3) scale 0
set xlabel "model, layer"
unset grid
set grid ytics lc rgb "#808080" lw 0.4 dt 3
plot "targets-layers.csv" using 3 lc rgb "#808080" title "λ of the stored row r", \
  "" using 4 lc rgb "#3b7fd4" title "λ of r′", \
  "" using 5 lc rgb "#d0660a" title "λ of the mean of the neurons", \
  "" using 9 lc rgb "#2a9058" title "share σ₁²/‖A‖_F²"
