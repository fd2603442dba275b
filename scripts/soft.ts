/**
 * Builds build/librlv-soft.so: the Metal device (metal/apple, metal/kernels) on software Metal (metal/soft), beside
 * the devices of the ordinary library, and build/msl-check, build/soft-run and build/soft-misuse. Needs clang 19 or
 * later and Apple's metal-cpp headers.
 */
import { readdirSync, readFileSync } from "node:fs";
import { join, relative } from "node:path";
import { embedKernels } from "./embed-kernels.ts";
import { metalCpp } from "./metal-cpp.ts";
import { fail, type Objects, root, type Unit } from "./objects.ts";

const VERSIONS = [19, 20, 21, 22, 23];

/** clang++ that has C++ for OpenCL as software Metal needs it, or null. */
export function softCompiler(): { cxx: string; clang: string; symbolizer: string } | null {
  const version = (program: string) =>
    Number(/version (\d+)/.exec(Bun.spawnSync([program, "--version"]).stdout.toString())?.[1] ?? 0);
  for (const v of VERSIONS)
    if (Bun.which(`clang++-${v}`) && Bun.which(`clang-${v}`) && Bun.which(`ld.lld-${v}`))
      return { cxx: `clang++-${v}`, clang: `clang-${v}`, symbolizer: `llvm-symbolizer-${v}` };
  if (Bun.which("clang++") && Bun.which("clang") && Bun.which("ld.lld") && version("clang") >= VERSIONS[0]!)
    return { cxx: "clang++", clang: "clang", symbolizer: "llvm-symbolizer" };
  return null;
}

function sources(folder: string, suffix: string): string[] {
  return readdirSync(join(root, folder))
    .filter((name) => name.endsWith(suffix))
    .sort()
    .map((name) => join(root, folder, name));
}

export async function buildSoft(build: {
  readonly out: string;
  readonly objects: Objects;
  /** Objects of the ordinary library that are used as they are. */
  readonly shared: readonly string[];
  readonly common: readonly string[];
  readonly quiet: boolean;
}): Promise<void> {
  const tools = softCompiler();
  if (tools === null)
    fail(
      "software Metal needs clang 19 or later with lld: PATH: install clang-19, lld-19, llvm-19 (Debian, Ubuntu: apt)",
    );
  const headers = metalCpp();
  const flags = [
    "-fblocks",
    "-g",
    '-DRLV_METAL_DEVICE="soft"',
    ...["-isystem", headers, "-I", join(root, "metal/soft/include"), "-I", join(root, "metal/kernels")],
  ];
  // Absolute, since the library is loaded from anywhere: only what names them is compiled anew in a moved checkout.
  const places = [
    `-DSOFT_CLANG="${tools.clang}"`,
    `-DSOFT_SYMBOLIZER="${tools.symbolizer}"`,
    `-DSOFT_HOME="${join(root, "metal/soft")}"`,
  ];
  const compiler = [tools.cxx, ...build.common];
  const unit = (source: string): Unit => ({
    source,
    object: join(build.out, "objects", `soft-${relative(root, source).replaceAll("/", "-")}.o`),
    compiler,
    flags: /\bSOFT_(CLANG|SYMBOLIZER|HOME)\b/.test(readFileSync(source, "utf8"))
      ? [...flags, ...places]
      : flags,
  });
  const soft = sources("metal/soft", ".cpp")
    .filter((path) => !path.endsWith("_main.cpp"))
    .map(unit);
  const device = [
    ...sources("metal/apple", ".cpp"),
    ...sources("metal/kernels", ".launch.cpp"),
    join(root, "metal/core/abi.cpp"),
    embedKernels(),
  ].map(unit);
  // Programs of their own: one compiles, one runs the kernels of a file, one does what Metal forbids.
  const programs = Object.entries({
    "msl-check": "metal/soft/check_main.cpp",
    "soft-run": "metal/soft/run_main.cpp",
    "soft-misuse": "tests/soft/misuse.cpp",
  }).map(([name, source]) => ({ name, program: unit(join(root, source)) }));
  const units = [...soft, ...device, ...programs.map(({ program }) => program)];
  await build.objects.compile(units, "objects of software Metal");
  const objects = (units: readonly Unit[]) => units.map((each) => each.object);
  const link = [tools.cxx, "-fuse-ld=lld", "-pthread", "-ldl", "-static-libstdc++", "-static-libgcc"];
  const linked = build.objects.link(
    join(build.out, "librlv-soft.so"),
    [...build.shared, ...objects(soft), ...objects(device)],
    [...link, "-shared", "-Wl,-soname,librlv-soft.so", "-Wl,--no-undefined"],
  );
  const metalCppSymbols = device.filter((each) => each.source.endsWith("apple/implementation.cpp"));
  for (const { name, program } of programs)
    build.objects.link(
      join(build.out, name),
      [...objects(soft), ...objects(metalCppSymbols), program.object],
      [...link, "-rdynamic"],
    );
  if (!build.quiet && !linked) process.stderr.write("rlv: build/librlv-soft.so is up to date\n");
}
