/**
 * Every n-th call to the file system fails in turn, the disk is full, read-only or takes half of a write: a run either
 * gets through or says in one line where it failed, and goes on to the bytes of the unbroken run.
 */
import { afterAll, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Purpose, Random } from "../../src/core/rng.ts";
import { noSmallDisk, SmallDisk, smallDiskNote } from "../io/small-disk.ts";
import { type Ended, killProcessesOf, killRun, rlv, rlvUnder, start } from "../run/program.ts";
import { Ledger, LONG_LIMIT, long, ROUNDS, SEED } from "./ledger.ts";
import { faultOf, Subjects } from "./subjects.ts";

const subjects = new Subjects();
afterAll(() => subjects[Symbol.dispose]());
const random = new Random(SEED, Purpose.data);
const RECIPE = "arithmetic";
const LIMIT = long ? LONG_LIMIT : 120_000;

/** Calls that change a disk, with what each may answer. Other calls (reading, pipes) are not of the run's files. */
const CALLS: Readonly<Record<string, readonly string[]>> = {
  openat: ["ENOSPC", "EROFS", "EMFILE", "EIO"],
  write: ["ENOSPC", "EIO", "EDQUOT"],
  pwrite64: ["ENOSPC", "EIO"],
  fsync: ["EIO", "ENOSPC"],
  fdatasync: ["EIO"],
  ftruncate: ["EIO", "ENOSPC"],
  rename: ["EIO", "ENOSPC", "EROFS"],
  mkdir: ["ENOSPC", "EROFS", "EACCES"],
  unlink: ["EIO", "EROFS"],
  unlinkat: ["EIO", "EROFS"],
  rmdir: ["EIO"],
};

const strace = spawnSync("strace", ["-V"]).status === 0;
const noTrace = strace ? "" : " (skipped: needs strace)";

/** A whole run takes two or three. Where the fault hits the runtime's own wake-ups, it may sleep for ever. */
const HANG_SECONDS = 60;

/** A call of a traced run: the n-th of its kind in its thread. */
interface Call {
  readonly name: string;
  readonly ordinal: number;
  readonly line: string;
}

/** The calls on files below `run`, by a log of `strace -f -y`. */
function callsOn(run: string, log: string): Call[] {
  const count = new Map<string, number>();
  const found: Call[] = [];
  for (const line of log.split("\n")) {
    const call = /^(\d+) +(\w+)\(/.exec(line);
    if (!call || CALLS[call[2]!] === undefined) continue;
    const key = `${call[1]} ${call[2]}`;
    const ordinal = (count.get(key) ?? 0) + 1;
    count.set(key, ordinal);
    if (line.includes(run)) found.push({ name: call[2]!, ordinal, line });
  }
  return found;
}

async function traced(args: readonly string[], log: string, inject?: string): Promise<Ended> {
  const options = ["-f", "-y", "-qq", "--seccomp-bpf", "-o", log, "-e", `trace=${Object.keys(CALLS)}`];
  if (inject !== undefined) options.push("-e", `inject=${inject}`);
  return rlvUnder(["timeout", "-s", "KILL", String(HANG_SECONDS), "strace", ...options], args);
}

test.skipIf(!strace)(
  `every call to the file system fails in turn, seed ${SEED}${noTrace}`,
  async () => {
    const ledger = new Ledger("a call to the file system fails");
    const log = join(subjects.root, "calls");
    expect((await traced(await subjects.command(RECIPE, "recorded"), log)).code).toBe(0);
    const calls = callsOn(join(subjects.root, "recorded"), readFileSync(log, "utf8"));
    expect(calls.length).toBeGreaterThan(100);
    const order = [...random.permutation(calls.length)].slice(0, long ? 100 * ROUNDS : 4);
    for (const [i, at] of order.entries()) {
      const { name, ordinal } = calls[at]!;
      const errors = CALLS[name]!;
      const error = errors[random.below(errors.length)]!;
      const run = `fault-${i}`;
      const what = `${name} ${ordinal}: ${error}`;
      const ended = await traced(
        await subjects.command(RECIPE, run),
        log,
        `${name}:error=${error}:when=${ordinal}`,
      );
      killProcessesOf(join(subjects.root, run));
      const injected = readFileSync(log, "utf8")
        .split("\n")
        .filter((line) => line.includes("(INJECTED)"));
      // The same ordinal may be a pipe's or a module's in another thread; only what hits the run has to be told well.
      const ours = injected.length > 0 && injected.every((line) => line.includes(join(subjects.root, run)));
      const lost = (ours ? faultOf(ended) : null) ?? (await subjects.recover(RECIPE, run));
      ledger.enter(`${what}: ${injected.at(-1) ?? "not met"}`, lost);
    }
    ledger.close();
  },
  LIMIT,
);

const prlimit = spawnSync("prlimit", ["--version"]).status === 0;
test.skipIf(!prlimit)(
  `writes are cut short at a limit of the file's size, seed ${SEED}${prlimit ? "" : " (skipped: needs prlimit)"}`,
  async () => {
    const ledger = new Ledger("a write is cut short");
    await subjects.whole(RECIPE);
    for (let round = 0; round < (long ? 3 * ROUNDS : 1); round++) {
      const run = `short-${round}`;
      // From one that stops the first file to one that only the largest meet; not even in sizes of pages.
      const bytes = Math.floor(200 * 10 ** (4 * random.uniform()));
      const ended = await rlvUnder(["prlimit", `--fsize=${bytes}`], await subjects.command(RECIPE, run));
      ledger.enter(`${bytes} bytes`, faultOf(ended) ?? (await subjects.recover(RECIPE, run)));
    }
    ledger.close();
  },
  LIMIT,
);

test.skipIf(noSmallDisk !== null)(
  `the disk is full at a random moment, seed ${SEED}${smallDiskNote}`,
  async () => {
    const ledger = new Ledger("the disk is full");
    await subjects.whole(RECIPE);
    const du = spawnSync("du", ["-sk", join(subjects.root, "whole-arithmetic")]);
    const need = Number.parseInt(du.stdout.toString(), 10);
    expect(need).toBeGreaterThan(0);
    for (let round = 0; round < (long ? 3 * ROUNDS : 1); round++) {
      const kib = 64 + random.below(need);
      using disk = new SmallDisk(kib);
      const ended = await rlv(await subjects.command(RECIPE, "full", disk.path));
      const fault = faultOf(ended);
      spawnSync("mount", ["-o", "remount,size=1g", disk.path]);
      ledger.enter(`${kib} KiB`, fault ?? (await subjects.recover(RECIPE, "full", disk.path)));
    }
    ledger.close();
  },
  LIMIT,
);

test.skipIf(noSmallDisk !== null)(
  `the disk becomes read-only at a random moment, seed ${SEED}${smallDiskNote}`,
  async () => {
    const ledger = new Ledger("the disk becomes read-only");
    const { seconds } = await subjects.whole(RECIPE);
    for (let round = 0; round < (long ? ROUNDS : 1); round++) {
      using disk = new SmallDisk(1 << 20);
      const run = join(disk.path, "readonly");
      const child = start(await subjects.command(RECIPE, "readonly", disk.path));
      const err = new Response(child.stderr).text();
      await Bun.sleep(1000 * random.uniform() * seconds);
      // Files that are open for writing keep a disk writable: then it is frozen by force, as a failing drive is.
      const options = ["-o", "remount,ro", disk.path];
      if (spawnSync("mount", options).status !== 0) spawnSync("chattr", ["-R", "+i", disk.path]);
      const code = await Promise.race([child.exited, Bun.sleep(60_000).then(() => null)]);
      if (code === null) await killRun(child, run);
      spawnSync("chattr", ["-R", "-i", disk.path]);
      spawnSync("mount", ["-o", "remount,rw", disk.path]);
      const fault = code === null ? "it hangs" : faultOf({ code, out: "", err: await err });
      ledger.enter(`round ${round}`, fault ?? (await subjects.recover(RECIPE, "readonly", disk.path)));
    }
    ledger.close();
  },
  LIMIT,
);
