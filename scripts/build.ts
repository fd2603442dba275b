/**
 * Builds the standalone programs:
 *
 *   dist/rlv                this machine: program, native library and model in one file
 *   dist/rlv-darwin-arm64   Apple Silicon; its native library is built on a Mac, and without one it says so
 *
 * scripts/build [--only-host]
 */
import { createHash } from "node:crypto";
import { chmodSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, statSync } from "node:fs";
import { join, relative, resolve } from "node:path";
import type { BunPlugin } from "bun";
import { version as bunVersion } from "bun/package.json";

const root = resolve(import.meta.dir, "..");
const dist = join(root, "dist");

function fail(line: string): never {
  process.stderr.write(`rlv: error: ${line}\n`);
  process.exit(1);
}

if (Bun.version !== bunVersion)
  fail(`Bun ${Bun.version} is running and ${bunVersion} is pinned: scripts/build: start it as scripts/build`);

interface Target {
  readonly name: string;
  readonly file: string;
  readonly platform: string;
  readonly arch: string;
  /** Native library to embed, if there is one for the target. */
  readonly library: string | undefined;
}

/**
 * In place of src/device/embedded.ts: the same export, with the library in the file. The tree stays as it is.
 */
function embedding(library: string | undefined): BunPlugin {
  return {
    name: "embedded-library",
    setup(build) {
      build.onLoad({ filter: /src\/device\/embedded\.ts$/ }, () => {
        if (library === undefined) return { contents: "export const embeddedLibrary = null;", loader: "ts" };
        const sha256 = createHash("sha256").update(readFileSync(library)).digest("hex");
        return {
          contents: [
            `import path from ${JSON.stringify(library)} with { type: "file" };`,
            `export const embeddedLibrary = { path, sha256: ${JSON.stringify(sha256)} };`,
          ].join("\n"),
          loader: "ts",
        };
      });
    },
  };
}

/** The Bun program of another platform, from the package that package-lock.json pins by its hash. */
async function foreignBun(name: string): Promise<string> {
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

async function compile(target: Target): Promise<void> {
  const outfile = join(dist, target.file);
  const temporary = `${outfile}.tmp-${process.pid}`;
  const host = target.platform === process.platform && target.arch === process.arch;
  const executablePath = host ? process.execPath : await foreignBun(target.name);
  const result = await Bun.build({
    entrypoints: [join(root, "src/cli/main.ts")],
    target: "bun",
    minify: true,
    bytecode: true,
    define: {
      "process.platform": JSON.stringify(target.platform),
      "process.arch": JSON.stringify(target.arch),
      // With bytecode the bundler writes the paths of this clone in their place.
      "import.meta.dir": JSON.stringify("/$bunfs/root"),
      "import.meta.path": JSON.stringify("/$bunfs/root/rlv"),
    },
    plugins: [embedding(target.library)],
    compile: {
      target: `bun-${target.platform}-${target.arch}` as Bun.Build.CompileTarget,
      outfile: temporary,
      executablePath,
      // A bunfig.toml or .env in the folder where rlv is started must not reach into it.
      autoloadBunfig: false,
      autoloadDotenv: false,
    },
  });
  for (const log of result.logs) process.stderr.write(`${log}\n`);
  if (!result.success) fail(`cannot build ${target.file}: see the messages above`);
  chmodSync(temporary, 0o755);
  renameSync(temporary, outfile);
  const parts = target.library === undefined ? "without a native library" : "with its native library";
  const size = (statSync(outfile).size / 1e6).toFixed(1);
  process.stderr.write(
    `rlv: ${relative(root, outfile)} (${target.platform} ${target.arch}, ${size} MB, ${parts})\n`,
  );
}

const suffix = process.platform === "darwin" ? "dylib" : "so";
const built = Bun.spawnSync([process.execPath, join(root, "scripts/native.ts"), "--quiet"], {
  stderr: "inherit",
});
if (built.exitCode !== 0) process.exit(built.exitCode ?? 1);
mkdirSync(dist, { recursive: true });
await compile({
  name: "host",
  file: "rlv",
  platform: process.platform,
  arch: process.arch,
  library: join(root, `build/librlv.${suffix}`),
});
const onApple = process.platform === "darwin" && process.arch === "arm64";
if (!onApple && !process.argv.includes("--only-host"))
  await compile({
    name: "@oven/bun-darwin-aarch64",
    file: "rlv-darwin-arm64",
    platform: "darwin",
    arch: "arm64",
    library: undefined,
  });
