# Sourced by the other scripts: installs what a fresh Debian 12 or Ubuntu 24.04 lacks. Nothing is assumed but bash,
# apt and dpkg, and sudo for those who are not root. All words go to stderr, so that stdout is the program's own.

say() { printf '%s\n' "$*" >&2; }

# install_packages <purpose> <package>…: installs those of the packages that are missing, after saying so.
install_packages() {
  local purpose=$1 package missing=()
  shift
  if ! command -v dpkg-query >/dev/null; then
    say "This is not a Debian or Ubuntu system. Please see to it that these, or their like, are installed: $*"
    return 0
  fi
  for package in "$@"; do
    case $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) in
      installed) ;;
      *) missing+=("$package") ;;
    esac
  done
  if ((${#missing[@]} == 0)); then return 0; fi
  if [[ -n ${MPIROUTER_INSTALL_NOTHING-} ]]; then # a test
    say "skipped: not installed: ${missing[*]}"
    exit 77
  fi

  local as_root=()
  if ((EUID != 0)); then
    if ! command -v sudo >/dev/null; then
      say "Missing for $purpose: ${missing[*]}. Install them as root; there is no sudo here."
      return 1
    fi
    as_root=(sudo)
  fi
  say "Installing for $purpose, with apt: ${missing[*]}"
  "${as_root[@]}" apt-get update -qq >&2 || say "apt-get update failed; going on with the lists that are here"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    -o Dpkg::Use-Pty=0 "${missing[@]}" >&2
}

# What every build needs.
build_packages=(g++ cmake ninja-build)
# Header-only libraries, and the small one of the programs.
library_packages=(libeigen3-dev libxsimd-dev nlohmann-json3-dev libcli11-dev libfmt-dev)
# Sphinx with its reader of Markdown and its theme, doxygen with a theme, and what the slides need.
site_packages=(python3-sphinx python3-myst-parser furo doxygen doxygen-awesome-css pandoc librsvg2-bin)

# The compiler cache is used where it is there, and by all clones alike. It learns from the compiler what a source includes:
# to run the preprocessor first costs what is not in the cache a third of a second each.
CCACHE_BASEDIR=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
export CCACHE_BASEDIR CCACHE_NOHASHDIR=1 CCACHE_DEPEND=1
launcher_options() {
  if command -v ccache >/dev/null; then printf '%s\n' -DCMAKE_CXX_COMPILER_LAUNCHER=ccache; fi
}
