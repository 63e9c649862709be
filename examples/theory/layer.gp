# title: A router row, and one step of MPI
# caption: Above: tokens x meet rows r′, which the step makes of the trained row r and the expert’s own gate matrix. Below:
# caption: rows of one length, shaded by how strongly the expert responds to tokens along them (ρ); the step goes up, towards v₁.
# height: 380
set multiplot
unset key
unset border
unset tics
unset grid

# Above: the layer. Lengths are pixels.
set lmargin at screen 0
set rmargin at screen 1
set bmargin at screen 0.445
set tmargin at screen 1
set xrange [0:480]
set yrange [42:255]
ink = "#808080"
box(n, x, y, w, h, color) = sprintf("set object %d rect from %g,%g to %g,%g fs empty border lc rgb '%s' lw 1.5", n, x, y, x + w, y + h, color)
eval box(1, 8, 196, 62, 30, "#808080")
eval box(2, 122, 172, 112, 78, "#3b7fd4")
eval box(3, 122, 62, 112, 60, "#d0660a")
eval box(4, 8, 77, 62, 30, "#808080")
eval box(5, 290, 226, 128, 26, "#2a9058")
eval box(6, 290, 192, 128, 26, "#808080")
eval box(7, 290, 150, 128, 26, "#2a9058")
set label 1 "token x" at 39,211 center
set label 2 "rows r′" at 178,236 center tc rgb "#3b7fd4"
set label 3 "logits ⟨x, r′⟩" at 178,211 center
set label 4 "top K experts" at 178,186 center
set label 5 "the step" at 178,106 center tc rgb "#d0660a"
set label 6 "r′ = C rM/‖rM‖" at 178,80 center font ",14"
set label 7 "row r" at 39,92 center
set label 8 "trained" at 39,64 center font ",13"
set label 9 "expert 1" at 354,239 center
set label 10 "expert 2" at 354,205 center
set label 11 "expert N" at 354,163 center
set label 12 "M = AᵀA of its gate matrix A" at 244,60 left font ",14"
set label 13 "y" at 464,205 center
set label 14 "⋮" at 354,185 center
set style arrow 1 head filled size 9,20 fixed lw 1.5 lc rgb "#808080"
set style arrow 2 head filled size 9,20 fixed lw 2 lc rgb "#d0660a"
set arrow from 70,211 to 120,211 as 1
set arrow from 234,211 to 288,238 as 1
set arrow from 234,211 to 288,165 as 1
set arrow from 418,238 to 454,212 as 1
set arrow from 418,165 to 454,198 as 1
set arrow from 178,122 to 178,170 as 2
set arrow from 70,92 to 120,92 as 2
set arrow from 354,150 to 354,92 nohead lw 2 lc rgb "#d0660a"
set arrow from 354,92 to 236,92 as 2
plot '+' using 1:(NaN) notitle

# Below: the sphere.
unset object
unset label
unset arrow
set lmargin at screen 0.05
set rmargin at screen 0.95
set bmargin at screen -0.45
set tmargin at screen 0.52
set view 75,222,1.85
set view equal xyz
set palette defined (0 "#fbf8ee", 1 "#8db4e4")
set cbrange [0:1]
unset colorbox
set hidden3d front
set pm3d depthorder border lc rgb "#c8d0da" lw 0.2
set xrange [-1.1:1.1]
set yrange [-1.1:1.1]
set zrange [0:1.1]
points = "layer-points.csv"
lift = 1.04
at(k, column) = real(system(sprintf("awk -F, 'NR == %d { print $%d }' %s", k + 2, column, points)))
set label 1 "v₁" at 0,0,1.2 center front
set label 2 "r" at lift*at(0,2),lift*at(0,3),lift*at(0,1) left front offset 0.8,-0.4 tc rgb "#1f2328"
set label 3 "r′" at lift*at(2,2),lift*at(2,3),lift*at(2,1) left front offset 0.8,-0.6 tc rgb "#1f2328"
set label 4 "r + g/ρ" at lift*at(1,2),lift*at(1,3),lift*at(1,1)+0.1 right front
set arrow 1 from lift*at(0,2),lift*at(0,3),lift*at(0,1) to lift*at(1,2),lift*at(1,3),lift*at(1,1) front head filled size 0.07,20 lw 2.5 lc rgb "#d0660a"
set arrow 2 from lift*at(1,2),lift*at(1,3),lift*at(1,1) to lift*at(2,2),lift*at(2,3),lift*at(2,1) front head filled size 0.07,20 lw 2 dt 2 lc rgb "#d0660a"
splot "layer-landscape.csv" using 2:3:1:4 with pm3d notitle, \
  "layer-arc.csv" using (lift*$2):(lift*$3):(lift*$1) with lines lw 3 lc rgb "#3b7fd4" notitle
unset multiplot
