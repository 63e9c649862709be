# Takes the solutions of docs/lecture-exercises.md together: each ```c++ block is a program, whose main becomes
# exercise_N, in `program`, with a main that runs them all; the plain block behind each is what it prints, in `printed`.
BEGIN { printf "" > program; printf "" > printed }
/^```/ {
  if (inside) {
    behind = taken == program ? NR + 1 : 0
    taken = ""
    inside = 0
  } else {
    inside = 1
    if ($0 == "```c++") { taken = program; ++count }
    else if ($0 == "```" && NR == behind) taken = printed
  }
  next
}
taken { sub(/^int main\(\)/, "int exercise_" count "()"); print > taken }
END {
  print "int main() {\n  int failed = 0;" > program
  for (i = 1; i <= count; ++i) print "  failed += exercise_" i "();" > program
  print "  return " (count == 10 ? "failed" : "99") ";\n}" > program
}
