# Sourced by ./rlv and the scripts with $root set: makes a clone ready to run, and says nothing when it is.
# POSIX sh. Sets $bun to the pinned Bun.

bun="$root/node_modules/.bin/bun"
stamp_lock="$root/node_modules/.rlv-package-lock.json"
case "$(uname -s)" in
  Darwin) native_library="$root/build/librlv.dylib" ;;
  *) native_library="$root/build/librlv.so" ;;
esac

fail() {
  printf 'rlv: error: %s\n' "$1" >&2
  exit 1
}

# Two commands started at once must not install or build over each other.
take_setup_lock() {
  mkdir -p "$root/build"
  setup_lock="$root/build/.tmp-setup"
  until mkdir "$setup_lock" 2>/dev/null; do
    holder=$(cat "$setup_lock/pid" 2>/dev/null || true)
    if [ -n "$holder" ] && ! kill -0 "$holder" 2>/dev/null; then rm -rf "$setup_lock"; else sleep 0.2; fi
  done
  echo $$ >"$setup_lock/pid"
  trap 'rm -rf "$setup_lock"' EXIT
  trap 'exit 130' INT TERM
}

drop_setup_lock() {
  rm -rf "$setup_lock"
  trap - EXIT INT TERM
}

packages_ready() {
  [ -x "$bun" ] && cmp -s "$root/package-lock.json" "$stamp_lock"
}

install_packages() {
  packages_ready && return 0
  take_setup_lock
  if ! packages_ready; then
    log="$root/build/install.log"
    echo "rlv: installing the locked packages (once)" >&2
    if command -v npm >/dev/null 2>&1; then
      (cd "$root" && npm ci --no-audit --no-fund) >"$log" 2>&1 ||
        { tail -n 20 "$log" >&2; fail "npm ci failed: $log: check the network and run again"; }
    elif command -v bun >/dev/null 2>&1; then
      # Bun reads package-lock.json and would leave its own lockfile beside it.
      (cd "$root" && bun install --no-save) >"$log" 2>&1 ||
        { tail -n 20 "$log" >&2; fail "bun install failed: $log: check the network and run again"; }
    else
      fail "npm or Bun is needed to install the locked packages: PATH: install Node.js (nodejs.org) or Bun (bun.sh)"
    fi
    # npm may be told not to run install scripts; Bun's only puts its program in place.
    "$bun" --version >/dev/null 2>&1 ||
      (cd "$root/node_modules/bun" && node install.js) >>"$log" 2>&1 || true
    "$bun" --version >/dev/null 2>&1 || fail "the pinned Bun does not start: $bun: see $log"
    cp "$root/package-lock.json" "$stamp_lock"
  fi
  drop_setup_lock
}

# The library is older than a source, a folder of sources (files added or removed) or its builder.
native_stale() {
  [ -f "$native_library" ] || return 0
  elsewhere="$root/metal/apple"
  [ "$(uname -s)" = Darwin ] && elsewhere="$root/metal/soft"
  [ -n "$(find "$root/metal" "$root/scripts/native.ts" \
    \( -path "$root/metal/soft" -o -path "$elsewhere" \) -prune \
    -o -newer "$native_library" -print 2>/dev/null | head -n 1)" ]
}

build_native() {
  native_stale || return 0
  take_setup_lock
  if native_stale; then "$bun" "$root/scripts/native.ts" --quiet || exit $?; fi
  drop_setup_lock
}

# The bundled page is older than a source of it, the packages it contains or its builder.
web_stale() {
  [ -f "$root/build/web/content.json" ] || return 0
  [ -n "$(find "$root/src/web" "$root/package-lock.json" "$root/scripts/build-web.ts" \
    -newer "$root/build/web/content.json" -print 2>/dev/null | head -n 1)" ]
}

build_web() {
  web_stale || return 0
  take_setup_lock
  if web_stale; then "$bun" "$root/scripts/build-web.ts" --quiet || exit $?; fi
  drop_setup_lock
}
