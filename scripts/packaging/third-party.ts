/** What a program contains that others wrote, with the licences that ask to go with every copy. */
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { version as bunVersion } from "bun/package.json";
import { MLX_METAL, metalCppLicence } from "../metal-cpp.ts";
import { fail, root } from "../objects.ts";
import { ZIG_VERSION, zig } from "../zig.ts";

export const TARGETS = ["linux-x64", "linux-arm64", "darwin-arm64"] as const;
export type Target = (typeof TARGETS)[number];

export interface ThirdParty {
  readonly name: string;
  readonly version: string;
  /** SPDX expression. */
  readonly licence: string;
  readonly purl: string;
  readonly text: string;
}

interface Locked {
  readonly version: string;
  readonly license?: string;
  readonly dev?: boolean;
  readonly integrity?: string;
}

export const lockedPackages: Readonly<Record<string, Locked>> = JSON.parse(
  readFileSync(join(root, "package-lock.json"), "utf8"),
).packages;

/** Packages of the lockfile that are bundled: all but those of development. */
function bundled(): ThirdParty[] {
  return Object.entries(lockedPackages)
    .filter(([path, { dev }]) => path !== "" && !dev)
    .map(([path, { version, license }]) => {
      const name = path.slice(path.lastIndexOf("node_modules/") + "node_modules/".length);
      const file = readdirSync(join(root, path)).find((each) => /^licen[cs]e/i.test(each));
      if (license === undefined || file === undefined)
        fail(`a package says nothing of its licence: ${path}: find out, or do without it`);
      const text = readFileSync(join(root, path, file), "utf8");
      return {
        name,
        version,
        licence: license,
        purl: `pkg:npm/${name.replace("@", "%40")}@${version}`,
        text,
      };
    });
}

const BUN = `Bun itself is MIT-licensed. It statically links JavaScriptCore and WebKit (LGPL-2.0), TinyCC (LGPL-2.1), BoringSSL,
SQLite and other libraries. https://github.com/oven-sh/bun/blob/bun-v${bunVersion}/LICENSE.md lists them with their
licences and says how Bun is linked again with another JavaScriptCore; scripts/build of this project puts rlv on any
Bun of that version.`;

function runtime(): ThirdParty {
  return {
    name: "Bun",
    version: bunVersion,
    licence: "MIT AND LGPL-2.0-only AND LGPL-2.1-only",
    purl: `pkg:npm/bun@${bunVersion}`,
    text: BUN,
  };
}

/** The C++ library and the compiler's functions inside the native library. */
function ofZig(): ThirdParty[] {
  const folder = dirname(zig());
  const part = (name: string, licence: string, file: string): ThirdParty => ({
    name,
    version: `of Zig ${ZIG_VERSION}`,
    licence,
    purl: `pkg:pypi/ziglang@${ZIG_VERSION}`,
    text: readFileSync(join(folder, file), "utf8"),
  });
  return [
    ...["libcxx", "libcxxabi", "libunwind"].map((name) =>
      part(name, "Apache-2.0 WITH LLVM-exception", `lib/${name}/LICENSE.TXT`),
    ),
    part("compiler-rt", "MIT", "LICENSE"),
  ];
}

function ofApple(): ThirdParty {
  const { project, version } = MLX_METAL;
  return {
    name: "metal-cpp",
    version: `of ${project} ${version}`,
    licence: "Apache-2.0",
    purl: `pkg:pypi/${project}@${version}`,
    text: readFileSync(metalCppLicence(), "utf8"),
  };
}

/** A Mac's own build has the C++ library of its system and no part of Zig. */
export function thirdParties(target: Target): ThirdParty[] {
  const native = target === "darwin-arm64" ? [...ofZig(), ofApple()] : ofZig();
  return [runtime(), ...native, ...bundled()];
}

export function noticesText(target: Target): string {
  const parts = thirdParties(target);
  const rule = "=".repeat(80);
  const list = parts.map(({ name, version, licence }) => `  ${name} ${version}: ${licence}`);
  const texts = parts.map(
    ({ name, version, licence, text }) =>
      `${rule}\n${name} ${version} (${licence})\n${rule}\n\n${text.replaceAll("\r\n", "\n").trim()}\n`,
  );
  return `rlv for ${target} contains:\n\n${list.join("\n")}\n\n${texts.join("\n")}`;
}
