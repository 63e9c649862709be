# Takes the programs of a page apart: the n-th ```cpp, ```cuda or ```c block is n.cpp, n.cu or n.c in `folder`, and a plain block
# right behind it what a terminal shows: lines that begin with "$ ", n.run, compile and run it; all others, n.out, it prints.
/^```/ {
  if (inside) {
    if (program) behind = NR + 1
    inside = program = 0
    file = run = ""
  } else {
    inside = 1
    program = /^```(cpp|cuda|c)$/
    if (program) file = folder "/" ++count (/cuda/ ? ".cu" : /cpp/ ? ".cpp" : ".c")
    else if ($0 == "```" && NR == behind) {
      file = folder "/" count ".out"
      run = folder "/" count ".run"
    }
  }
  next
}
run && sub(/^\$ /, "") { print > run; next }
file { print > file }
