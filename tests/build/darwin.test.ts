/** The program for macOS that Linux makes: nothing here can start it, so its files are read as the system would. */
import { afterAll, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { darwinProblems, interfaceSymbols, systemLibraries } from "../../scripts/cross-darwin.ts";
import { readMachO } from "../../scripts/mach-o.ts";
import { findSdkLinkedLibrary, metalCppLicence } from "../../scripts/metal-cpp.ts";
import { MissingTool } from "../../scripts/tool-cache.ts";
import { findZig } from "../../scripts/zig.ts";

const root = resolve(import.meta.dir, "../..");
const out = join(root, "build/darwin-arm64");
const library = join(out, "librlv.dylib");
const program = join(root, "dist/rlv-darwin-arm64");

const METAL = "/System/Library/Frameworks/Metal.framework/Versions/A/Metal";
const FOUNDATION = "/System/Library/Frameworks/Foundation.framework/Versions/C/Foundation";
const OBJC = "/usr/lib/libobjc.A.dylib";
const SYSTEM = "/usr/lib/libSystem.B.dylib";

const scratch = mkdtempSync(join(tmpdir(), "rlv-darwin-"));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

/** Builds what is not up to date, which the script knows; without its tools there is nothing to test. */
function build(): { code: number | null; said: string; missing: string | null } {
  // On a Mac the system itself loads what it is given, and this target is the host's program.
  if (process.platform !== "linux") return { code: null, said: "", missing: "cross-built on Linux only" };
  const command = [join(root, "scripts/build"), "--target", "darwin-arm64"];
  const { exitCode, stderr } = Bun.spawnSync(command, { cwd: root, stdout: "ignore", timeout: 300_000 });
  const said = stderr.toString();
  const missing = exitCode === 0 ? null : /^.*(cannot fetch|fetched by pip|no Zig is pinned).*$/m.exec(said);
  return { code: exitCode, said, missing: missing?.[0] ?? null };
}

/** What the SDK's own linker wrote for the same headers. */
function sdkLinked(): { path: string; missing: string | null } {
  try {
    return { path: findSdkLinkedLibrary(), missing: null };
  } catch (error) {
    if (error instanceof MissingTool) return { path: "", missing: error.message };
    throw error;
  }
}

const built = build();
const sdk = built.missing === null ? sdkLinked() : { path: "", missing: built.missing };
if (built.missing !== null) process.stdout.write(`skip the program for macOS: ${built.missing}\n`);
else if (sdk.missing !== null) process.stdout.write(`skip the comparison with Apple's SDK: ${sdk.missing}\n`);

/** A copy of the library in which `from` is `to`, of the same length, where it comes first. */
function damaged(from: Buffer, to: Buffer): string {
  const bytes = readFileSync(library);
  const at = bytes.indexOf(from);
  expect(at).toBeGreaterThanOrEqual(0);
  expect(to.length).toBe(from.length);
  to.copy(bytes, at);
  const path = join(scratch, "damaged.dylib");
  writeFileSync(path, bytes);
  return path;
}

/** Every word of the C headers that Apple publishes, which Zig has with it. */
function publicWords(): Set<string> {
  const folder = join(dirname(findZig()), "lib/libc/include/any-darwin-any");
  const words = new Set<string>();
  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true }))
    if (entry.isFile())
      for (const [word] of readFileSync(join(entry.parentPath, entry.name), "utf8").matchAll(/\w+/g))
        words.add(word);
  return words;
}

/** No header declares these: the compiler and the C++ runtime call them, in Apple's own builds too. */
const OF_THE_COMPILER =
  /^(dyld_stub_binder|___cxa_atexit|__Unwind_[A-Z][A-Za-z]+|__availability_version_check)$/;

describe.skipIf(built.missing !== null)("the program for macOS", () => {
  test("scripts/build makes it", () => {
    expect(built.code, built.said).toBe(0);
  });

  test("the library is for Apple Silicon and macOS 14, by a name that its loader need not know", () => {
    const { arch, kind, platform, minimumOs, installName, searchPaths } = readMachO(library);
    expect({ arch, kind, platform, minimumOs, installName, searchPaths }).toEqual({
      ...{ arch: "arm64", kind: "library", platform: "macos", minimumOs: "14.0" },
      ...{ installName: "@rpath/librlv.dylib", searchPaths: [] },
    });
    expect(darwinProblems(library)).toEqual([]);
  });

  test("it exports the interface that the program looks up, and nothing else", () => {
    // Zig's linker adds two of its own.
    const own = readMachO(library).exports.filter((name) => !/^_+(dso_handle|mh_dylib_header)$/.test(name));
    const source = readFileSync(join(root, "src/device/lib.ts"), "utf8");
    const wanted = [...source.matchAll(/^ {2}(rlv_\w+): \{ args/gm)].map((match) => `_${match[1]}`).sort();
    expect(wanted.length).toBeGreaterThan(10);
    expect(own).toEqual(wanted);
    expect(own).toEqual(interfaceSymbols());
  });

  test("it needs Metal, Foundation, the Objective-C runtime and libSystem alone", () => {
    expect([...readMachO(library).libraries].sort()).toEqual([FOUNDATION, METAL, SYSTEM, OBJC]);
    const listed = systemLibraries().map((each) => each.installName);
    expect(listed.sort()).toEqual([FOUNDATION, METAL, OBJC]);
  });

  test("every import is listed in symbols.txt or public in libSystem", () => {
    const listed = new Map(systemLibraries().map((each) => [each.installName, new Set(each.symbols)]));
    const words = publicWords();
    // A name that is only declared in private headers is in none of these.
    expect([words.has("pthread_create"), words.has("pthread_chdir_np")]).toEqual([true, false]);
    const { imports } = readMachO(library);
    expect(new Set(imports.map((each) => each.library))).toEqual(new Set([METAL, FOUNDATION, OBJC, SYSTEM]));
    const foreign = imports.filter(({ symbol, library }) =>
      library === SYSTEM
        ? !words.has(symbol.replace(/^_/, "")) && !OF_THE_COMPILER.test(symbol)
        : !listed.get(library)!.has(symbol),
    );
    expect(foreign).toEqual([]);
  });

  test.skipIf(sdk.missing !== null)("a library linked with Apple's SDK has the same imports", () => {
    const theirs = new Map(readMachO(sdk.path).imports.map((each) => [each.symbol, each]));
    const listed = systemLibraries().flatMap(({ installName, symbols }) =>
      symbols.map((symbol) => ({ symbol, library: installName })),
    );
    expect(listed.filter(({ symbol }) => theirs.has(symbol)).length).toBeGreaterThan(40);
    // The system looks a name up in the library it is said to come from and nowhere else.
    const misplaced = listed.filter(
      ({ symbol, library }) => (theirs.get(symbol)?.library ?? library) !== library,
    );
    expect(misplaced).toEqual([]);
    // Some names are younger than macOS 14; without the mark the library would not load there.
    const strong = readMachO(library).imports.filter(
      ({ symbol, library, weak }) => library !== SYSTEM && !weak && theirs.get(symbol)?.weak,
    );
    expect(strong).toEqual([]);
  });

  test("the program runs where the library does, and both are signed over every page", () => {
    const { arch, kind, platform, minimumOs, signature } = readMachO(program);
    expect({ arch, kind, platform }).toEqual({ arch: "arm64", kind: "program", platform: "macos" });
    // Bun's own; the library's decides.
    expect(Number(minimumOs)).toBeLessThanOrEqual(14);
    for (const each of [signature, readMachO(library).signature])
      expect(each).toMatchObject({ adHoc: true, problems: [] });
  });

  test("the program carries the library byte for byte, its hash, and the licence beside it", () => {
    const bytes = readFileSync(library);
    const whole = readFileSync(program);
    expect(whole.indexOf(bytes)).toBeGreaterThan(0);
    // The program refuses a library with another hash.
    expect(whole.includes(createHash("sha256").update(bytes).digest("hex"))).toBe(true);
    const licence = readFileSync(join(root, "dist/LICENSE-metal-cpp.txt"), "utf8");
    expect(licence).toBe(readFileSync(metalCppLicence(), "utf8"));
    expect(licence).toMatch(/Apache License\s+Version 2\.0/);
  });

  test("one damaged byte is found, wherever it lies", () => {
    const bytes = readFileSync(library);
    const path = join(scratch, "byte.dylib");
    const page = 16384;
    // Behind the load commands, within the code, in the table of strings before the signature.
    for (const at of [page - 1, bytes.length >> 1, bytes.lastIndexOf("_rlv_open")]) {
      const copy = Buffer.from(bytes);
      copy[at]! ^= 1;
      writeFileSync(path, copy);
      expect(readMachO(path).signature?.problems).toEqual([`page ${Math.floor(at / page)}`]);
      expect(darwinProblems(path).join("\n")).toMatch(/pages that differ/);
    }
  });

  const text = (value: string) => Buffer.from(value);
  const minimum = (major: number) => Buffer.from([0x32, 0, 0, 0, 32, 0, 0, 0, 1, 0, 0, 0, 0, 0, major, 0]);
  test.each([
    ["processor", Buffer.from([0xcf, 0xfa, 0xed, 0xfe, 12]), Buffer.from([0xcf, 0xfa, 0xed, 0xfe, 7])],
    ["system", minimum(14), minimum(15)],
    ["install name", text("@rpath/librlv.dylib"), text("@rpath/librlw.dylib")],
    ["libraries", text("libobjc.A.dylib"), text("libobjc.B.dylib")],
  ] as [string, Buffer, Buffer][])("damage is found: %s", (what, from, to) => {
    expect(darwinProblems(damaged(from, to)).join("\n")).toMatch(new RegExp(`^${what}: `, "m"));
  });

  test("a misspelt name does not link", () => {
    const link = (name: string) => {
      const source = join(scratch, `${name}.cpp`);
      writeFileSync(source, `extern "C" void* ${name}();\nextern "C" void* use() { return ${name}(); }\n`);
      const compiler = [join(out, "c++"), "-target", "aarch64-macos.14.0", "-mcpu=apple_m1"];
      const object = join(scratch, `${name}.o`);
      const compiled = Bun.spawnSync([...compiler, "-O3", "-c", source, "-o", object]);
      expect(compiled.exitCode, compiled.stderr.toString()).toBe(0);
      // Linked by itself and stripped, as the library is: Zig makes its C++ library anew for other flags, for a minute.
      const stubs = ["-F", join(out, "stubs"), "-framework", "Metal"];
      const path = join(scratch, `${name}.dylib`);
      const { exitCode, stderr } = Bun.spawnSync([
        ...compiler,
        object,
        "-shared",
        "-s",
        ...stubs,
        "-o",
        path,
      ]);
      return { exitCode, said: stderr.toString(), path };
    };
    const right = link("MTLCreateSystemDefaultDevice");
    expect(right.exitCode, right.said).toBe(0);
    const { imports } = readMachO(right.path);
    expect(imports.find((each) => each.library === METAL)?.symbol).toBe("_MTLCreateSystemDefaultDevice");
    const wrong = link("MTLCreateSystemDefaultDevise");
    expect(wrong.exitCode).not.toBe(0);
    expect(wrong.said).toContain("undefined symbol: _MTLCreateSystemDefaultDevise");
  });
});
