/**
 * Makes the files of a release, and uploads nothing:
 *
 *   scripts/release [--target NAME]... [--url ADDRESS] [--out DIR]
 *
 *   --target     linux-x64, linux-arm64 or darwin-arm64; all of them without it
 *   --url        where the files will lie; without it there is no formula for Homebrew and no install script
 *   --out        dist/release
 *
 * rlv-VERSION-TARGET.tar.gz, npm packages, the bill of materials, SHA256SUMS. The same commit gives the same bytes:
 * entries are sorted and carry the time of the commit (or SOURCE_DATE_EPOCH).
 */
import { createHash } from "node:crypto";
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join, relative, resolve } from "node:path";
import { version } from "../package.json";
import { completionScript, SHELLS } from "../src/cli/completion-scripts.ts";
import { manualPage } from "../src/cli/manual.ts";
import { fail, root } from "./objects.ts";
import { archive } from "./packaging/archive.ts";
import { formula, type Published } from "./packaging/homebrew.ts";
import { installScript } from "./packaging/install-script.ts";
import { launcherPackage, platformPackage } from "./packaging/npm.ts";
import { billOfMaterials } from "./packaging/sbom.ts";
import { noticesText, TARGETS, type Target } from "./packaging/third-party.ts";

interface Options {
  readonly targets: readonly Target[];
  readonly url: string | null;
  readonly out: string;
}

function optionsOf(words: readonly string[]): Options {
  const targets: Target[] = [];
  let url: string | null = null;
  let out = join(root, "dist/release");
  for (let i = 0; i < words.length; i += 2) {
    const value = words[i + 1];
    const target = TARGETS.find((each) => each === value);
    if (value === undefined) fail(`no value: ${words[i]}: see the head of scripts/release.ts`);
    if (words[i] === "--url") url = value.replace(/\/+$/, "");
    else if (words[i] === "--out") out = resolve(value);
    else if (words[i] !== "--target") fail(`no such option: ${words[i]}: --target, --url or --out`);
    else if (target === undefined) fail(`no such target: ${value}: --target: one of ${TARGETS.join(", ")}`);
    else targets.push(target);
  }
  return { targets: targets.length > 0 ? targets : TARGETS, url, out };
}

function git(...args: readonly string[]): string {
  const { exitCode, stdout } = Bun.spawnSync(["git", ...args], { cwd: root, stderr: "ignore" });
  return exitCode === 0 ? stdout.toString().trim() : "";
}

/** The time of everything in the files, seconds since 1970. */
function releaseTime(): number {
  const text = process.env.SOURCE_DATE_EPOCH || git("log", "-1", "--format=%ct");
  if (!/^\d+$/.test(text)) fail("no time to give the files: git log: set SOURCE_DATE_EPOCH");
  return Number(text);
}

const { targets, url, out } = optionsOf(process.argv.slice(2).flatMap((word) => word.split("=")));
const seconds = releaseTime();
if (git("status", "--porcelain") !== "")
  process.stderr.write("rlv: there are changes that are not committed: these files belong to no commit\n");

const command = [join(root, "scripts/build"), ...targets.flatMap((target) => ["--target", target])];
if (Bun.spawnSync(command, { stdout: "inherit", stderr: "inherit" }).exitCode !== 0) process.exit(1);

mkdirSync(out, { recursive: true });
// Files of an earlier release would be in SHA256SUMS.
for (const name of readdirSync(out)) rmSync(join(out, name), { recursive: true, force: true });
const scratch = mkdtempSync(join(root, "build/.tmp-release-"));
process.on("exit", () => rmSync(scratch, { recursive: true, force: true }));

const manual = await manualPage(seconds);
const completions = await Promise.all(
  SHELLS.map(async (shell) => ({ shell, text: await completionScript(shell) })),
);
const COMPLETION_FILES = { bash: "rlv.bash", zsh: "_rlv", fish: "rlv.fish" } as const;

/** The folder that becomes the archive of a target. */
function stage(target: Target): string {
  const folder = join(scratch, `rlv-${version}-${target}`);
  mkdirSync(join(folder, "completions"), { recursive: true });
  copyFileSync(join(root, `dist/rlv-${target}`), join(folder, "rlv"));
  chmodSync(join(folder, "rlv"), 0o755);
  for (const name of ["LICENSE", "README.md"]) copyFileSync(join(root, name), join(folder, name));
  writeFileSync(join(folder, "THIRD_PARTY.txt"), noticesText(target));
  writeFileSync(join(folder, "rlv.1"), manual);
  for (const { shell, text } of completions)
    writeFileSync(join(folder, "completions", COMPLETION_FILES[shell]), text);
  return folder;
}

const sha256 = (path: string) => createHash("sha256").update(readFileSync(path)).digest("hex");
const published: Published[] = [];
for (const target of targets) {
  const staged = stage(target);
  const file = `rlv-${version}-${target}.tar.gz`;
  archive(staged, join(out, file), seconds);
  published.push({ target, file, sha256: sha256(join(out, file)) });
  platformPackage(target, staged, join(scratch, `npm-${target}`), out, seconds);
}
launcherPackage(targets, join(scratch, "npm"), out, seconds);
writeFileSync(join(out, `rlv-${version}.cdx.json`), billOfMaterials(targets, seconds));
if (url === null) process.stderr.write("rlv: without --url there is no rlv.rb and no install.sh\n");
else {
  writeFileSync(join(out, "rlv.rb"), formula(published, url));
  writeFileSync(join(out, "install.sh"), installScript(published, url), { mode: 0o755 });
}
const sums = readdirSync(out)
  .sort()
  .map((name) => `${sha256(join(out, name))}  ${name}\n`);
writeFileSync(join(out, "SHA256SUMS"), sums.join(""));
process.stderr.write(`rlv: ${relative(root, out)} (${sums.length} files)\n${sums.join("")}`);
