import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { version as bunVersion } from "bun/package.json";
import { fail, root } from "./objects.ts";

/** The Bun program of another platform, from the package that package-lock.json pins by its hash. */
export function foreignBun(name: string): string {
  const lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8"));
  const integrity: string | undefined = lock.packages[`node_modules/${name}`]?.integrity;
  if (integrity === undefined)
    fail(`${name} is not pinned: package-lock.json: add it to the dependencies of bun`);
  const folder = join(root, "build/bun", `${name.replaceAll("/", "-")}-${bunVersion}`);
  const program = join(folder, "package/bin/bun");
  if (existsSync(program)) return program;
  const scratch = `${folder}.tmp-${process.pid}`;
  mkdirSync(scratch, { recursive: true });
  const packed = Bun.spawnSync(["npm", "pack", `${name}@${bunVersion}`, "--silent"], {
    cwd: scratch,
    stderr: "inherit",
  });
  if (packed.exitCode !== 0) fail(`cannot fetch ${name}@${bunVersion}: npm pack: check the network`);
  const archive = join(scratch, packed.stdout.toString().trim().split("\n").at(-1)!);
  const digest = `sha512-${createHash("sha512").update(readFileSync(archive)).digest("base64")}`;
  if (digest !== integrity)
    fail(`${name}@${bunVersion} is not the pinned one: ${archive}: expected ${integrity}, got ${digest}`);
  if (Bun.spawnSync(["tar", "-xzf", archive], { cwd: scratch }).exitCode !== 0)
    fail(`cannot unpack: ${archive}`);
  rmSync(archive);
  rmSync(folder, { recursive: true, force: true });
  renameSync(scratch, folder);
  return program;
}
