/** Writes the kernel sources as a C++ table: metal/apple/pipelines.h declares it. */
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { kernelSource } from "./kernel-source.ts";
import { root } from "./objects.ts";

/** Returns the path of the generated file, which is only touched when a source changed. */
export function embedKernels(): string {
  const folder = join(root, "metal/kernels");
  const files = readdirSync(folder)
    .filter((name) => name.endsWith(".metal"))
    .sort();
  const rows = files.map((name) => {
    const source = kernelSource(join(folder, name));
    return `    {"${name.slice(0, -".metal".length)}", R"rlv(${source})rlv"},`;
  });
  const text = `// Written by scripts/embed-kernels.ts from metal/kernels. Do not edit.
#include "apple/pipelines.h"

namespace rlv {
namespace metal {

const KernelSource kKernelSources[] = {
${rows.join("\n")}
};
const uint32_t kKernelSourceCount = ${rows.length};

}  // namespace metal
}  // namespace rlv
`;
  const path = join(root, "build/generated/kernels.gen.cpp");
  if (!existsSync(path) || readFileSync(path, "utf8") !== text) {
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(`${path}.tmp`, text);
    renameSync(`${path}.tmp`, path);
  }
  return path;
}
