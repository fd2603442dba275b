/**
 * The npm packages: `rlv` starts the program that one of its optional dependencies, @rlv/PLATFORM-ARCH, holds; npm
 * installs the one whose os, cpu and libc fit, and no script runs at installation.
 */
import { copyFileSync, cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { description, license, version } from "../../package.json";
import { root } from "../objects.ts";
import { archive } from "./archive.ts";
import type { Target } from "./third-party.ts";

const LAUNCHER = join(root, "scripts/packaging/launcher.cjs");

export const npmFile = (name: string) => `${name.replace("@", "").replace("/", "-")}-${version}.tgz`;

/** Writes a package's archive, whose one folder npm expects to be called `package`. */
function pack(manifest: object & { name: string }, scratch: string, out: string, seconds: number): string {
  writeFileSync(join(scratch, "package/package.json"), `${JSON.stringify(manifest, null, 2)}\n`);
  const path = join(out, npmFile(manifest.name));
  archive(join(scratch, "package"), path, seconds);
  return path;
}

/** `staged`: the folder that the archive of this target was made of. */
export function platformPackage(
  target: Target,
  staged: string,
  scratch: string,
  out: string,
  seconds: number,
): string {
  const [os, cpu] = target.split("-") as [string, string];
  const folder = join(scratch, "package");
  mkdirSync(join(folder, "bin"), { recursive: true });
  cpSync(staged, folder, { recursive: true, filter: (path) => path !== join(staged, "rlv") });
  copyFileSync(join(staged, "rlv"), join(folder, "bin/rlv"));
  const manifest = {
    name: `@rlv/${target}`,
    version,
    description: `The program of rlv for ${target}.`,
    license,
    os: [os],
    cpu: [cpu],
    ...(os === "linux" ? { libc: ["glibc"] } : {}),
    preferUnplugged: true,
  };
  return pack(manifest, scratch, out, seconds);
}

export function launcherPackage(
  targets: readonly Target[],
  scratch: string,
  out: string,
  seconds: number,
): string {
  const folder = join(scratch, "package");
  mkdirSync(join(folder, "bin"), { recursive: true });
  copyFileSync(LAUNCHER, join(folder, "bin/rlv.cjs"));
  copyFileSync(join(root, "LICENSE"), join(folder, "LICENSE"));
  writeFileSync(join(folder, "README.md"), readFileSync(join(root, "README.md")));
  const manifest = {
    name: "rlv",
    version,
    description,
    license,
    bin: { rlv: "bin/rlv.cjs" },
    engines: { node: ">=18" },
    optionalDependencies: Object.fromEntries(targets.map((target) => [`@rlv/${target}`, version])),
  };
  return pack(manifest, scratch, out, seconds);
}
