# title: Why v₁: the row with the longest image
# caption: Left, rows of length 1 and tokens live here. Right, what the gate matrix A makes of them: the circle becomes an
# caption: ellipse, whose long half axis σ₁ is the image of v₁. Each step turns the row nearer to v₁, and its image grows.
# height: 380
set multiplot
set size ratio -1
set xrange [-2.15:2.15]
set yrange [-2.15:2.15]
unset xtics
unset ytics
unset border
unset grid
set xzeroaxis lc rgb "#808080" lw 0.5
set yzeroaxis lc rgb "#808080" lw 0.5
set tmargin at screen 0.88
set bmargin at screen 0.4
set lmargin at screen 0.02
set rmargin at screen 0.48
set key at screen 0.02,0.3 left top vertical maxrows 4
set title "rows r (D dimensions)"
plot "ellipse-circle.csv" using 2:3 with lines lw 1.5 lc rgb "#808080" title "unit circle", \
  "ellipse-axes.csv" using (0):(0):1:2 with vectors filled lw 3 lc rgb "#2a9058" title "v₁", \
  "" using (0):(0):5:6 with vectors filled lw 1.5 lc rgb "#a05ac8" title "v₂", \
  "ellipse-path.csv" using 2:3 with linespoints ls 2 ps 0.8 title "r and four steps"
set lmargin at screen 0.52
set rmargin at screen 0.98
set key at screen 0.52,0.3 left top vertical maxrows 4
set title "images Ar (F neurons)"
plot "ellipse-circle.csv" using 4:5 with lines lw 1.5 lc rgb "#3b7fd4" title "image of the circle", \
  "ellipse-axes.csv" using (0):(0):3:4 with vectors filled lw 3 lc rgb "#2a9058" title "Av₁, length σ₁", \
  "" using (0):(0):7:8 with vectors filled lw 1.5 lc rgb "#a05ac8" title "Av₂, length σ₂", \
  "ellipse-path.csv" using 4:5 with linespoints ls 2 ps 0.8 title "their images"
unset multiplot
