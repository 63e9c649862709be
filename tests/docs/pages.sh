#!/usr/bin/env bash
# pages.sh ROOT: lines of the pages end at column 100, links lead somewhere, files and functions that the pages name exist, and
# every program of the guides says how it is compiled and what it prints.
set -euo pipefail
export LC_ALL=C.UTF-8
cd -- "$1"
failed=0
complain() {
  printf '%s\n' "$*"
  failed=1
}

found() { grep -oE "$1" || true; }
prose() { awk '/^ *```/ { code = !code; next } !code' "$1"; }

# The anchors of a page, as GitHub makes them from its headings.
anchors() { prose "$1" | sed -n 's/^##* //p' | tr '[:upper:]' '[:lower:]' | sed 's/[^[:alnum:] _-]//g; s/ /-/g'; }

exists() { # WORD PAGE: a file, a folder or a built library, from the root or from include/
  [[ $1 == *.so || -e $1 || -e include/$1 || -e include/mpi_router/$1 ]] || complain "$2: there is no $1"
}

for page in README.md CHANGELOG.md docs/*.md; do
  # Tables, and words that are longer than a line, such as an address, cannot be wrapped.
  while IFS= read -r line; do
    [[ ${#line} -le 100 || $line != *[![:space:]]' '* ]] || complain "$page: longer than 100: $line"
  done < <(prose "$page" | grep -v '^ *|')

  while IFS= read -r link; do
    file=${link%%#*}
    target=$page
    if [[ -n $file ]]; then target=$(dirname "$page")/$file; fi
    if [[ ! -e $target ]]; then
      complain "$page: there is no $link"
    elif [[ $link == *#* ]]; then
      anchors "$target" | grep -xqF -- "${link#*#}" || complain "$page: no heading for $link"
    fi
  done < <(prose "$page" | found '\]\([^)]+\)' | sed '/^](https*:/d; s/^](//; s/)$//')

  [[ $page != CHANGELOG.md ]] || continue # it names what is gone
  while IFS= read -r word; do
    exists "$word" "$page"
  done < <({
    found '(^|[^A-Za-z0-9_/.-])(\./)?(bench|cmake|docs|examples|include|scripts|tests|tools)/[A-Za-z0-9_./-]+' <"$page"
    found '(^|[^A-Za-z0-9_/.-])mpi_router/[a-z0-9_/]+\.(hpp|cuh)' <"$page"
    prose "$page" | found '`[a-z0-9_/]+/([a-z0-9_]+\.(hpp|cuh|cpp|cu))?`' | tr -d '`'
  } | sed 's/^[^A-Za-z.]//; s/[.,:]*$//' | sort -u)
done

# A program's block is followed by one whose first line is the command that compiles and runs it.
for page in README.md docs/guide-*.md; do
  complaints=$(awk '
    /^```/ {
      inside = !inside
      if (inside && ended) {
        if (NR == ended + 1 && $0 == "```") expected = NR + 1
        else print "line " ended
        ended = 0
      }
      if (!inside && program) ended = NR
      program = inside && /^```(cpp|c)$/
      next
    }
    NR == expected && !/^[$] / { print "line " NR }
    END { if (ended) print "line " ended }' "$page")
  [[ -z $complaints ]] || complain "$page: a program without its command and its output: $complaints"
done

# The functions that README's tables name are in the headers.
while IFS= read -r name; do
  grep -rqwF -- "$name" include python tools/verify_checkpoint || complain "README.md: there is no function $name"
done < <(grep '^|' README.md | found '`[a-z0-9]+_[a-z0-9_]+`' | tr -d '`' | sort -u)
exit "$failed"
