/**
 * Zig, whose compiler and linker make programs for macOS on Linux without Apple's SDK.
 *
 *   bun scripts/zig.ts     fetches it if need be and prints the path of the program
 */
import { mkdirSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fail } from "./objects.ts";
import { MissingTool, toolsCache, unpackedWheel, type Wheel } from "./tool-cache.ts";

export const ZIG_VERSION = "0.17.0";

/** By process.platform and process.arch. */
const WHEELS: Readonly<Record<string, Pick<Wheel, "platform" | "sha256" | "megabytes">>> = {
  "linux-x64": {
    platform: "manylinux_2_12_x86_64",
    sha256: "97079827064a7492cce5541ceb438ae8003ce1e54e399676da2d62fb7a5dc08b",
    megabytes: 101,
  },
  "linux-arm64": {
    platform: "manylinux_2_17_aarch64",
    sha256: "d2804f94f54f7fcf8169f4b212a619ad688a4e2e6592e976f0cf2e58e2cd8af3",
    megabytes: 97,
  },
  "darwin-arm64": {
    platform: "macosx_13_0_arm64",
    sha256: "87274af689c4128051b26c80f6f676757e0a81c2fdc137fd8b5679e928e4bc4f",
    megabytes: 97,
  },
};

/** The zig program. Throws MissingTool. */
export function findZig(): string {
  const host = `${process.platform}-${process.arch}`;
  const wheel = WHEELS[host];
  if (wheel === undefined)
    throw new MissingTool(`no Zig is pinned for ${host}: scripts/zig.ts: build on Linux x64 or arm64`);
  const whole = { project: "ziglang", version: ZIG_VERSION, ...wheel };
  return join(unpackedWheel(whole, `zig-${ZIG_VERSION}`, "ziglang", ["zig"]), "zig");
}

/** findZig, ending the program with a remedy if it cannot be had. */
export function zig(): string {
  try {
    return findZig();
  } catch (error) {
    if (error instanceof MissingTool) fail(error.message);
    throw error;
  }
}

/** Writes a program that is Zig's C++ compiler to other programs, with its cache among the tools. */
export function writeZigCompiler(path: string): void {
  const cache = join(toolsCache(), `zig-${ZIG_VERSION}-cache`);
  const quoted = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;
  const script = [
    "#!/bin/sh",
    `export ZIG_GLOBAL_CACHE_DIR=${quoted(cache)} ZIG_LOCAL_CACHE_DIR=${quoted(cache)}`,
    `exec ${quoted(zig())} c++ "$@"`,
    "",
  ].join("\n");
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.tmp-${process.pid}`, script, { mode: 0o755 });
  renameSync(`${path}.tmp-${process.pid}`, path);
}

if (import.meta.main) process.stdout.write(`${zig()}\n`);
