/**
 * The only dlopen and the only pointers of the program. bun:ffi validates nothing, so every symbol has one
 * typed wrapper here that checks what it passes.
 */
import { dlopen, FFIType, type Pointer, toArrayBuffer } from "bun:ffi";
import { createHash } from "node:crypto";
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  writeSync,
} from "node:fs";
import { dirname, join, resolve } from "node:path";
import { cacheDir, environment } from "../core/env.ts";
import { assert, DeviceError } from "../core/errors.ts";
import { VERSION } from "../core/version.ts";
import { ABI_HASH } from "./abi.gen.ts";
import { embeddedLibrary } from "./embedded.ts";

const { u32, i32, f64, ptr } = FFIType;
/** A typed array passed as itself: its storage cannot move during the call. */
const buffer = "buffer";

const symbols = {
  rlv_abi_hash: { args: [buffer, u32], returns: u32 },
  rlv_open: { args: [buffer, u32], returns: u32 },
  rlv_close: { args: [u32], returns: FFIType.void },
  rlv_info: { args: [u32, buffer, u32], returns: u32 },
  rlv_buffer_new: { args: [u32, u32, buffer], returns: u32 },
  rlv_buffer_free: { args: [u32, u32], returns: u32 },
  rlv_buffer_clear: { args: [u32, u32], returns: u32 },
  rlv_buffer_ptr: { args: [u32, u32], returns: ptr },
  rlv_submit: { args: [u32, buffer, u32], returns: u32 },
  rlv_wait: { args: [u32, u32, u32], returns: u32 },
  rlv_error: { args: [u32, buffer, u32], returns: u32 },
  rlv_stats: { args: [u32, buffer, u32], returns: u32 },
  rlv_profile: { args: [u32, buffer, u32, u32], returns: u32 },
  rlv_measure: { args: [u32, u32, f64], returns: f64 },
  rlv_ref_vjp: { args: [u32, buffer, u32, buffer, buffer], returns: u32 },
  rlv_fail_allocation: { args: [u32], returns: FFIType.void },
  rlv_read_file: { args: [u32, u32, u32, i32, f64, f64], returns: u32 },
  rlv_map_file: { args: [u32, i32, f64, f64, buffer], returns: u32 },
  rlv_fullsync: { args: [i32], returns: u32 },
  rlv_mpi_load: { args: [buffer, u32], returns: u32 },
  rlv_mpi_info: { args: [buffer, u32], returns: u32 },
  rlv_mpi_start: { args: [buffer, u32], returns: u32 },
  rlv_mpi_gather: { args: [buffer, u32, buffer, u32], returns: u32 },
  rlv_mpi_take: { args: [buffer, u32, u32], returns: u32 },
  rlv_mpi_sum: { args: [buffer, u32, u32], returns: u32 },
  rlv_mpi_wait: { args: [u32], returns: u32 },
  rlv_mpi_error: { args: [buffer, u32], returns: u32 },
  rlv_mpi_abort: { args: [u32], returns: FFIType.void },
  rlv_mpi_stop: { args: [], returns: u32 },
  rlv_exec_confined: { args: [buffer, u32, u32, u32, u32, f64, buffer, u32], returns: u32 },
} as const;

export type Library = ReturnType<typeof dlopen<typeof symbols>>["symbols"];

/** Copies the embedded library out, once per version and content; the hash is checked on every start. */
function extract(source: { path: string; sha256: string }): string {
  const suffix = process.platform === "darwin" ? "dylib" : "so";
  const target = join(cacheDir(), "lib", `${VERSION}-${source.sha256.slice(0, 16)}`, `librlv.${suffix}`);
  const digest = (data: Uint8Array) => createHash("sha256").update(data).digest("hex");
  if (existsSync(target) && digest(readFileSync(target)) === source.sha256) return target;
  const data = readFileSync(source.path);
  if (digest(data) !== source.sha256)
    throw new DeviceError("embedded library is damaged", source.path, "download rlv again");
  try {
    mkdirSync(dirname(target), { recursive: true });
    const temporary = `${target}.${process.pid}.tmp`;
    const fd = openSync(temporary, "w", 0o755);
    for (let at = 0; at < data.length; ) at += writeSync(fd, data, at, data.length - at);
    fsyncSync(fd);
    closeSync(fd);
    renameSync(temporary, target);
  } catch (error) {
    throw new DeviceError(
      `cannot extract the native library (${error instanceof Error ? error.message : error})`,
      target,
      "set XDG_CACHE_HOME to a writable folder, or RLV_LIB_PATH to the library",
    );
  }
  return target;
}

/** The ordinary library, or the one with the Metal device on software Metal. */
type Kind = "native" | "soft";

/** The file that is loaded; an embedded library is extracted first. */
export function libraryPath(kind: Kind): string {
  const suffix = process.platform === "darwin" ? "dylib" : "so";
  if (kind === "soft") return resolve(import.meta.dir, `../../build/librlv-soft.${suffix}`);
  const named = environment("RLV_LIB_PATH");
  if (named) return resolve(named);
  if (embeddedLibrary) return extract(embeddedLibrary);
  return resolve(import.meta.dir, `../../build/librlv.${suffix}`);
}

/** Software Metal belongs to a clone that has built it. */
export const softBuilt = (): boolean => existsSync(libraryPath("soft"));

const REMEDY: Readonly<Record<Kind, string>> = {
  native: "run ./rlv (builds it), or set RLV_LIB_PATH",
  soft: "software Metal is for a clone with clang 19 or later: run scripts/build-native --soft, or use --device cpu",
};

const counterSymbols = {
  soft_counting: { args: [u32], returns: FFIType.void },
  soft_sample_groups: { args: [u32], returns: FFIType.void },
  soft_counters: { args: [buffer, u32, u32], returns: u32 },
  soft_live_objects: { args: [], returns: u32 },
} as const;

/** What software Metal tells beside what a device tells: metal/soft/metal_exports.cpp. */
export function softCounters(): ReturnType<typeof dlopen<typeof counterSymbols>>["symbols"] {
  lib("soft");
  return dlopen(libraryPath("soft"), counterSymbols).symbols;
}

const libraries = new Map<Kind, Library>();

/** Loads a library on first use; it is never closed. */
export function lib(kind: Kind = "native"): Library {
  const known = libraries.get(kind);
  if (known) return known;
  const path = libraryPath(kind);
  if (!existsSync(path)) throw new DeviceError("native library not found", path, REMEDY[kind]);
  let loaded: Library;
  try {
    loaded = dlopen(path, symbols).symbols;
  } catch (error) {
    throw new DeviceError(
      `cannot load the native library (${error instanceof Error ? error.message : error})`,
      path,
      embeddedLibrary && kind === "native"
        ? "set XDG_CACHE_HOME to a folder whose files may be executed"
        : REMEDY[kind],
    );
  }
  const out = new Uint8Array(64);
  const length = loaded.rlv_abi_hash(out, out.length);
  const hash = new TextDecoder().decode(out.subarray(0, length));
  if (hash !== ABI_HASH) {
    throw new DeviceError(
      `native library speaks interface ${hash}, this program ${ABI_HASH}`,
      path,
      kind === "soft" ? "run scripts/build-native --soft" : "rebuild it with ./rlv, or unset RLV_LIB_PATH",
    );
  }
  libraries.set(kind, loaded);
  return loaded;
}

export function cString(text: string): Uint8Array {
  return new TextEncoder().encode(`${text}\0`);
}

/** Reads a text that a native function copies into a caller-owned buffer. */
export function readText(fill: (out: Uint8Array, capacity: number) => number): string {
  const out = new Uint8Array(4096);
  const length = Math.min(fill(out, out.length), out.length - 1);
  return new TextDecoder().decode(out.subarray(0, length));
}

/** A view on native memory. The caller owns the lifetime; ArrayBuffers end at 4 GiB, so large ranges are windows. */
export function nativeView(address: Pointer, offset: number, bytes: number): ArrayBuffer {
  assert(bytes <= 2 ** 31, `native view of ${bytes} bytes`);
  return toArrayBuffer(address, offset, bytes);
}

export type { Pointer };
