/** Linux systems other than this one: an old C library from Debian's archive, libraries and an emulator for arm64. */
import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { readElf } from "../../scripts/elf.ts";
import { ARM_LIBRARIES, armEmulator } from "../../scripts/emulator.ts";

export interface System {
  readonly arch: "x64" | "arm64";
  /** Folders with the libraries that programs are given. */
  readonly libraries: readonly string[];
}

/** The oldest Debian that its mirrors still have; its glibc is 2.31. */
const OLD = { suite: "bullseye", keys: "/usr/share/keyrings/debian-archive-keyring.gpg" };
const DEBIAN = { x64: "amd64", arm64: "arm64" } as const;

/**
 * The C library of an old Debian, fetched by apt, which checks its signatures, with lists of its own below `folder`:
 * nothing is installed. Returns why not where it cannot be had.
 */
export function oldDebian(arch: System["arch"], folder: string): System | string {
  if (Bun.which("apt-get") === null || Bun.which("dpkg-deb") === null) return "no apt-get here";
  if (!existsSync(OLD.keys)) return `no ${OLD.keys} (apt install debian-archive-keyring)`;
  const place = (name: string) => {
    mkdirSync(join(folder, name), { recursive: true });
    return join(folder, name);
  };
  writeFileSync(
    join(place("."), "sources.list"),
    `deb [signed-by=${OLD.keys}] http://deb.debian.org/debian ${OLD.suite} main\n`,
  );
  const settings = {
    "Dir::Etc::sourcelist": join(folder, "sources.list"),
    "Dir::Etc::sourceparts": "/dev/null",
    "Dir::State::lists": resolve(place("lists/partial"), ".."),
    "Dir::State::status": "/dev/null",
    "Dir::Cache": resolve(place("cache/archives/partial"), "../.."),
    "APT::Architecture": DEBIAN[arch],
    "APT::Architectures": DEBIAN[arch],
    "APT::Sandbox::User": "root",
    "Acquire::Languages": "none",
    "Acquire::Retries": "1",
    "Acquire::http::Timeout": "20",
  };
  const options = Object.entries(settings).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
  for (const words of [
    ["update", "-qq"],
    ["download", "-qq", "libc6"],
  ]) {
    const { exitCode, stderr } = Bun.spawnSync(["apt-get", ...options, ...words], {
      cwd: folder,
      stderr: "pipe",
    });
    if (exitCode !== 0) return `apt-get ${words[0]}: ${stderr.toString().trim().split("\n").at(-1)}`;
  }
  const packed = readdirSync(folder).find((name) => name.endsWith(".deb"));
  if (packed === undefined) return "apt-get download wrote nothing";
  const unpacked = Bun.spawnSync(["dpkg-deb", "-x", packed, "system"], { cwd: folder, stderr: "pipe" });
  if (unpacked.exitCode !== 0) return `dpkg-deb: ${unpacked.stderr.toString().trim()}`;
  const triplet = arch === "x64" ? "x86_64-linux-gnu" : "aarch64-linux-gnu";
  return { arch, libraries: [join(folder, "system/lib", triplet)] };
}

/** Debian's own libraries for cross compilers. */
export const CROSS_ARM: System = { arch: "arm64", libraries: [join(ARM_LIBRARIES, "lib")] };

/** The program that runs arm64's without libraries of its own, as a root without anything needs it. */
export function staticArmEmulator(): string | null {
  const path = armEmulator();
  if (path === null) return null;
  return readElf(path).interpreter === null ? path : null;
}
