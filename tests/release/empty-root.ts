/** A root folder with nothing but a shell, the C library and what is put into it, and programs that run in there. */
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  rmSync,
  symlinkSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { readElf } from "../../scripts/elf.ts";
import { type System, staticArmEmulator } from "./systems.ts";

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

/**
 * Namespaces: mounts, processes and a network without a way out; as root of its own where this user is none. A user
 * namespace also has its own list of emulators (Linux 6.7), so that the system's stays as it is.
 */
const unshare = (emulated: boolean) => [
  ...["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child"],
  ...(process.getuid?.() === 0 && !emulated ? [] : ["--user", "--map-root-user"]),
];

const EMULATORS = "/proc/sys/fs/binfmt_misc";

/** Has the kernel start arm64's programs by the emulator $1, opened here and now: later there is another root. */
const EMULATE = `mount -t binfmt_misc none ${EMULATORS}
printf '%s' ':rlv:M::\\x7fELF\\x02\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00\\xb7\\x00:\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\x00\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xfe\\xff\\xff\\xff:'"$1:F" >${EMULATORS}/register
`;

/** Mounts what programs expect of the kernel, then leaves the old root. */
const ENTER = `set -e
if [ -n "$1" ]; then
${EMULATE}fi
root=$2
mount -t proc proc "$root/proc"
for device in null zero urandom random; do
  : >"$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
exec chroot "$root" /bin/busybox env -i HOME=/home PATH="$3" sh -c "$4"`;

function busybox(): string | null {
  const path = Bun.which("busybox");
  if (path === null) return null;
  const { interpreter, needed } = readElf(realpathSync(path));
  return interpreter === null && needed.length === 0 ? path : null;
}

/** Why there can be no such root here, or none whose programs are emulated; null if there can. */
export function noEmptyRoot(emulated = false): string | null {
  if (process.platform !== "linux") return "namespaces are Linux's";
  if (busybox() === null) return "no busybox without libraries (apt install busybox-static)";
  if (Bun.which("unshare") === null || Bun.which("chroot") === null) return "no unshare or chroot";
  const emulator = emulated ? staticArmEmulator() : "";
  if (emulator === null) return "no qemu-aarch64-static (apt install qemu-user-static)";
  const probe = emulated ? `set -e\n${EMULATE}` : "mount -t tmpfs none /tmp";
  const tried = Bun.spawnSync([...unshare(emulated), "sh", "-c", probe, "probe", emulator]);
  return tried.exitCode === 0 ? null : `no namespaces: ${tried.stderr.toString().trim()}`;
}

/** Files of this system that a program loads: the loader where it names it, libraries. */
function ofThisSystem(program: string): string[] {
  const { interpreter, needed } = readElf(program);
  const listed = Bun.spawnSync(["ldd", program]).stdout.toString();
  const found = [...listed.matchAll(/^\s*(?:(\S+) => )?(\/\S+) \(/gm)].map(([, , path]) => path!);
  for (const path of found)
    if (path !== interpreter && !needed.includes(basename(path)))
      throw new Error(`needs a library that it does not name: ${path}`);
  return found;
}

export class EmptyRoot implements Disposable {
  readonly path = mkdtempSync(join(tmpdir(), "rlv-root-"));
  readonly #emulator: string;

  /** `program`: whose libraries are put into it, this machine's or those of another system. */
  constructor(program: string, system: System | null = null) {
    this.#emulator = system?.arch === "arm64" ? staticArmEmulator()! : "";
    for (const name of ["bin", "dev", "proc", "tmp", "home", "opt", "lib"]) mkdirSync(join(this.path, name));
    copyFileSync(busybox()!, join(this.path, "bin/busybox"));
    for (const name of APPLETS) symlinkSync("busybox", join(this.path, "bin", name));
    const put = (from: string, to: string) => {
      const target = join(this.path, to);
      mkdirSync(dirname(target), { recursive: true });
      cpSync(realpathSync(from), target);
    };
    if (system === null) for (const path of ofThisSystem(program)) put(path, path);
    else {
      const { interpreter, needed } = readElf(program);
      for (const name of new Set([basename(interpreter!), ...needed])) {
        const folder = system.libraries.find((each) => existsSync(join(each, name)));
        if (folder === undefined) throw new Error(`${program}: needs ${name}, which the system has not`);
        put(join(folder, name), name === basename(interpreter!) ? interpreter! : `/lib/${name}`);
      }
    }
  }

  run(script: string, path: string, seconds: number): { code: number | null; out: string; err: string } {
    const { exitCode, exitedDueToTimeout, stdout, stderr } = Bun.spawnSync(
      [
        ...unshare(this.#emulator !== ""),
        ...["sh", "-c", ENTER, "enter", this.#emulator, this.path, path, script],
      ],
      // Asked to end, rlv would save and end well.
      { stdin: "ignore", stdout: "pipe", stderr: "pipe", timeout: 1000 * seconds, killSignal: "SIGKILL" },
    );
    const err = `${stderr}${exitedDueToTimeout === true ? `\nkilled after ${seconds} s` : ""}`;
    return { code: exitedDueToTimeout === true ? null : exitCode, out: stdout.toString(), err };
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}
