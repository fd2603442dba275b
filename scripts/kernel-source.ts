/**
 * One .metal file with everything it includes from this project, as the runtime compiler needs it.
 *
 *   bun scripts/kernel-source.ts metal/kernels/gemm.metal     prints it
 */
import { readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";

const root = resolve(import.meta.dir, "..");
const FOLDERS = ["metal/kernels", "metal/include"].map((folder) => join(root, folder));

/** Angle-bracket includes stay: they are Metal's. #line keeps compiler messages at the file they belong to. */
export function kernelSource(path: string): string {
  const seen = new Set<string>();
  const expand = (file: string): string => {
    if (seen.has(file)) return "";
    seen.add(file);
    const name = file.slice(file.lastIndexOf("/") + 1);
    const lines = [`#line 1 "${name}"`];
    readFileSync(file, "utf8")
      .split("\n")
      .forEach((line, i) => {
        const include = /^\s*#include "([^"]+)"/.exec(line)?.[1];
        if (/^\s*#pragma once/.test(line)) lines.push("");
        else if (include === undefined) lines.push(line);
        else {
          const found = [dirname(file), ...FOLDERS]
            .map((folder) => join(folder, include))
            .find((candidate) => {
              try {
                readFileSync(candidate);
                return true;
              } catch {
                return false;
              }
            });
          if (found === undefined) throw new Error(`${file}:${i + 1}: no such file: ${include}`);
          lines.push(expand(found), `#line ${i + 2} "${name}"`);
        }
      });
    return lines.join("\n");
  };
  return expand(resolve(path));
}

if (import.meta.main) process.stdout.write(kernelSource(process.argv[2]!));
