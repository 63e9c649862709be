# title: Eq. 7: the logits keep their size over N
# caption: With C = C′/√N the N logits of a token, taken as one vector, are as long for 4 experts as for 1024. With a C that
# caption: stays they grow with √N. A single logit is 1/√N of its vector, and never above C′√(D/N).
# height: 430
set logscale xy 2
set xrange [3:1400]
set xtics (4,16,64,256,1024)
set yrange [0.06:64]
set ytics (0.125,0.25,0.5,1,2,4,8,16,32)
set xlabel "experts N"
set ylabel "root mean square"
set key maxcols 1
plot "logits-sizes.csv" using 1:3 with linespoints ls 5 title "length of the vector, C stays", \
  "" using 1:2 with linespoints ls 1 title "length of the vector, C = C′/√N", \
  "" using 1:4 with linespoints ls 3 title "one logit, C = C′/√N", \
  "" using 1:7 with lines lw 1.5 dt 2 lc rgb "#808080" title "bound C′√(D/N) of one logit", \
  "" using 1:6 with points ls 2 title "the largest seen, C = C′/√N"
