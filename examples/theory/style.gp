# What all pictures share: numbers are CSV with a line of names; a quiet frame; colours that can be told apart on white and
# on black paper, with a contrast of at least 3 against both.
set datafile separator ","
set datafile missing ""
set datafile columnheaders
set border 3
set tics nomirror out scale 0.5
set grid lc rgb "#808080" lw 0.4 dt 3
set key outside below Left reverse samplen 2 maxcols 2 height 0.6 noenhanced
set xlabel offset 0,0.5
set style line 1 lw 2 pt 7 ps 0.6 lc rgb "#3b7fd4"
set style line 2 lw 2 pt 5 ps 0.6 lc rgb "#d0660a"
set style line 3 lw 2 pt 9 ps 0.8 lc rgb "#2a9058"
set style line 4 lw 2 pt 6 ps 1.2 lc rgb "#a05ac8"
set style line 5 lw 2 pt 8 ps 0.9 lc rgb "#dd4048"
set style line 6 lw 2 pt 4 ps 0.7 lc rgb "#808080"
