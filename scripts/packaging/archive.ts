/** Archives whose bytes are a function of their content: names sorted, one time, no owner, no file name in gzip. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { gzipSync } from "node:zlib";
import { writeFileAtomic } from "../../src/io/atomic.ts";
import { fail } from "../objects.ts";

/** GNU tar: others lack --sort. */
function gnuTar(): string {
  for (const name of ["tar", "gtar"]) {
    const path = Bun.which(name);
    if (path === null) continue;
    if (Bun.spawnSync([path, "--version"]).stdout.toString().includes("GNU tar")) return path;
  }
  return fail("GNU tar is needed for archives: PATH: install tar (macOS: brew install gnu-tar)");
}

/** Packs a folder under its own name; `seconds` since 1970 is the time of every entry. */
export function archive(folder: string, target: string, seconds: number): void {
  const scratch = mkdtempSync(join(tmpdir(), "rlv-archive-"));
  try {
    const packed = join(scratch, "files.tar");
    const { exitCode, stderr } = Bun.spawnSync([
      ...[gnuTar(), "--create", "--file", packed, "--directory", dirname(folder)],
      ...["--format=ustar", "--sort=name", `--mtime=@${seconds}`, "--mode=u=rwX,go=rX"],
      ...["--owner=0", "--group=0", "--numeric-owner", basename(folder)],
    ]);
    if (exitCode !== 0) fail(`cannot pack: ${folder}: ${stderr.toString().trim()}`);
    writeFileAtomic(target, gzipSync(readFileSync(packed), { level: 6 }));
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}
