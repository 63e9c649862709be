# title: The ascent on the sphere of rows
# caption: The shade is the Rayleigh quotient ρ, in units of σ₁²; its top is v₁. MPI and Eq. 9 with η = 1/ρ are one path. A
# caption: longer fixed η is quicker here, a shorter one slower; both have to be chosen.
# height: 450
set view 60,145,1.3
set view equal xyz
unset border
unset tics
unset grid
set cblabel "ρ (units of σ₁²)" offset 0,0.6
set colorbox horizontal user origin 0.25,0.27 size 0.5,0.025
set cbtics 0.2 out
set palette defined (0 "#fbf8ee", 1 "#8db4e4")
set cbrange [0:1]
set hidden3d front
set pm3d depthorder border lc rgb "#c8d0da" lw 0.2
set xrange [-1.1:1.1]
set yrange [-1.1:1.1]
set zrange [-1.1:1.1]
set lmargin at screen 0.02
set rmargin at screen 0.98
set tmargin at screen 0.97
set bmargin at screen 0.33
set label 1 "v₁ (the top)" at 0,0,1.28 center front
set label 2 "v₂" at 1.28,0,0 center front
set label 3 "v₃" at 0,1.28,0 center front tc rgb "#404850"  # it lies on the sphere
lift = 1.06
path = "sphere-path.csv"
splot "sphere-landscape.csv" using 2:3:1:4 with pm3d notitle, \
  path using (lift*$4):(lift*$5):($1==0 ? lift*$3 : NaN) with linespoints lw 2 pt 7 ps 0.8 lc rgb "#3b7fd4" title "MPI", \
  "" using (lift*$4):(lift*$5):($1==1 ? lift*$3 : NaN) with points lw 1.5 pt 6 ps 1.4 lc rgb "#a05ac8" title "Eq. 9, η = 1/ρ", \
  "" using (lift*$4):(lift*$5):($1==3 ? lift*$3 : NaN) with linespoints lw 2 pt 4 ps 0.7 lc rgb "#2a9058" title "η = 0.5/σ₁²", \
  "" using (lift*$4):(lift*$5):($1==5 ? lift*$3 : NaN) with linespoints lw 2 pt 8 ps 0.9 lc rgb "#dd4048" title "η = 2/σ₁²"
