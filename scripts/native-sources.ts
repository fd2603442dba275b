/** What the native library is made of, whoever compiles it: files, instruction sets, flags that decide results. */
import { readdirSync, readFileSync } from "node:fs";
import { basename, join, relative } from "node:path";
import { embedKernels } from "./embed-kernels.ts";
import { root, type Unit } from "./objects.ts";

export type InstructionSets = Readonly<Record<string, readonly string[]>>;

const ISA_FLAGS: Readonly<Record<string, InstructionSets>> = {
  x64: {
    portable: [],
    avx2: ["-mavx2", "-mfma", "-mf16c"],
    avx512: ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"],
    avx512bf16: [
      ...["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16"],
      ...["-mavx2", "-mfma", "-mf16c"],
    ],
  },
  arm64: { portable: [], neon: [] },
};

/** Flags of each instruction set of a processor (process.arch). Their order is the order of linking. */
export function isaFlags(arch: string): InstructionSets {
  return ISA_FLAGS[arch] ?? { portable: [] };
}

/** Flags of every source and every compiler. */
export const LANGUAGE = [
  "-std=c++17",
  "-fPIC",
  "-fvisibility=hidden",
  // Results must not depend on what the compiler may contract or reorder.
  "-ffp-contract=off",
  "-fno-math-errno",
  "-Wall",
  "-Wextra",
  "-I",
  join(root, "metal/include"),
  "-I",
  join(root, "metal"),
  // Paths in assertions and debug information do not depend on where the clone lies.
  `-ffile-prefix-map=${root}/=`,
] as const;

/** Folders of metal/ that not every platform has: Apple's device, its kernels, software Metal. */
const ELSEWHERE = ["apple", "kernels", "soft"].map((name) => join(root, "metal", name));

/** The .cpp files of a folder and its folders, in a fixed order. */
export function sources(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true })
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((entry) => {
      const path = join(folder, entry.name);
      if (entry.isDirectory()) return ELSEWHERE.includes(path) ? [] : sources(path);
      return entry.name.endsWith(".cpp") ? [path] : [];
    });
}

export interface Part {
  readonly source: string;
  /** Sources of CPU kernels are compiled once for each. */
  readonly isa?: string;
}

/** Everything but the Metal device. */
export function libraryParts(arch: string): Part[] {
  const kernels = join(root, "metal/cpu/kernels");
  return sources(join(root, "metal")).flatMap((source): Part[] =>
    source.startsWith(`${kernels}/`)
      ? Object.keys(isaFlags(arch)).map((isa) => ({ source, isa }))
      : [{ source }],
  );
}

export interface NativeTest extends Part {
  readonly name: string;
  /** It has kernels of its own and is not linked with the library's objects. */
  readonly alone: boolean;
}

/** The programs of tests/native: one that includes kernels is built for each instruction set. */
export function nativeTests(arch: string): NativeTest[] {
  const files = sources(join(root, "tests/native")).filter((path) => path.endsWith("_test.cpp"));
  return files.flatMap((source): NativeTest[] => {
    const name = basename(source, ".cpp");
    const alone = readFileSync(source, "utf8").includes("metal/cpu/kernels/");
    if (!alone) return [{ source, name, alone }];
    return Object.keys(isaFlags(arch)).map((isa) => ({ source, isa, name: `${name}.${isa}`, alone }));
  });
}

/** The Metal device; the table of kernel sources is written here. */
export function metalParts(): Part[] {
  const apple = sources(join(root, "metal/apple")).filter((path) => !path.includes("/darwin/"));
  const launches = sources(join(root, "metal/kernels")).filter((path) => path.endsWith(".launch.cpp"));
  return [...apple, ...launches, embedKernels()].map((source) => ({ source }));
}

/** The source that knows which devices there are: it is compiled with the flags of the Metal device too. */
export const ENTRY = join(root, "metal/core/abi.cpp");

/** Flags of the Metal device for macOS. */
export function metalFlags(headers: string): string[] {
  const definitions = ['-DRLV_METAL_DEVICE="metal"', "-DMETALCPP_SYMBOL_VISIBILITY_HIDDEN"];
  return [...definitions, "-isystem", headers, "-I", join(root, "metal/kernels")];
}

/** What the linker needs for it. */
export const METAL_LIBRARIES = ["-framework", "Metal", "-framework", "Foundation", "-lobjc"] as const;

/** How a part becomes an object below the folder `objects` when another machine's compiler makes it. */
export function unitOf(
  part: Part,
  arch: string,
  objects: string,
  compiler: readonly string[],
  flags: readonly string[] = [],
): Unit {
  const name = [relative(root, part.source).replaceAll("/", "-"), part.isa, "o"];
  const isa = part.isa === undefined ? [] : [`-DRLV_ISA=${part.isa}`, ...isaFlags(arch)[part.isa]!];
  return {
    source: part.source,
    object: join(objects, name.filter(Boolean).join(".")),
    compiler,
    flags: [...flags, ...isa],
  };
}

/** The functions of the C interface, sorted. */
export function interfaceNames(): string[] {
  const header = readFileSync(join(root, "metal/include/rlv.h"), "utf8");
  return [...header.matchAll(/^RLV_API\b[^(]*\b(rlv_\w+)\(/gm)].map((match) => match[1]!).sort();
}
