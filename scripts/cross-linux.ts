/**
 * Builds the native library of releases for Linux with Zig, whose stubs of glibc reach back to old systems:
 *
 *   bun scripts/cross-linux.ts x64|arm64 [--tests]     writes build/linux-ARCH/librlv.so and checks it (scripts/elf.ts);
 *                                                      with --tests also build/linux-ARCH/native-tests
 *
 * The C++ library is in it; of the system it needs glibc alone.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { readElf } from "./elf.ts";
import { interfaceNames, LANGUAGE, libraryParts, nativeTests, type Part, unitOf } from "./native-sources.ts";
import { fail, Objects, root, type Unit } from "./objects.ts";
import { writeZigCompiler } from "./zig.ts";

export type LinuxArch = "x64" | "arm64";

/** The oldest glibc that the library loads with: Debian 10, Ubuntu 20.04, RHEL 8. */
export const GLIBC = "2.28";

const MACHINE: Readonly<Record<LinuxArch, "x86_64" | "aarch64">> = { x64: "x86_64", arm64: "aarch64" };

const SYSTEM =
  /^(libc\.so\.6|libm\.so\.6|libdl\.so\.2|libpthread\.so\.0|ld-linux-(x86-64\.so\.2|aarch64\.so\.1))$/;

/** Whether version `a` of glibc is newer than `b`. */
function newer(a: string, b: string): boolean {
  const [x, y] = [a, b].map((version) => version.split(".").map(Number));
  return x![0]! !== y![0]! ? x![0]! > y![0]! : (x![1] ?? 0) > (y![1] ?? 0);
}

/** Names of glibc's versions that a file needs and that are newer than `glibc`. */
export function newerThan(path: string, glibc: string): string[] {
  return readElf(path).versions.filter(
    (version) => version.startsWith("GLIBC_") && newer(version.slice("GLIBC_".length), glibc),
  );
}

/** What is wrong with a library for Linux; empty if old systems take it and it exports what it should. */
export function linuxProblems(path: string, arch: LinuxArch): string[] {
  const file = readElf(path);
  const problems: string[] = [];
  const expect = (what: string, found: unknown, wanted: unknown) => {
    if (!Bun.deepEquals(found, wanted))
      problems.push(`${what}: ${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`);
  };
  expect("processor", file.machine, MACHINE[arch]);
  expect("kind", file.kind, "shared");
  expect("name", file.soname, "librlv.so");
  expect(
    "libraries beside glibc",
    file.needed.filter((name) => !SYSTEM.test(name)),
    [],
  );
  expect("search paths", file.searchPaths, []);
  expect(`versions newer than glibc ${GLIBC}`, newerThan(path, GLIBC), []);
  expect("exports", file.exports, interfaceNames());
  expect("stack that runs code", file.executableStack, false);
  return problems;
}

/** What builds for a processor, and the objects of the library. */
function build(arch: LinuxArch) {
  const out = join(root, `build/linux-${arch}`);
  const compiler = join(out, "c++");
  writeZigCompiler(compiler);
  const command = [compiler, "-target", `${MACHINE[arch]}-linux-gnu.${GLIBC}`];
  const objects = join(out, "objects");
  const unit = (part: Part) =>
    unitOf(part, arch, objects, [...command, "-O3", "-g0", "-pthread", ...LANGUAGE]);
  return { out, command, unit, cache: new Objects(objects), units: libraryParts(arch).map(unit) };
}

const objectsOf = (units: readonly Unit[]) => units.map((each) => each.object);

/** Returns the path of the library. */
export async function buildLinuxLibrary(arch: LinuxArch, quiet = false): Promise<string> {
  const { out, command, cache, units } = build(arch);
  const changed = await cache.compile(units, `objects for Linux on ${arch}`);
  // What the C++ library inside exports must not meet another one of the process.
  const names = join(out, "exports.map");
  writeFileSync(names, `{ global: ${interfaceNames().join("; ")}; local: *; };\n`);
  const library = join(out, "librlv.so");
  const linked = cache.link(
    library,
    objectsOf(units),
    [
      ...[...command, "-shared", "-s", "-pthread", "-ldl"],
      ...["-Wl,-soname,librlv.so", `-Wl,--version-script=${names}`, "-Wl,--no-undefined"],
    ],
    [names],
  );
  const problems = linuxProblems(library, arch);
  if (problems.length > 0)
    fail(`the library for Linux is not as it should be: ${relative(root, library)}: ${problems.join("; ")}`);
  if (!quiet && changed === 0 && !linked)
    process.stderr.write(`rlv: ${relative(root, library)} is up to date\n`);
  return library;
}

/** The programs of tests/native; returns their paths. */
export async function buildLinuxTests(arch: LinuxArch): Promise<string[]> {
  const { out, command, unit, cache, units } = build(arch);
  const tests = nativeTests(arch).map((test) => ({ ...test, unit: unit(test) }));
  await cache.compile([...units, ...tests.map((test) => test.unit)], `objects for Linux on ${arch}`);
  const programs = join(out, "native-tests");
  mkdirSync(programs, { recursive: true });
  return tests.map((test) => {
    const program = join(programs, test.name);
    const parts = objectsOf(test.alone ? [test.unit] : [test.unit, ...units]);
    cache.link(program, parts, [...command, "-pthread", "-ldl"]);
    return program;
  });
}

if (import.meta.main) {
  const [arch, option, ...others] = process.argv.slice(2);
  if ((arch !== "x64" && arch !== "arm64") || (option ?? "--tests") !== "--tests" || others.length > 0)
    fail(`not understood: ${process.argv.slice(2).join(" ")}: cross-linux.ts x64|arm64 [--tests]`);
  await buildLinuxLibrary(arch);
  if (option !== undefined) await buildLinuxTests(arch);
}
