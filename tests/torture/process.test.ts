/** What happens to processes: no memory, a terminal or a reader that is gone, a second process, a clock that jumps. */
import { afterAll, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, rmdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Purpose, Random } from "../../src/core/rng.ts";
import { metrics, processesOf, rlv, rlvUnder, start } from "../run/program.ts";
import { Ledger, LONG_LIMIT, long, ROUNDS, SEED } from "./ledger.ts";
import { Subjects } from "./subjects.ts";

const subjects = new Subjects();
afterAll(() => subjects[Symbol.dispose]());
const random = new Random(SEED, Purpose.data);
const RECIPE = "arithmetic";
const LIMIT = long ? LONG_LIMIT : 120_000;
const rounds = Math.max(1, ROUNDS);

/** A group of processes whose memory the kernel limits: cgroup 2, or 1's controller of memory. */
class MemoryGroup implements Disposable {
  readonly #folder: string;
  constructor(bytes: number) {
    const second = existsSync("/sys/fs/cgroup/cgroup.controllers");
    this.#folder = join(second ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory", `rlv-torture-${process.pid}`);
    mkdirSync(this.#folder);
    try {
      writeFileSync(join(this.#folder, second ? "memory.max" : "memory.limit_in_bytes"), String(bytes));
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }
  /** A command that runs what follows it inside. */
  get command(): string[] {
    return ["sh", "-c", `echo $$ > ${join(this.#folder, "cgroup.procs")} && exec "$@"`, "sh"];
  }
  [Symbol.dispose](): void {
    for (let tries = 0; ; tries++)
      try {
        rmdirSync(this.#folder);
        return;
      } catch (error) {
        // A process that was killed leaves a moment later.
        if (tries === 50) throw error;
        Bun.sleepSync(20);
      }
  }
}

const noGroup: string | null = (() => {
  if (process.platform !== "linux") return "needs Linux's cgroups";
  try {
    new MemoryGroup(1 << 30)[Symbol.dispose]();
    return null;
  } catch {
    return "cgroups cannot be made here";
  }
})();

test.skipIf(noGroup !== null)(
  `the system ends the engine for want of memory: the parent says so${noGroup === null ? "" : ` (skipped: ${noGroup})`}`,
  async () => {
    const ledger = new Ledger("killed for want of memory");
    await subjects.whole(RECIPE);
    const peak = Math.max(
      ...metrics(join(subjects.root, "whole-arithmetic")).map((row) => row["device/peak_bytes"] ?? 0),
    );
    expect(peak).toBeGreaterThan(0);
    let told = 0;
    for (let round = 0; round < rounds; round++) {
      const name = `memory-${round}`;
      // Half of what both processes need ends the engine for sure; with more it comes later, or not at all.
      const share = 0.5 + (round === 0 ? 0 : 0.4 * random.uniform());
      using group = new MemoryGroup(Math.floor(share * (peak + (40 << 20))));
      const { code, err } = await rlvUnder(group.command, await subjects.command(RECIPE, name));
      if (err.includes("the system ran out of memory")) told += 1;
      const silent = code === 1 && !err.startsWith("rlv: error: ");
      ledger.enter(name, silent ? `ended with ${code}: ${err}` : await subjects.recover(RECIPE, name));
    }
    expect(told).toBeGreaterThan(0);
    ledger.close();
  },
  LIMIT,
);

test(
  `the terminal or the reader of the output goes away, seed ${SEED}: saved, 130, and the run goes on`,
  async () => {
    const ledger = new Ledger("SIGHUP, SIGTERM, closed output");
    const { seconds } = await subjects.whole(RECIPE);
    const ways = ["SIGHUP", "SIGTERM", "reader"] as const;
    for (let round = 0; round < rounds; round++)
      for (const way of ways) {
        const name = `${way}-${round}`;
        const run = join(subjects.root, name);
        const command = await subjects.command(RECIPE, name);
        const child = start(command);
        const err = new Response(child.stderr).text();
        const reader = child.stdout.getReader();
        // What the run says is read up to the moment, as `head` does.
        for (
          const until = performance.now() + 1000 * random.uniform() * seconds;
          performance.now() < until;
        ) {
          const piece = await Promise.race([reader.read(), Bun.sleep(20)]);
          if (piece?.done) break;
        }
        if (way === "reader") await reader.cancel();
        else for (const pid of processesOf(run)) process.kill(pid, way);
        const code = await Promise.race([child.exited, Bun.sleep(30_000).then(() => null)]);
        // It may have been through, or not yet have begun.
        const ended = code === 0 || code === 130 || code === 128 + 1 || code === 128 + 15;
        const wrong = ended ? null : `it ended with ${code}: ${await err}`;
        ledger.enter(name, wrong ?? (await subjects.recover(RECIPE, name)));
      }
    ledger.close();
  },
  LIMIT,
);

test(
  "four processes on one run folder: one trains, the others say who does",
  async () => {
    const ledger = new Ledger("processes that want the same run");
    for (let round = 0; round < rounds; round++) {
      const name = `shared-${round}`;
      const command = await subjects.command(RECIPE, name);
      const all = await Promise.all(Array.from({ length: 4 }, () => rlv(command)));
      const through = all.filter(({ code }) => code === 0).length;
      const refused = all.filter(({ code, err }) => code === 2 && /^rlv: error: .*\n$/.test(err)).length;
      const wrong =
        through === 1 && refused === 3 ? null : JSON.stringify(all.map(({ code, err }) => [code, err]));
      ledger.enter(name, wrong ?? (await subjects.recover(RECIPE, name)));
    }
    ledger.close();
  },
  LIMIT,
);

const faketime = spawnSync("faketime", ["--version"]).status === 0;
const noClock = faketime ? "" : " (skipped: needs faketime)";
test.skipIf(noClock !== "")(
  `the clock jumps between and within parts of a run${noClock}`,
  async () => {
    const ledger = new Ledger("the clock jumps");
    await subjects.whole(RECIPE);
    for (let round = 0; round < rounds; round++) {
      const name = `clock-${round}`;
      const run = join(subjects.root, name);
      const first = await subjects.command(RECIPE, name);
      // Ten years ahead and a clock that runs a thousand times too fast; then back behind the beginning.
      await rlvUnder(["timeout", "-s", "TERM", "1.5", "faketime", "-f", "+10y x1000"], first);
      const again = existsSync(join(run, "train_config.json")) ? ["train", "--resume_from", run] : first;
      await rlvUnder(["faketime", "-f", `-${1 + random.below(9)}y`], again);
      ledger.enter(name, await subjects.recover(RECIPE, name));
    }
    ledger.close();
  },
  LIMIT,
);
