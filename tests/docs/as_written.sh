#!/usr/bin/env bash
# as_written.sh ROOT BUILD PROGRAM: compiles and runs PROGRAM.cpp or .c by the line PROGRAM.run of its page, typed by somebody who
# stands in the project's folder, and compares what it prints with PROGRAM.out.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ln -s "$1"/{include,examples} "$work"
ln -s "$2" "$work/build"
for suffix in cpp c; do
  if [[ -e $3.$suffix ]]; then cp "$3.$suffix" "$work/program.$suffix"; fi
done
line=$(<"$3.run")
for word in $line; do # a compiler, a launcher or a library that is not here
  case $word in
    g++ | cc | mpicxx | mpirun) command -v "$word" >/dev/null || { echo "skipped: $word is not installed" && exit 77; } ;;
    *PREFIX/*) echo "skipped: PREFIX is the reader's" && exit 77 ;;
    -lmpi_router_*) compgen -G "$2/lib${word#-l}.*" >/dev/null || { echo "skipped: $word was not built" && exit 77; } ;;
  esac
done
cd "$work"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
bash -ec "$line" >printed
if [[ -e $3.out ]]; then diff "$3.out" printed; fi
