/** Jobs of several processes on this machine, and what is compared of them. */
import { Database } from "bun:sqlite";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { openSafetensors } from "../../src/io/safetensors.ts";

const main = resolve(import.meta.dir, "../../src/cli/main.ts");

export interface Launcher {
  readonly name: string;
  /** argv before the program. */
  argv(ranks: number): string[];
}

const found = (names: readonly string[]) =>
  names.map((name) => Bun.which(name)).find((path) => path !== null);

function launcher(name: string, programs: readonly string[], flags: readonly string[]): Launcher | null {
  const path = found(programs);
  return path ? { name, argv: (ranks) => [path, ...flags, "-n", String(ranks)] } : null;
}

/** Debian installs both, each under its own name. */
export const OPEN_MPI = launcher("Open MPI", ["mpirun.openmpi"], ["--allow-run-as-root", "--oversubscribe"]);
export const MPICH = launcher("MPICH", ["mpirun.mpich", "mpiexec.hydra"], []);

/** A scratch folder of runs; deleted by `close`. */
export class Jobs {
  readonly dir = mkdtempSync(join(tmpdir(), "rlv-ranks-"));
  readonly #env: Readonly<Record<string, string | undefined>>;

  constructor(env: Readonly<Record<string, string>> = {}) {
    this.#env = { ...process.env, XDG_CACHE_HOME: join(this.dir, "cache"), RLV_PIN: "0", ...env };
  }

  close(): void {
    rmSync(this.dir, { recursive: true, force: true });
  }

  run(name: string): string {
    return join(this.dir, name);
  }

  #program(args: readonly string[]): string[] {
    return [process.execPath, main, "train", ...args, "--threads", "1", "--output_dir", this.dir];
  }

  /** A command of rlv on every rank. */
  command(by: Launcher | null, ranks: number, args: readonly string[]) {
    return this.#end(this.#spawn([...(by ? by.argv(ranks) : []), process.execPath, main, ...args]));
  }

  #spawn(argv: readonly string[]) {
    const { dir: cwd } = this;
    return Bun.spawn([...argv], { cwd, env: this.#env, stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  }

  start(by: Launcher | null, ranks: number, args: readonly string[]) {
    return this.#spawn([...(by ? by.argv(ranks) : []), ...this.#program(args)]);
  }

  finish(by: Launcher | null, ranks: number, args: readonly string[]) {
    return this.#end(this.start(by, ranks, args));
  }

  /** A program of these tests on every rank. */
  program(by: Launcher, ranks: number, file: string) {
    return this.#end(this.#spawn([...by.argv(ranks), process.execPath, join(import.meta.dir, file)]));
  }

  /** A rank in every one of the folders, as if they were machines. */
  apart(by: Launcher, folders: readonly string[], args: readonly string[]) {
    const [mpirun, ...flags] = by.argv(1);
    const own = folders.map((folder) => [...flags, "-wdir", folder, ...this.#program(args)]);
    return this.#end(this.#spawn([mpirun!, ...own.flatMap((argv, i) => (i === 0 ? argv : [":", ...argv]))]));
  }

  async #end(job: ReturnType<Jobs["start"]>) {
    const [out, err] = await Promise.all([new Response(job.stdout).text(), new Response(job.stderr).text()]);
    return { code: await job.exited, out, err };
  }
}

export interface Row {
  readonly step: number;
  readonly prompt_index: number;
  readonly rollout_index: number;
  readonly completion: string;
  readonly reward: number;
  readonly advantage: number;
  /** As they were sampled, bit for bit. */
  readonly logprobs: string;
}

/** Rows in the order in which they were written. */
export function rolloutsOf(run: string): Row[] {
  using db = new Database(join(run, "rollouts.sqlite"), { readonly: true });
  return db
    .query(
      "select step, prompt_index, rollout_index, completion, reward, advantage, hex(logprobs) as logprobs from rollouts order by rowid",
    )
    .all() as Row[];
}

/** What training reports of every step, times left out. */
export function metricsOf(run: string): Record<string, number>[] {
  const lines = readFileSync(join(run, "metrics.jsonl"), "utf8").trim().split("\n");
  return lines.map((line) =>
    Object.fromEntries(
      Object.entries(JSON.parse(line) as Record<string, number>).filter(
        ([name]) => !/time|per_second|^device/.test(name),
      ),
    ),
  );
}

/** The tensors of a file of a checkpoint. */
export function tensorsOf(folder: string, file = "model.safetensors"): Map<string, Float32Array> {
  using opened = openSafetensors(join(folder, file));
  return new Map([...opened.tensors.keys()].map((name) => [name, opened.readFloat32(name).slice()]));
}

/** ‖a − b‖ / ‖b‖ over all tensors together. */
export function relativeDifference(a: Map<string, Float32Array>, b: Map<string, Float32Array>): number {
  let difference = 0;
  let norm = 0;
  for (const [name, values] of b) {
    const other = a.get(name)!;
    for (const [i, value] of values.entries()) {
      difference += (other[i]! - value) ** 2;
      norm += value ** 2;
    }
  }
  return Math.sqrt(difference / norm);
}
