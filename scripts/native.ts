/**
 * Builds the native library: compiles metal/ except what belongs to other platforms, in parallel, and only what
 * changed (scripts/objects.ts).
 *
 *   scripts/build-native [--tests] [--soft] [--quiet]     ASAN=1 or TSAN=1: into build/asan, build/tsan
 *
 * metal/cpu/kernels/*.cpp are compiled once per instruction set with -DRLV_ISA=NAME; everything else once.
 * Every tests/native/*_test.cpp is a program in build/native-tests/: one that includes kernels is built for each
 * instruction set (NAME.ISA) from that file alone, any other one is linked with the library's objects.
 * --soft also builds build/librlv-soft.so, the Metal device on software Metal (scripts/soft.ts).
 */
import { mkdirSync, readdirSync, rmSync, utimesSync } from "node:fs";
import { basename, join, relative } from "node:path";
import { metalCpp } from "./metal-cpp.ts";
import {
  ENTRY,
  isaFlags,
  LANGUAGE,
  libraryParts,
  METAL_LIBRARIES,
  metalFlags,
  metalParts,
  nativeTests,
  type Part,
} from "./native-sources.ts";
import { fail, Objects, root, type Unit } from "./objects.ts";

const quiet = process.argv.includes("--quiet");
const withTests = process.argv.includes("--tests");
const started = new Date();
const mac = process.platform === "darwin";

type Variant = "release" | "asan" | "tsan";
const variant: Variant = process.env.ASAN === "1" ? "asan" : process.env.TSAN === "1" ? "tsan" : "release";
const SANITIZE: Record<Variant, string[]> = {
  release: [],
  asan: ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"],
  tsan: ["-fsanitize=thread", "-fno-omit-frame-pointer", "-g"],
};
const out = variant === "release" ? join(root, "build") : join(root, "build", variant);
const objects = join(out, "objects");

function compiler(): string {
  const named = process.env.CXX;
  if (named) {
    if (Bun.which(named) === null) fail(`CXX=${named}: no such program: unset CXX or name a C++17 compiler`);
    return named;
  }
  const found = ["g++", "clang++", "c++"].find((name) => Bun.which(name) !== null);
  const remedy = mac
    ? "xcode-select --install"
    : "install g++ (Debian, Ubuntu: apt install g++) or clang++, or set CXX";
  return found ?? fail(`a C++ compiler is needed to build the native library: PATH: ${remedy}`);
}

const cxx = compiler();
const isClang = Bun.spawnSync([cxx, "--version"]).stdout.toString().includes("clang");

const ISA_FLAGS = isaFlags(process.arch);

const ANY_COMPILER = [...LANGUAGE, variant === "release" ? "-O3" : "-O1", "-pthread", ...SANITIZE[variant]];
// GCC 12 sees uninitialised values inside its own AVX-512 headers (its bug 105593).
const COMMON = [...ANY_COMPILER, ...(isClang ? [] : ["-Wno-maybe-uninitialized", "-Wno-uninitialized"])];

interface Ranked extends Unit {
  /** Place of its instruction set in ISA_FLAGS, -1 without one. */
  readonly rank: number;
}

function unit({ source, isa }: Part, extra: readonly string[] = []): Ranked {
  const stem = relative(root, source)
    .replace(/\.cpp$/, "")
    .replaceAll("/", "-");
  const object = join(objects, `${stem}${isa === undefined ? "" : `.${isa}`}.o`);
  const flags = isa === undefined ? [] : [`-DRLV_ISA=${isa}`, ...ISA_FLAGS[isa]!];
  return {
    source,
    object,
    compiler: [cxx, ...COMMON],
    flags: [...extra, ...flags],
    rank: isa === undefined ? -1 : Object.keys(ISA_FLAGS).indexOf(isa),
  };
}

function libraryUnits(): Ranked[] {
  const parts = libraryParts(process.arch);
  if (!mac) return parts.map((part) => unit(part)).sort((a, b) => a.rank - b.rank);
  const metal = metalFlags(metalCpp());
  return [
    ...parts.map((part) => unit(part, part.source === ENTRY ? metal : [])),
    ...metalParts().map((part) => unit(part, metal)),
  ].sort((a, b) => a.rank - b.rank);
}

/**
 * Objects come from the plainest instruction set to the widest, because a function that several of them contain (an
 * inline function of a header) is taken from the first, and must run wherever any of them runs.
 */
function linkCommand(flags: readonly string[]): string[] {
  // The static runtime lets a library built here load on systems with older ones.
  const runtime = mac || variant !== "release" ? [] : ["-static-libstdc++", "-static-libgcc"];
  return [cxx, ...flags, ...runtime, ...SANITIZE[variant], "-pthread", ...(mac ? [] : ["-ldl"])];
}

function libraryFlags(): string[] {
  if (mac) return ["-dynamiclib", "-install_name", "@rpath/librlv.dylib", ...METAL_LIBRARIES];
  const strict = variant === "release" ? ["-Wl,--no-undefined", "-Wl,--strip-debug"] : [];
  return ["-shared", "-Wl,-soname,librlv.so", ...strict];
}

const objectCache = new Objects(objects);
const objectsOf = (parts: readonly Unit[]) => parts.map((each) => each.object);
const units = libraryUnits();
const library = join(out, mac ? "librlv.dylib" : "librlv.so");
const changed = await objectCache.compile(units, "native objects");
const linked = objectCache.link(library, objectsOf(units), linkCommand(libraryFlags()));
// The launcher compares times: the library is as new as the moment its sources were read.
utimesSync(library, started, started);
if (!quiet && changed === 0 && !linked)
  process.stderr.write(`rlv: ${relative(root, library)} is up to date\n`);

if (withTests) {
  const programs = join(out, "native-tests");
  const tests = nativeTests(process.arch).map((test) => ({ ...test, unit: unit(test) }));
  await objectCache.compile(
    tests.map((test) => test.unit),
    "native tests",
  );
  mkdirSync(programs, { recursive: true });
  for (const test of tests)
    objectCache.link(
      join(programs, test.name),
      objectsOf(test.alone ? [test.unit] : [test.unit, ...units]),
      linkCommand(mac ? METAL_LIBRARIES : []),
    );
  const names = new Set(tests.map(({ name }) => name));
  for (const old of readdirSync(programs)) if (!names.has(old)) rmSync(join(programs, old));
}

if (process.argv.includes("--soft")) {
  const { buildSoft } = await import("./soft.ts");
  // The same objects, but for the one that knows which devices there are.
  const shared = units.filter((each) => basename(each.source) !== "abi.cpp");
  await buildSoft({ out, objects: objectCache, shared: objectsOf(shared), common: ANY_COMPILER, quiet });
}
