#!/bin/sh
# Installs rlv @VERSION@: fetches the archive for this machine, checks its SHA-256, and puts the program, its page of
# the manual and its completions below PREFIX (~/.local).
#
#   sh install.sh
#   PREFIX=/usr/local sh install.sh
#   RLV_URL=https://mirror.example/rlv sh install.sh     archives from another place; they must be the very same
set -eu

url=${RLV_URL:-@URL@}
prefix=${PREFIX:-${HOME:?}/.local}

hash_of() {
  case "$1" in
    # @HASHES@
    *) return 1 ;;
  esac
}

fail() {
  printf 'rlv: error: %s\n' "$1" >&2
  exit 1
}

platform() {
  case "$(uname -s)" in
    Linux) system=linux ;;
    Darwin) system=darwin ;;
    *) fail "no program for $(uname -s): uname: Linux and macOS have one" ;;
  esac
  case "$(uname -m)" in
    x86_64 | amd64) processor=x64 ;;
    aarch64 | arm64) processor=arm64 ;;
    *) fail "no program for $(uname -m): uname: x86-64 and arm64 have one" ;;
  esac
  printf '%s-%s\n' "$system" "$processor"
}

fetch() {
  if command -v curl >/dev/null 2>&1; then
    curl -fsSL --retry 3 -o "$2" "$1"
  elif command -v wget >/dev/null 2>&1; then
    wget -q -O "$2" "$1"
  else
    fail "curl or wget is needed: PATH: install one of them"
  fi || fail "cannot fetch: $1: check the network"
}

sha256_of() {
  if command -v sha256sum >/dev/null 2>&1; then
    sha256sum "$1"
  elif command -v shasum >/dev/null 2>&1; then
    shasum -a 256 "$1"
  else
    fail "sha256sum or shasum is needed to check what was fetched: PATH: install one of them"
  fi | cut -d ' ' -f 1
}

# A file appears whole or not at all; one that is running keeps its own.
place() {
  mkdir -p "$(dirname "$2")"
  cp "$1" "$2.tmp-$$"
  chmod "$3" "$2.tmp-$$"
  mv -f "$2.tmp-$$" "$2"
}

# In a function, so that a script that was cut off in its middle does nothing.
main() {
  target=$(platform)
  expected=$(hash_of "$target") || fail "no program for $target in this release: uname: build it from source"
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  trap 'exit 130' INT TERM
  file=rlv-@VERSION@-$target.tar.gz
  fetch "$url/$file" "$scratch/$file"
  found=$(sha256_of "$scratch/$file")
  [ "$found" = "$expected" ] ||
    fail "the archive is not the one that was released: $url/$file: expected $expected, got $found"
  tar -xzf "$scratch/$file" -C "$scratch" || fail "cannot unpack: $file: free some space"
  dir=$scratch/rlv-@VERSION@-$target
  "$dir/rlv" version >/dev/null ||
    fail "the program does not start here: $target: Linux needs glibc @GLIBC@ or later, macOS 14 or later"
  place "$dir/rlv" "$prefix/bin/rlv" 755
  place "$dir/rlv.1" "$prefix/share/man/man1/rlv.1" 644
  place "$dir/completions/rlv.bash" "$prefix/share/bash-completion/completions/rlv" 644
  place "$dir/completions/_rlv" "$prefix/share/zsh/site-functions/_rlv" 644
  place "$dir/completions/rlv.fish" "$prefix/share/fish/vendor_completions.d/rlv.fish" 644
  for notice in LICENSE THIRD_PARTY.txt; do
    place "$dir/$notice" "$prefix/share/doc/rlv/$notice" 644
  done
  printf 'rlv @VERSION@ is in %s\n' "$prefix/bin"
  case ":$PATH:" in
    *":$prefix/bin:"*) echo "begin with: rlv train" ;;
    *) printf 'add %s to your PATH, then begin with: rlv train\n' "$prefix/bin" ;;
  esac
}

main
