# title: How far a stateful row stays behind
# caption: Lines: κ²δ/(1 − κ²). Points: measured. The smaller the gap 1 − κ, the farther behind.
set xlabel "drift δ (degrees a time step)"
set ylabel "angle behind v₁ (degrees)"
set logscale xy
set xrange [0.008:2]
set yrange [0.002:20]
floors = "drift-floor.csv"
plot floors using ($1==0.95 ? $2 : NaN):3 with lines ls 5 title "κ = 0.95", \
  "" using ($1==0.9 ? $2 : NaN):3 with lines ls 4 title "κ = 0.9", \
  "" using ($1==0.8 ? $2 : NaN):3 with lines ls 1 title "κ = 0.8", \
  "" using ($1==0.5 ? $2 : NaN):3 with lines ls 3 title "κ = 0.5", \
  "" using ($1==0.95 ? $2 : NaN):4 with points ls 5 notitle, \
  "" using ($1==0.9 ? $2 : NaN):4 with points ls 4 notitle, \
  "" using ($1==0.8 ? $2 : NaN):4 with points ls 1 notitle, \
  "" using ($1==0.5 ? $2 : NaN):4 with points ls 3 notitle
