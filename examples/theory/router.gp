# title: A router: which expert a token goes to
# caption: Each dot is a token, coloured by the expert whose row r′ has the largest dot product with it;
# caption: a ring marks those that another expert had before the step. Grey: stored rows r. Thick: rows r′
# caption: after one step. Dashed: the lines of v₁.
# height: 500
set size ratio -1
set lmargin 4
set rmargin 1
set tmargin 0.5
set xtics 1
set ytics 1
set xrange [-1.7:1.7]
set yrange [-1.7:1.7]
set key maxcols 2

rows = "router-rows.csv"
tokens = "router-tokens.csv"
plot rows using (-1.6*$6):(-1.6*$7):(3.2*$6):(3.2*$7) with vectors nohead dt 2 lw 1 lc rgb "#808080" title "v₁ of each expert", \
  tokens using 1:($4==0 ? $2 : NaN) with points ls 1 title "tokens of expert 0", \
  "" using 1:($4==1 ? $2 : NaN) with points ls 2 title "of expert 1", \
  "" using 1:($4==2 ? $2 : NaN) with points ls 3 title "of expert 2", \
  "" using 1:($3!=$4 ? $2 : NaN) with points pt 6 ps 1.1 lc rgb "#dd4048" title "changed by the step", \
  rows using (0):(0):2:3 with vectors filled lw 2 lc rgb "#808080" title "row r, stored", \
  "" using ($1==0 ? 0 : NaN):(0):4:5 with vectors filled lw 4 lc rgb "#3b7fd4" title "row r′", \
  "" using ($1==1 ? 0 : NaN):(0):4:5 with vectors filled lw 4 lc rgb "#d0660a" notitle, \
  "" using ($1==2 ? 0 : NaN):(0):4:5 with vectors filled lw 4 lc rgb "#2a9058" notitle
