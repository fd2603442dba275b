/**
 * Builds the native library for macOS on Apple Silicon with Zig, on a machine without Apple's SDK:
 *
 *   bun scripts/cross-darwin.ts     writes build/darwin-arm64/librlv.dylib and checks it (scripts/mach-o.ts)
 *
 * Zig brings the C and C++ libraries; metal-cpp needs two headers more (metal/apple/darwin/stubs) and the names of
 * what it takes from Metal, Foundation and the Objective-C runtime (metal/apple/darwin/symbols.txt).
 */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join, relative } from "node:path";
import { readMachO } from "./mach-o.ts";
import { metalCpp } from "./metal-cpp.ts";
import {
  ENTRY,
  interfaceNames,
  LANGUAGE,
  libraryParts,
  METAL_LIBRARIES,
  metalFlags,
  metalParts,
  type Part,
  unitOf,
} from "./native-sources.ts";
import { fail, Objects, root, type Unit } from "./objects.ts";
import { writeZigCompiler } from "./zig.ts";

const OUT = join(root, "build/darwin-arm64");
const DARWIN = join(root, "metal/apple/darwin");
const MINIMUM_OS = "14.0";
const INSTALL_NAME = "@rpath/librlv.dylib";
// The first processor that macOS ran on with Metal 3: every later one runs what it runs.
const TARGET = ["-target", `aarch64-macos.${MINIMUM_OS}`, "-mcpu=apple_m1"];

interface SystemLibrary {
  readonly installName: string;
  readonly symbols: readonly string[];
}

export function systemLibraries(): SystemLibrary[] {
  const libraries: { installName: string; symbols: string[] }[] = [];
  for (const line of readFileSync(join(DARWIN, "symbols.txt"), "utf8").split("\n")) {
    if (line === "" || line.startsWith("#")) continue;
    const [word, installName] = line.split(" ");
    if (word === "library") libraries.push({ installName: installName!, symbols: [] });
    else libraries.at(-1)!.symbols.push(word!);
  }
  return libraries;
}

/** A library as the linker sees it when there is only its list of names (tbd version 4). */
function textStub(library: SystemLibrary): string {
  return [
    "--- !tapi-tbd",
    "tbd-version: 4",
    "targets: [ arm64-macos ]",
    `install-name: '${library.installName}'`,
    "exports:",
    "  - targets: [ arm64-macos ]",
    `    symbols: [ ${library.symbols.join(", ")} ]`,
    "...",
    "",
  ].join("\n");
}

/** Writes the stubs where -F and -L find them and returns the linker's flags. */
function writeStubs(folder: string): string[] {
  for (const library of systemLibraries()) {
    const name = basename(library.installName).replace(/(\.A)?\.dylib$/, "");
    const framework = library.installName.includes(".framework/");
    const place = framework ? join(folder, `${name}.framework`) : folder;
    mkdirSync(place, { recursive: true });
    writeFileSync(join(place, `${name}.tbd`), textStub(library));
  }
  return ["-F", folder, "-L", folder, ...METAL_LIBRARIES];
}

function units(compiler: string): Unit[] {
  const metal = [...metalFlags(metalCpp()), "-isystem", join(DARWIN, "stubs")];
  const unit = (part: Part, flags: readonly string[]) =>
    unitOf(part, "arm64", join(OUT, "objects"), [compiler, ...TARGET, "-O3", "-g0", ...LANGUAGE], flags);
  return [
    ...libraryParts("arm64").map((part) => unit(part, part.source === ENTRY ? metal : [])),
    ...metalParts().map((part) => unit(part, metal)),
    unit({ source: join(DARWIN, "allocation.cpp") }, ["-fvisibility-global-new-delete=force-hidden"]),
  ];
}

/** The functions of the interface, as the linker names them. */
export function interfaceSymbols(): string[] {
  return interfaceNames().map((name) => `_${name}`);
}

/** Zig's linker exports these two of its own from every library; nobody looks them up. */
const OF_THE_LINKER = ["___dso_handle", "__mh_dylib_header"];

/** What is wrong with a library for macOS; empty if the system will take it and it exports what it should. */
export function darwinProblems(path: string): string[] {
  const file = readMachO(path);
  const problems: string[] = [];
  const expect = (what: string, found: unknown, wanted: unknown) => {
    if (!Bun.deepEquals(found, wanted))
      problems.push(`${what}: ${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`);
  };
  expect("processor", file.arch, "arm64");
  expect("kind", file.kind, "library");
  expect("system", `${file.platform} ${file.minimumOs}`, `macos ${MINIMUM_OS}`);
  expect("install name", file.installName, INSTALL_NAME);
  const system = ["/usr/lib/libSystem.B.dylib", ...systemLibraries().map((each) => each.installName)];
  expect("libraries", [...file.libraries].sort(), system.sort());
  expect("search paths", file.searchPaths, []);
  const own = file.exports.filter((name) => !OF_THE_LINKER.includes(name));
  expect("exports", own, interfaceSymbols());
  const nowhere = file.imports.filter((each) => each.library === "").map((each) => each.symbol);
  expect("symbols of no library", nowhere, []);
  // A program must not be able to replace parts of the library, nor the library parts of it: such a symbol is only
  // harmless if it is private here, and the library's own definition is the fallback.
  const foreign = file.coalesced.filter((name) => !file.defined.has(name) || file.exports.includes(name));
  expect("symbols shared with other libraries", foreign, []);
  expect("ad-hoc signature", file.signature?.adHoc, true);
  expect("pages that differ from the signature", file.signature?.problems, []);
  return problems;
}

/** Returns the path of the library. */
export async function buildDarwinLibrary(quiet = false): Promise<string> {
  const compiler = join(OUT, "c++");
  writeZigCompiler(compiler);
  const cache = new Objects(join(OUT, "objects"));
  const all = units(compiler);
  const changed = await cache.compile(all, "objects for macOS");
  const library = join(OUT, "librlv.dylib");
  const linked = cache.link(
    library,
    all.map((each) => each.object),
    [
      ...[compiler, ...TARGET, "-shared", "-s", "-install_name", INSTALL_NAME],
      ...writeStubs(join(OUT, "stubs")),
    ],
    [join(DARWIN, "symbols.txt")],
  );
  const problems = darwinProblems(library);
  if (problems.length > 0)
    fail(`the library for macOS is not as it should be: ${relative(root, library)}: ${problems.join("; ")}`);
  if (!quiet && changed === 0 && !linked)
    process.stderr.write(`rlv: ${relative(root, library)} is up to date\n`);
  return library;
}

if (import.meta.main) await buildDarwinLibrary();
