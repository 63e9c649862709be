# Sourced. page_programs ROOT FOLDER: the programs of README that include the umbrella and nothing else of the library, as
# FOLDER/N.cpp, and what they print as FOLDER/N.out.
page_programs() {
  rm -rf -- "$2"
  mkdir -p -- "$2"
  awk -v folder="$2" -f "$1/tests/docs/programs.awk" "$1/README.md"
  local program
  for program in "$2"/*; do
    if [[ $program != *.cpp && $program != *.out ]] || grep -q 'mpi_router/.*/' "${program%.*}.cpp"; then rm -- "$program"; fi
  done
  compgen -G "$2/*.cpp" >/dev/null || { echo "README has no program of the umbrella alone"; exit 1; }
}

# available COMPILER…: those that are here.
available() {
  local compiler
  for compiler in "$@"; do
    if command -v "$compiler" >/dev/null; then echo "$compiler"; fi
  done
}

# What callers add, such as -stdlib=libc++.
read -r -a added <<<"${CXXFLAGS:-}"
warnings=(-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror "${added[@]}")

# prints PROGRAM EXPECTED: it ends well, and prints what the file says where there is one.
prints() {
  "$1" >"$1.printed"
  if [[ -e $2 ]]; then diff "$2" "$1.printed"; fi
}
