import { spawnSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { TemporaryFolder } from "./temporary.ts";

/** A file system of `kib` KiB to fill up; it is unmounted at the end of the scope. */
export class SmallDisk implements Disposable {
  #folder = new TemporaryFolder();
  readonly path = this.#folder.file("disk");

  constructor(kib: number) {
    mkdirSync(this.path);
    const mounted = spawnSync("mount", ["-t", "tmpfs", "-o", `size=${kib}k`, "tmpfs", this.path]);
    if (mounted.status !== 0) {
      this.#folder[Symbol.dispose]();
      throw new Error(`mount: ${mounted.stderr}`);
    }
  }

  [Symbol.dispose](): void {
    // Lazily: a failed test may have left a file open there.
    spawnSync("umount", ["-l", this.path]);
    this.#folder[Symbol.dispose]();
  }
}

/** Why this machine cannot make one, or null if it can. Told in the names of the tests that are skipped. */
export const noSmallDisk: string | null = (() => {
  if (process.platform !== "linux") return "needs Linux's tmpfs";
  if (process.getuid?.() !== 0) return "mounting needs root";
  try {
    new SmallDisk(64)[Symbol.dispose]();
    return null;
  } catch {
    return "mounting is not allowed here";
  }
})();

/** Suffix for a test's name. */
export const smallDiskNote = noSmallDisk === null ? "" : ` (skipped: ${noSmallDisk})`;
