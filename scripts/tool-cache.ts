/**
 * Tools and headers that the project builds with but does not contain: Python wheels, fetched by pip from whatever
 * index the user has set up, pinned by SHA-256, unpacked once into a cache outside of the clone.
 */
import { createHash } from "node:crypto";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";

export interface Wheel {
  readonly project: string;
  readonly version: string;
  /** pip's name of the platform the wheel is for. */
  readonly platform: string;
  readonly sha256: string;
  readonly megabytes: number;
}

/** A tool that cannot be had here; the message says what to do. */
export class MissingTool extends Error {}

export function toolsCache(): string {
  const named = process.env.RLV_TOOLS_CACHE;
  if (named) return named;
  return join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "rlv/tools");
}

function run(command: readonly string[], what: string): void {
  const result = Bun.spawnSync([...command], { stdout: "pipe", stderr: "pipe" });
  if (result.exitCode === 0) return;
  const said = `${result.stdout}${result.stderr}`.trim().split("\n").at(-1);
  throw new MissingTool(`${what}: ${said || `exit code ${result.exitCode}`}`);
}

function download(wheel: Wheel, folder: string): string {
  const name = `${wheel.project}==${wheel.version}`;
  const python = Bun.which("python3");
  if (python === null || Bun.spawnSync([python, "-m", "pip", "--version"]).exitCode !== 0)
    throw new MissingTool(
      `${name} is fetched by pip: PATH: install python3 with pip (Debian, Ubuntu: apt install python3-pip)`,
    );
  process.stderr.write(`rlv: fetching ${name} (${wheel.megabytes} MB, once)\n`);
  run(
    [
      ...[python, "-m", "pip", "download", name, "--no-deps", "--only-binary=:all:"],
      ...["--platform", wheel.platform, "--dest", folder, "--quiet"],
    ],
    `cannot fetch ${name}: pip: check the network and pip's index`,
  );
  const path = join(folder, readdirSync(folder)[0]!);
  const digest = createHash("sha256").update(readFileSync(path)).digest("hex");
  if (digest !== wheel.sha256)
    throw new MissingTool(
      `${name} is not the pinned file: ${wheel.platform}: expected ${wheel.sha256}, got ${digest}`,
    );
  return path;
}

/** Python, because pip needs it anyhow and unzip may be missing. */
const UNPACK = `import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if name.startswith(sys.argv[3])])`;

/**
 * The folder with the files of a wheel under `prefix`, whose place in the cache is `name`. It appears at once and
 * complete, so two builds at the same time do not disturb each other.
 */
export function unpackedWheel(
  wheel: Wheel,
  name: string,
  prefix: string,
  programs: readonly string[] = [],
): string {
  const target = join(toolsCache(), name);
  if (existsSync(target)) return target;
  const scratch = `${target}.tmp-${process.pid}`;
  try {
    mkdirSync(join(scratch, "wheel"), { recursive: true });
    const file = download(wheel, join(scratch, "wheel"));
    run(["python3", "-c", UNPACK, file, join(scratch, "files"), prefix], `cannot unpack ${file}`);
    for (const program of programs) chmodSync(join(scratch, "files", prefix, program), 0o755);
    mkdirSync(dirname(target), { recursive: true });
    try {
      renameSync(join(scratch, "files", prefix), target);
    } catch (error) {
      // Another build was faster.
      if (!existsSync(target)) throw error;
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  return target;
}
