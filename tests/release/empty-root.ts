/** A root folder with nothing but a shell, the C library and what is put into it, and programs that run in there. */
import { copyFileSync, cpSync, mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { readElf } from "../../scripts/elf.ts";

const APPLETS = [
  "sh",
  "ls",
  "cat",
  "env",
  "sleep",
  "kill",
  "wget",
  "ip",
  "sed",
  "head",
  "test",
  "mount",
  "uname",
];

/** Namespaces: mounts, processes and a network without a way out; as root of its own where this user is none. */
const UNSHARE = [
  ...["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child"],
  ...(process.getuid?.() === 0 ? [] : ["--user", "--map-root-user"]),
];

/** Mounts what programs expect of the kernel, then leaves the old root. */
const ENTER = `set -e
root=$1
mount -t proc proc "$root/proc"
for device in null zero urandom random; do
  : >"$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
exec chroot "$root" /bin/busybox env -i HOME=/home PATH="$2" sh -c "$3"`;

function busybox(): string | null {
  const path = Bun.which("busybox");
  if (path === null) return null;
  const { interpreter, needed } = readElf(realpathSync(path));
  return interpreter === null && needed.length === 0 ? path : null;
}

/** Why there can be no such root here; null if there can. */
export function noEmptyRoot(): string | null {
  if (process.platform !== "linux") return "namespaces are Linux's";
  if (busybox() === null) return "no busybox without libraries (apt install busybox-static)";
  if (Bun.which("unshare") === null || Bun.which("chroot") === null) return "no unshare or chroot";
  const tried = Bun.spawnSync([...UNSHARE, "mount", "-t", "tmpfs", "none", "/tmp"], { stderr: "pipe" });
  return tried.exitCode === 0 ? null : `no namespaces: ${tried.stderr.toString().trim()}`;
}

export class EmptyRoot implements Disposable {
  readonly path = mkdtempSync(join(tmpdir(), "rlv-root-"));

  /** `program`: whose libraries of the system are put into it. */
  constructor(program: string) {
    for (const name of ["bin", "dev", "proc", "tmp", "home", "opt"]) mkdirSync(join(this.path, name));
    copyFileSync(busybox()!, join(this.path, "bin/busybox"));
    for (const name of APPLETS) symlinkSync("busybox", join(this.path, "bin", name));
    const { interpreter, needed } = readElf(program);
    const listed = Bun.spawnSync(["ldd", program]).stdout.toString();
    const found = [...listed.matchAll(/^\s*(?:(\S+) => )?(\/\S+) \(/gm)].map(([, , path]) => path!);
    for (const path of found) {
      if (path !== interpreter && !needed.includes(basename(path)))
        throw new Error(`needs a library that it does not name: ${path}`);
      const target = join(this.path, path);
      mkdirSync(dirname(target), { recursive: true });
      cpSync(realpathSync(path), target);
    }
  }

  run(script: string, path: string): { code: number | null; out: string; err: string } {
    const { exitCode, stdout, stderr } = Bun.spawnSync(
      [...UNSHARE, "sh", "-c", ENTER, "enter", this.path, path, script],
      { stdin: "ignore", stdout: "pipe", stderr: "pipe", timeout: 100_000 },
    );
    return { code: exitCode, out: stdout.toString(), err: stderr.toString() };
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}
