/**
 * Builds the native library: compiles metal/ except what belongs to other platforms, in parallel, and only what
 * changed. An object is up to date when the hash over its command, its compiler and the content of every file
 * it includes is the one it was made from; times do not matter, so a checkout of another branch costs no rebuild.
 *
 *   scripts/build-native [--tests] [--quiet]     ASAN=1 or TSAN=1: into build/asan, build/tsan
 *
 * metal/cpu/kernels/*.cpp are compiled once per instruction set with -DRLV_ISA=NAME; everything else once.
 * Every tests/native/*_test.cpp is a program in build/native-tests/: one that includes kernels is built for each
 * instruction set (NAME.ISA) from that file alone, any other one is linked with the library's objects.
 */
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { availableParallelism } from "node:os";
import { basename, join, relative, resolve } from "node:path";

const root = resolve(import.meta.dir, "..");
const quiet = process.argv.includes("--quiet");
const withTests = process.argv.includes("--tests");
const started = new Date();
const mac = process.platform === "darwin";

function fail(line: string): never {
  process.stderr.write(`rlv: error: ${line}\n`);
  process.exit(1);
}

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
const version = Bun.spawnSync([cxx, "--version"]).stdout.toString();

/** Flags of each instruction set. Their order is the order of linking; see link(). */
const ISA_FLAGS: Readonly<Record<string, readonly string[]>> =
  process.arch === "x64"
    ? {
        portable: [],
        avx2: ["-mavx2", "-mfma", "-mf16c"],
        avx512: ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"],
        avx512bf16: [
          ...["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16"],
          ...["-mavx2", "-mfma", "-mf16c"],
        ],
      }
    : process.arch === "arm64"
      ? { portable: [], neon: [] }
      : { portable: [] };

const COMMON = [
  "-std=c++17",
  variant === "release" ? "-O3" : "-O1",
  "-fPIC",
  "-fvisibility=hidden",
  // Results must not depend on what the compiler may contract or reorder.
  "-ffp-contract=off",
  "-fno-math-errno",
  "-Wall",
  "-Wextra",
  // GCC 12 sees uninitialised values inside its own AVX-512 headers (its bug 105593).
  ...(version.includes("clang") ? [] : ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]),
  "-pthread",
  "-I",
  join(root, "metal/include"),
  "-I",
  join(root, "metal"),
  // Paths in assertions and debug information do not depend on where the clone lies.
  `-ffile-prefix-map=${root}/=`,
  ...SANITIZE[variant],
];

interface Unit {
  readonly source: string;
  readonly object: string;
  readonly flags: readonly string[];
  readonly rank: number;
}

/** Folders of metal/ that are built elsewhere: Apple's device, software Metal, the MPI shim. */
const ELSEWHERE = ["apple", "soft", "dist"];

function sources(dir: string): string[] {
  return readdirSync(dir, { withFileTypes: true })
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((entry) => {
      const path = join(dir, entry.name);
      if (entry.isDirectory())
        return dir === join(root, "metal") && ELSEWHERE.includes(entry.name) ? [] : sources(path);
      return entry.name.endsWith(".cpp") ? [path] : [];
    });
}

function unit(source: string, isa?: string): Unit {
  const stem = relative(root, source)
    .replace(/\.cpp$/, "")
    .replaceAll("/", "-");
  const object = join(objects, `${stem}${isa === undefined ? "" : `.${isa}`}.o`);
  const flags = isa === undefined ? [] : [`-DRLV_ISA=${isa}`, ...ISA_FLAGS[isa]!];
  return { source, object, flags, rank: isa === undefined ? -1 : Object.keys(ISA_FLAGS).indexOf(isa) };
}

function libraryUnits(): Unit[] {
  const kernels = join(root, "metal/cpu/kernels");
  return sources(join(root, "metal"))
    .flatMap((source) =>
      source.startsWith(`${kernels}/`)
        ? Object.keys(ISA_FLAGS).map((isa) => unit(source, isa))
        : [unit(source)],
    )
    .sort((a, b) => a.rank - b.rank);
}

/** What the objects on disk were made from. */
interface Made {
  readonly key: string;
  readonly deps: readonly string[];
}
const recordPath = join(objects, "made.json");
const made: Record<string, Made> = existsSync(recordPath) ? JSON.parse(readFileSync(recordPath, "utf8")) : {};

const hashes = new Map<string, string>();
function hashOf(path: string): string {
  let hash = hashes.get(path);
  if (hash === undefined) {
    hash = existsSync(path) ? Bun.hash(readFileSync(path)).toString(16) : "absent";
    hashes.set(path, hash);
  }
  return hash;
}

function commandOf(unit: Unit): string[] {
  return [
    cxx,
    ...COMMON,
    ...unit.flags,
    "-MMD",
    "-MF",
    `${unit.object}.d`,
    "-c",
    unit.source,
    "-o",
    unit.object,
  ];
}

function keyOf(command: readonly string[], deps: readonly string[]): string {
  const parts = [version, ...command, ...deps.flatMap((dep) => [dep, hashOf(dep)])];
  return Bun.hash(parts.join("\0")).toString(16);
}

function upToDate(unit: Unit): boolean {
  const record = made[unit.object];
  return (
    record !== undefined && existsSync(unit.object) && record.key === keyOf(commandOf(unit), record.deps)
  );
}

/** The files of a make rule `object: file file \⏎ file`. */
function depsOf(path: string): string[] {
  const rule = readFileSync(path, "utf8").replaceAll("\\\n", " ");
  return rule
    .slice(rule.indexOf(": ") + 2)
    .trim()
    .split(/(?<!\\)\s+/)
    .map((dep) => resolve(root, dep.replaceAll("\\ ", " ")))
    .filter((dep) => dep.startsWith(`${root}/`));
}

async function compile(unit: Unit): Promise<boolean> {
  const command = commandOf(unit);
  const process_ = Bun.spawn(command, { stdout: "pipe", stderr: "pipe", cwd: root });
  const [text, code] = await Promise.all([new Response(process_.stderr).text(), process_.exited]);
  if (text !== "") process.stderr.write(text);
  if (code !== 0) {
    rmSync(unit.object, { force: true });
    delete made[unit.object];
    return false;
  }
  const deps = depsOf(`${unit.object}.d`);
  made[unit.object] = { key: keyOf(command, deps), deps };
  return true;
}

function saveRecord(): void {
  writeFileSync(`${recordPath}.tmp`, JSON.stringify(made));
  renameSync(`${recordPath}.tmp`, recordPath);
}

async function compileAll(units: readonly Unit[]): Promise<number> {
  const stale = units.filter((each) => !upToDate(each));
  if (stale.length === 0) return 0;
  process.stderr.write(`rlv: compiling ${stale.length} of ${units.length} native objects with ${cxx}\n`);
  const queue = [...stale];
  let failed = 0;
  const worker = async () => {
    for (let next = queue.shift(); next !== undefined; next = queue.shift())
      if (!(await compile(next))) failed += 1;
  };
  await Promise.all(Array.from({ length: Math.max(1, availableParallelism()) }, worker));
  saveRecord();
  if (failed > 0) fail(`${failed} native sources do not compile: metal: see the messages above`);
  return stale.length;
}

/**
 * Links to a temporary file and renames it: a running program keeps its library. Objects come from the plainest
 * instruction set to the widest, because a function that several of them contain (an inline function of a header)
 * is taken from the first, and must run wherever any of them runs.
 */
function link(target: string, units: readonly Unit[], flags: readonly string[]): void {
  const temporary = `${target}.tmp-${process.pid}`;
  // The static runtime lets a library built here load on systems with older ones.
  const runtime = mac || variant !== "release" ? [] : ["-static-libstdc++", "-static-libgcc"];
  const command = [
    cxx,
    ...units.map((each) => each.object),
    ...flags,
    ...runtime,
    ...SANITIZE[variant],
    "-pthread",
  ];
  if (!mac) command.push("-ldl");
  const result = Bun.spawnSync([...command, "-o", temporary], { cwd: root, stderr: "inherit" });
  if (result.exitCode !== 0) {
    rmSync(temporary, { force: true });
    fail(`the native library does not link: ${relative(root, target)}: see the messages above`);
  }
  renameSync(temporary, target);
}

function libraryFlags(): string[] {
  if (mac) return ["-dynamiclib", "-install_name", "@rpath/librlv.dylib"];
  const strict = variant === "release" ? ["-Wl,--no-undefined", "-Wl,--strip-debug"] : [];
  return ["-shared", "-Wl,-soname,librlv.so", ...strict];
}

/** Links unless the target on disk was made from the very same objects. Returns whether it did. */
function linkIfChanged(target: string, parts: readonly Unit[], flags: readonly string[]): boolean {
  const key = Bun.hash(
    [version, ...flags, ...parts.map((each) => `${each.object} ${made[each.object]!.key}`)].join("\0"),
  ).toString(16);
  if (existsSync(target) && made[target]?.key === key) return false;
  link(target, parts, flags);
  made[target] = { key, deps: [] };
  saveRecord();
  return true;
}

mkdirSync(objects, { recursive: true });
const units = libraryUnits();
const library = join(out, mac ? "librlv.dylib" : "librlv.so");
const changed = await compileAll(units);
const linked = linkIfChanged(library, units, libraryFlags());
// The launcher compares times: the library is as new as the moment its sources were read.
utimesSync(library, started, started);
if (!quiet && changed === 0 && !linked)
  process.stderr.write(`rlv: ${relative(root, library)} is up to date\n`);

if (withTests) {
  const folder = join(root, "tests/native");
  const programs = join(out, "native-tests");
  const files = existsSync(folder) ? sources(folder).filter((path) => path.endsWith("_test.cpp")) : [];
  const tests = files.flatMap((path) => {
    const ofKernels = readFileSync(path, "utf8").includes("metal/cpu/kernels/");
    return ofKernels ? Object.keys(ISA_FLAGS).map((isa) => unit(path, isa)) : [unit(path)];
  });
  await compileAll(tests);
  mkdirSync(programs, { recursive: true });
  const names = new Set<string>();
  for (const test of tests) {
    const name =
      basename(test.source, ".cpp") + (test.rank < 0 ? "" : `.${Object.keys(ISA_FLAGS)[test.rank]}`);
    names.add(name);
    linkIfChanged(join(programs, name), test.rank < 0 ? [test, ...units] : [test], []);
  }
  for (const old of readdirSync(programs)) if (!names.has(old)) rmSync(join(programs, old));
}
