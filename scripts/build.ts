/**
 * Builds the standalone programs, each with its native library, the page and the model that ships in one file:
 *
 *   scripts/build [--target NAME]...     without a target: this machine's and darwin-arm64
 *
 *   host             dist/rlv
 *   linux-x64        dist/rlv-linux-x64 and dist/rlv-linux-arm64, as they are released: the library is made by Zig
 *   linux-arm64      for old systems (scripts/cross-linux.ts), the program on Bun's own for that processor
 *   darwin-arm64     dist/rlv-darwin-arm64, for Apple Silicon; on Linux its library is made by Zig
 *                    (scripts/cross-darwin.ts), and on a Mac it is the host's program
 */
import { createHash } from "node:crypto";
import { chmodSync, copyFileSync, mkdirSync, readFileSync, renameSync, rmSync, statSync } from "node:fs";
import { join, relative } from "node:path";
import type { BunPlugin } from "bun";
import { version as bunVersion } from "bun/package.json";
import type { AssetEntry } from "../src/web/assets.ts";
import { buildDarwinLibrary } from "./cross-darwin.ts";
import { buildLinuxLibrary, GLIBC, type LinuxArch, newerThan } from "./cross-linux.ts";
import { readElf } from "./elf.ts";
import { foreignBun } from "./foreign-bun.ts";
import { readMachO } from "./mach-o.ts";
import { metalCppLicence } from "./metal-cpp.ts";
import { fail, root } from "./objects.ts";

const dist = join(root, "dist");

if (Bun.version !== bunVersion)
  fail(`Bun ${Bun.version} is running and ${bunVersion} is pinned: scripts/build: start it as scripts/build`);

interface Target {
  readonly name: string;
  readonly file: string;
  readonly platform: string;
  readonly arch: string;
  /** Native library to embed. */
  readonly library: string;
}

/**
 * In place of src/device/embedded.ts: the same export, with the library in the file. The tree stays as it is.
 */
function embedding(library: string): BunPlugin {
  return {
    name: "embedded-library",
    setup(build) {
      build.onLoad({ filter: /src\/device\/embedded\.ts$/ }, () => {
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

/** In place of src/web/embedded.ts: the same export, with the files of build/web inside. */
function embeddingPage(): BunPlugin {
  const folder = join(root, "build/web");
  return {
    name: "embedded-page",
    setup(build) {
      build.onLoad({ filter: /src\/web\/embedded\.ts$/ }, () => {
        const entries = JSON.parse(readFileSync(join(folder, "content.json"), "utf8")) as AssetEntry[];
        const imports = entries.map(
          ({ name }, i) =>
            `import path${i} from ${JSON.stringify(join(folder, name))} with { type: "file" };`,
        );
        const list = entries.map((entry, i) => `{ ...${JSON.stringify(entry)}, path: path${i} },`);
        return {
          contents: [...imports, "export const embeddedPage = [", ...list, "];"].join("\n"),
          loader: "ts",
        };
      });
    },
  };
}

async function compile(target: Target): Promise<void> {
  const outfile = join(dist, target.file);
  // In a folder of its own, since Bun writes the name of the file into it.
  const scratch = join(dist, `.tmp-${target.file}-${process.pid}`);
  const temporary = join(scratch, "rlv");
  const host = target.platform === process.platform && target.arch === process.arch;
  const executablePath = host ? process.execPath : foreignBun(target.name);
  mkdirSync(scratch, { recursive: true });
  process.on("exit", () => rmSync(scratch, { recursive: true, force: true }));
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
    plugins: [embedding(target.library), embeddingPage()],
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
  // The licence asks that its text goes with every copy.
  if (target.platform === "darwin") copyFileSync(metalCppLicence(), join(dist, "LICENSE-metal-cpp.txt"));
  const size = (statSync(outfile).size / 1e6).toFixed(1);
  process.stderr.write(`rlv: ${relative(root, outfile)} (${target.platform} ${target.arch}, ${size} MB)\n`);
}

async function buildHost(): Promise<void> {
  const command = [process.execPath, join(root, "scripts/native.ts"), "--quiet"];
  const built = Bun.spawnSync(command, { stderr: "inherit" });
  if (built.exitCode !== 0) process.exit(built.exitCode ?? 1);
  const library = join(root, `build/librlv.${process.platform === "darwin" ? "dylib" : "so"}`);
  await compile({ name: "host", file: "rlv", platform: process.platform, arch: process.arch, library });
}

let host: Promise<void> | undefined;
/** On a Mac two targets are the same program. */
function hostOnce(): Promise<void> {
  host ??= buildHost();
  return host;
}

/** The system refuses a program whose signature does not match its bytes, and this one cannot be started here. */
function checkDarwinProgram(path: string, library: string): void {
  const { arch, platform, signature } = readMachO(path);
  if (`${platform}-${arch}` !== "macos-arm64")
    fail(`built for ${platform} ${arch}: ${path}: expected macos arm64`);
  if (signature === null || !signature.adHoc || signature.problems.length > 0)
    fail(`not signed properly: ${path}: ${signature?.problems.join(", ") ?? "no signature"}`);
  if (readFileSync(path).indexOf(readFileSync(library)) < 0) fail(`lacks its native library: ${path}`);
}

async function buildDarwin(): Promise<void> {
  const file = "rlv-darwin-arm64";
  if (process.platform === "darwin" && process.arch === "arm64") {
    await hostOnce();
    copyFileSync(join(dist, "rlv"), join(dist, file));
    return;
  }
  const library = await buildDarwinLibrary(true);
  await compile({ name: "@oven/bun-darwin-aarch64", file, platform: "darwin", arch: "arm64", library });
  checkDarwinProgram(join(dist, file), library);
}

async function buildLinux(arch: LinuxArch): Promise<void> {
  const library = await buildLinuxLibrary(arch, true);
  const file = `rlv-linux-${arch}`;
  const name = `@oven/bun-linux-${arch === "arm64" ? "aarch64" : arch}`;
  await compile({ name, file, platform: "linux", arch, library });
  const path = join(dist, file);
  const { machine } = readElf(path);
  if (machine !== readElf(library).machine) fail(`built for ${machine}: ${path}: expected ${arch}`);
  const young = newerThan(path, GLIBC);
  if (young.length > 0) fail(`needs a newer glibc than ${GLIBC}: ${path}: ${young.join(", ")}`);
  if (readFileSync(path).indexOf(readFileSync(library)) < 0) fail(`lacks its native library: ${path}`);
}

const TARGETS: Readonly<Record<string, () => Promise<void>>> = {
  host: hostOnce,
  "linux-x64": () => buildLinux("x64"),
  "linux-arm64": () => buildLinux("arm64"),
  "darwin-arm64": buildDarwin,
};

/** The names behind --target; every one of them is known. */
function targets(args: readonly string[]): string[] {
  const names: string[] = [];
  const known = Object.keys(TARGETS).join(", ");
  for (let i = 0; i < args.length; i += 2) {
    const name = args[i + 1];
    if (args[i] !== "--target") fail(`no such option: ${args[i]}: scripts/build [--target NAME]...`);
    if (name === undefined || TARGETS[name] === undefined)
      fail(`no such target: ${name ?? "(none given)"}: --target: one of ${known}`);
    names.push(name);
  }
  return names.length > 0 ? names : ["host", "darwin-arm64"];
}

const wanted = targets(process.argv.slice(2).flatMap((arg) => arg.split("=")));
mkdirSync(dist, { recursive: true });
for (const name of wanted) await TARGETS[name]!();
