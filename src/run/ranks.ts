/**
 * Processes ("ranks") that train one model together. Each makes its share of the completions and of the gradient and has
 * all rollouts and the whole gradient afterwards, so that every rank takes the same optimizer step; rank 0 alone writes.
 */
import { hostname } from "node:os";
import { deserialize, serialize } from "node:v8";
import { mpiTimeout } from "../core/env.ts";
import {
  Bug,
  DeviceError,
  Diverged,
  Interrupted,
  RanksError,
  RlvError,
  Unsupported,
  UsageError,
} from "../core/errors.ts";
import { VERSION } from "../core/version.ts";
import { ABI_HASH } from "../device/abi.gen.ts";
import type { Mpi } from "../device/mpi.ts";
import { holderAlive, identity } from "../io/run-lock.ts";
import type { Parameters } from "../nn/parameters.ts";
import type { Transformer } from "../nn/transformer.ts";
import { type Group, type GroupPart, microBatches } from "../rollout/pack.ts";
import type { RunControl } from "./reporter.ts";

type Stop = ReturnType<RunControl["stopRequested"]>;

export interface Ranks {
  readonly rank: number;
  readonly count: number;
  /** Whether this rank writes the run's folder and speaks. */
  readonly root: boolean;
  /** Ranks on this machine for the first of them, which looks after what they share; 0 for the others. */
  readonly inCharge: number;
  /** What `body` gives on every rank, by rank; all ranks call it at the same place. An error of one is thrown on all. */
  gather<T>(what: string, body: () => T | Promise<T>): Promise<T[]>;
  /** The most urgent of what the ranks were asked. */
  stop(own: Stop): Promise<Stop>;
  /** Gradients become their sums over the ranks. */
  sumGradients(parameters: Parameters): Promise<void>;
  /** All hold the same weights; at the first meeting those too that are not trained. */
  mustAgree(model: Transformer, step: number, first: boolean): Promise<void>;
  /** An error that every rank throws at this very place. */
  everywhere<E>(error: E): E;
  /** The share of this rank of `items` things of one cost, [begin, end). */
  share(items: number): readonly [begin: number, end: number];
}

/** One process. */
export const ALONE: Ranks = {
  rank: 0,
  count: 1,
  root: true,
  inCharge: 1,
  gather: async (_, body) => [await body()],
  stop: async (own) => own,
  sumGradients: async () => {},
  mustAgree: async () => {},
  everywhere: (error) => error,
  share: (items) => [0, items],
};

/** Where all ranks that could begin meet, and those that could not say why. */
export const FIRST_MEETING = "first meeting";

/** Steps between two comparisons of the weights. */
export const COMPARE_EVERY = 50;

/** Cuts items of the given costs, in order, into `count` ranges of about the same cost: their begins, and the end. */
export function cutByCost(costs: readonly number[], count: number): number[] {
  const total = costs.reduce((a, b) => a + b, 0);
  const begins = [0];
  let sum = 0;
  for (const [i, cost] of costs.entries()) {
    // An item belongs where its middle lies.
    while (begins.length < count && sum + cost / 2 >= (total * begins.length) / count) begins.push(i);
    sum += cost;
  }
  while (begins.length <= count) begins.push(costs.length);
  return begins;
}

/** All micro-batches of a step, by rank, and the rank whose each one is. */
export interface Dealt {
  readonly batches: GroupPart[][];
  readonly owners: readonly number[];
}

/**
 * Whole groups, divided in order among the ranks by their tokens (those to `skip` cost nothing), each share cut into
 * micro-batches of at most `budget` packed tokens: with one rank those of `microBatches`.
 */
export function dealGroups(
  { count }: Ranks,
  groups: readonly Group[],
  budget: number,
  sharePrefix = true,
  skip: readonly boolean[] = [],
): Dealt {
  const cost = ({ prompt, completions }: Group) =>
    prompt.length + completions.reduce((sum, { length }) => sum + length, 0);
  const begins = cutByCost(
    groups.map((group, i) => (skip[i] ? 0 : cost(group))),
    count,
  );
  const shares = Array.from({ length: count }, (_, rank) => {
    const [begin, end] = [begins[rank]!, begins[rank + 1]!];
    return microBatches(groups.slice(begin, end), budget, sharePrefix).map((parts) =>
      parts.map(({ group, completions }) => ({ group: group + begin, completions })),
    );
  });
  return { batches: shares.flat(), owners: shares.flatMap((share, rank) => share.map(() => rank)) };
}

/** Micro-batches that stay as they are. */
export function dealBatches({ count }: Ranks, batches: GroupPart[][]): Dealt {
  const begins = cutByCost(new Array(batches.length).fill(1), count);
  const owners = batches.map((_, i) => begins.findLastIndex((begin, rank) => begin <= i && rank < count));
  return { batches, owners };
}

/** What a rank says of itself at the beginning. */
interface Self {
  readonly host: string;
  /** PID and start time; see io/run-lock.ts. */
  readonly process: string;
  readonly version: string;
  readonly cpus: string;
}

type Outcome = { readonly value: unknown } | { readonly error: Told };

/** An error on its way to the other ranks. */
interface Told {
  readonly name: string;
  readonly message: string;
  readonly stack: string | undefined;
}

const KNOWN: Readonly<Record<string, new (message: string) => RlvError>> = {
  UsageError,
  Unsupported,
  DeviceError,
  Diverged,
  Interrupted,
  RanksError,
  Bug,
};

function told(error: unknown): Told {
  const { name, message, stack } = error instanceof Error ? error : new Error(String(error));
  return { name, message, stack };
}

function errorOf({ name, message, stack }: Told, rank: number): Error {
  const text = `rank ${rank}: ${message}`;
  const error = name in KNOWN ? new KNOWN[name]!(text) : new RlvError(text);
  if (stack !== undefined) error.stack = stack;
  return error;
}

/** Ranks of an MPI job. */
export class MpiRanks implements Ranks {
  readonly rank: number;
  readonly count: number;
  readonly root: boolean;
  #selves: readonly Self[] = [];
  /** Whether the ranks have agreed that all could begin. */
  begun = false;
  readonly #agreed = new WeakSet<object>();
  readonly #timeout = mpiTimeout();

  private constructor(readonly mpi: Mpi) {
    this.rank = mpi.rank;
    this.count = mpi.ranks;
    this.root = mpi.rank === 0;
  }

  /** `cpus`: the processors that this process may use, as a text. */
  static async join(mpi: Mpi, cpus: string): Promise<MpiRanks> {
    const ranks = new MpiRanks(mpi);
    const version = `${VERSION} (interface ${ABI_HASH}, ${process.arch})`;
    const self: Self = { host: hostname(), process: identity(process.pid)!, version, cpus };
    ranks.#selves = await ranks.gather("introduction", () => self);
    const other = ranks.#selves.findIndex((each) => each.version !== ranks.#selves[0]!.version);
    if (other > 0)
      throw ranks.everywhere(
        new RanksError(
          "ranks run different versions of rlv",
          `rank 0 ${ranks.#selves[0]!.version}, rank ${other} ${ranks.#selves[other]!.version}`,
          "start the same program on every machine",
        ),
      );
    return ranks;
  }

  get inCharge(): number {
    const { host } = this.#selves[this.rank]!;
    return this.#selves.findIndex((self) => self.host === host) === this.rank ? this.neighbours.local : 0;
  }

  /** Ranks on this machine, and how many of them may use the very processors that this one may. */
  get neighbours(): { readonly local: number; readonly sharing: number } {
    const self = this.#selves[this.rank]!;
    const local = this.#selves.filter(({ host }) => host === self.host);
    return { local: local.length, sharing: local.filter(({ cpus }) => cpus === self.cpus).length };
  }

  /** "4 ranks on 2 machines, Open MPI v4.1.4". */
  describe(): string {
    const machines = new Set(this.#selves.map(({ host }) => host)).size;
    const version = this.mpi.library.version.split(",")[0]!.trim();
    return `${this.count} ranks on ${machines} machine${machines === 1 ? "" : "s"}, ${version}`;
  }

  everywhere<E>(error: E): E {
    if (typeof error === "object" && error !== null) this.#agreed.add(error);
    return error;
  }

  /** Whether all ranks threw it. */
  isEverywhere(error: unknown): boolean {
    return typeof error === "object" && error !== null && this.#agreed.has(error);
  }

  async gather<T>(what: string, body: () => T | Promise<T>): Promise<T[]> {
    let own: Outcome;
    let thrown: unknown;
    try {
      own = { value: await body() };
    } catch (error) {
      thrown = error;
      own = { error: told(error) };
    }
    const parts = await this.mpi.gather(what, serialize(own), this.#waiting(what));
    const outcomes = parts.map((part) => deserialize(part) as Outcome);
    const failed = outcomes.findIndex((outcome) => "error" in outcome);
    if (failed < 0) return outcomes.map((outcome) => (outcome as { value: unknown }).value as T);
    const { error } = outcomes[failed] as { error: Told };
    throw this.everywhere(failed === this.rank && thrown instanceof Error ? thrown : errorOf(error, failed));
  }

  async stop(own: Stop): Promise<Stop> {
    const all = await this.gather("stop", () => own);
    return all.includes("now") ? "now" : all.includes("finish") ? "finish" : "none";
  }

  async sumGradients(parameters: Parameters): Promise<void> {
    for (const { bytes, dtype } of parameters.gradientPieces())
      await this.mpi.sum(bytes, dtype, this.#waiting("the sum of the gradients"));
  }

  async mustAgree(model: Transformer, step: number, first: boolean): Promise<void> {
    const digest = () => {
      let hash = 0n;
      const add = (parameters: Parameters) => {
        for (const bytes of parameters.packedBytes()) hash = Bun.hash.wyhash(bytes, hash);
      };
      if (!model.device.hasMemory) return hash;
      if (first) add(model.parameters);
      add(model.trained);
      return hash;
    };
    const all = await this.gather(first ? FIRST_MEETING : `weights of step ${step}`, digest);
    this.begun = true;
    const others = all.flatMap((hash, rank) => (hash === all[0] ? [] : [rank]));
    if (others.length === 0) return;
    const named = `rank${others.length === 1 ? "" : "s"} ${others.join(", ")}`;
    throw this.everywhere(
      new RanksError(
        `${named} and rank 0 do not hold the same weights`,
        `after step ${step}`,
        step === 0
          ? "give every machine the same model folder"
          : "resume from a checkpoint; check the memory",
      ),
    );
  }

  share(items: number): readonly [number, number] {
    const at = (rank: number) => Math.floor((items * rank) / this.count);
    return [at(this.rank), at(this.rank + 1)];
  }

  /** A rank of this machine that has ended although the job has not. */
  gone(): string | null {
    const { host } = this.#selves[this.rank] ?? { host: null };
    const rank = this.#selves.findIndex((self) => self.host === host && !holderAlive(self.process));
    return rank < 0
      ? null
      : `rank ${rank} (process ${Number.parseInt(this.#selves[rank]!.process, 10)}) is gone`;
  }

  /** Called again and again while others are waited for: MPI itself may wait for a dead process for ever. */
  #waiting(what: string): () => void {
    const begin = performance.now();
    return () => {
      const gone = this.gone();
      if (gone) throw new RanksError(gone, what, "resume from the last checkpoint");
      if (performance.now() - begin < this.#timeout * 1000) return;
      throw new RanksError(
        `rank ${this.rank} waited ${this.#timeout} s for the others`,
        what,
        "look for what holds them up, or raise RLV_MPI_TIMEOUT",
      );
    };
  }

  /** All ranks have done their work: ends MPI. */
  async leave(): Promise<void> {
    await this.gather("end", () => null);
    this.mpi.stop();
  }
}
