# title: A small gap: what is true, and what is proven
# caption: To the right the gap shrinks to 0. There two starts end in two directions: with a repeated σ₁ there is no one
# caption: direction to find. The certificate's bound always lies above the true angle; 90° claims nothing.
# height: 410
set xlabel "gap 1 − κ = (σ₁ − σ₂)/σ₁ (dimensionless)"
set ylabel "angle (degrees)"
set logscale xy
set format "10^{%T}"
set xrange [1:1e-17]
set xtics ("1" 1, "10^{-3}" 1e-3, "10^{-6}" 1e-6, "10^{-9}" 1e-9, "10^{-12}" 1e-12, "0" 1e-17)
set yrange [1e-14:1000]
set key maxcols 1
at_gap(g) = g > 0 ? g : 1e-17
plot "gap-certificates.csv" using (at_gap($1)):4 with linespoints ls 1 ps 0.8 title "certificate: at most", \
  "" using (at_gap($1)):3 with points ls 3 title "true angle to v₁", \
  "" using (at_gap($1)):2 with points ls 5 title "between the ends of two starts"
