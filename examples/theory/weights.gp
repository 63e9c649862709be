# title: Eq. 6: weights, over the length of the rows
# caption: Softmax of the four largest logits of one token. The chosen stay the same at any length C of the rows; short rows
# caption: give all of them 1/K, long ones give the best one all. Dashed: what the four have in a softmax of all eight.
# height: 400
set logscale x
set xrange [0.1:100]
set yrange [0:1.05]
set xlabel "C′ = C√N"
set ylabel "weight"
set key maxcols 2
set arrow 1 from 4,0 to 4,1.05 nohead dt 3 lc rgb "#808080"
set label 1 "C′ = 4" at 4,0.99 right offset -0.4,0
plot "weights-curves.csv" using 1:2 with lines ls 1 title "the best", \
  "" using 1:3 with lines ls 2 title "the second", \
  "" using 1:4 with lines ls 3 title "the third", \
  "" using 1:5 with lines ls 4 title "the fourth", \
  "" using 1:($6+$7+$8+$9) with lines lw 2 dt 2 lc rgb "#808080" title "share of the four in all"
