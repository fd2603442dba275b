import { readFileSync } from "node:fs";
import { join } from "node:path";
import { version } from "../../package.json";
import { GLIBC } from "../cross-linux.ts";
import { fail, root } from "../objects.ts";
import type { Published } from "./homebrew.ts";

/** The script that installs these archives from `url`; it knows their hashes. */
export function installScript(published: readonly Published[], url: string): string {
  // It stands inside a shell's word.
  if (!/^[\w:/.~%+-]+$/.test(url)) fail(`not an address: ${url}: --url: give one such as https://host/path`);
  const hashes = published.map(({ target, sha256 }) => `    ${target}) echo ${sha256} ;;`).join("\n");
  const template = readFileSync(join(root, "scripts/packaging/install.sh"), "utf8");
  return template
    .replace(/^ *# @HASHES@$/m, hashes)
    .replaceAll("@VERSION@", version)
    .replaceAll("@GLIBC@", GLIBC)
    .replaceAll("@URL@", url);
}
