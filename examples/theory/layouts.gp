# title: Layouts: where each named function looks
# caption: One strip of memory a layout, expert 0 above, expert 1 below it; the third line is the address in elements.
# height: 940
unset border
unset grid
unset ytics
unset xtics
set lmargin 1
set rmargin 1
set xrange [-0.6:11.6]
set yrange [-18.3:1.3]
set key maxcols 1
cell(e,up) = (up > 0) ? 0xd9d9d9 : ((e == 0) ? 0xcfe2f8 : 0xfbdcbf)
half(strip) = (strip < 2) ? 6 : 12
across(s,a) = a - half(s)*floor(a/half(s))
down(s,a) = -3.2*s - 1.15*floor(a/half(s))
set style textbox noborder
plot "layouts-cells.csv" using (across($1,$2)):(down($1,$2)):(0.48):(0.5):(cell($4,$3)) with boxxyerror fs solid border lc rgb "#666666" fc rgb variable notitle, \
  "" using (across($1,$2)):(down($1,$2)+0.29):(sprintf("f%d", $5)) with labels font ",14" tc rgb "#101418" notitle, \
  "" using (across($1,$2)):(down($1,$2)-0.02):(sprintf("d%d", $6)) with labels font ",14" tc rgb "#101418" notitle, \
  "" using (across($1,$2)):(down($1,$2)-0.33):(sprintf("%d", $2)) with labels font ",14" tc rgb "#404850" notitle, \
  NaN with boxes fs solid fc rgb "#cfe2f8" title "expert 0, gate", \
  NaN with boxes fs solid fc rgb "#fbdcbf" title "expert 1, gate", \
  NaN with boxes fs solid fc rgb "#d9d9d9" title "up (either expert)"
