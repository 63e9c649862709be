# title: One step size: from Oja's rule to too long
# caption: What tan θ is multiplied with at each step, near v₁. MPI is t = 1, with the factor κ², and has nothing to choose;
# caption: the best t and the longest that arrives both depend on the spectrum.
set xlabel "t = ηρ (dimensionless)"
set ylabel "factor on tan θ, a step"
set logscale x
set xrange [0.05:3]
set yrange [0:1.3]
set xtics (0.05,0.1,0.2,0.5,1,2)
set arrow 1 from 1,0 to 1,1.3 nohead dt 2 lc rgb "#808080"
set label 1 "MPI" at 1,0.04 left rotate by 90 offset -0.7,0
set arrow 2 from limit,0 to limit,1.3 nohead dt 2 lc rgb "#808080"
set label 2 "too long beyond" at limit,0.04 left rotate by 90 offset 0.9,0
plot "eta-rates.csv" using 1:2 with lines ls 2 title "theory", \
  "" using 1:3 with points ls 1 title "measured"
