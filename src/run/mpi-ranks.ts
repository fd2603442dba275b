/** Ranks of an MPI job. */
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
import type { GradientPiece, Parameters } from "../nn/parameters.ts";
import type { Transformer } from "../nn/transformer.ts";
import { BucketSums } from "./gradient-sums.ts";
import type { GradientSums, Ranks, Stop } from "./ranks.ts";

/** Where all ranks that could begin meet, and those that could not say why. */
export const FIRST_MEETING = "first meeting";

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

export class MpiRanks implements Ranks {
  readonly rank: number;
  readonly count: number;
  readonly root: boolean;
  #selves: readonly Self[] = [];
  /** Whether the ranks have agreed that all could begin. */
  begun = false;
  exchanged = 0;
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
    const begin = performance.now();
    const parts = await this.mpi.gather(what, serialize(own), this.#waiting(what));
    this.exchanged += (performance.now() - begin) / 1000;
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

  gatherGradients<T>(
    what: string,
    parameters: Parameters,
    body: (sums: GradientSums) => Promise<T>,
  ): Promise<T[]> {
    const sums = new BucketSums(
      parameters.device,
      parameters.gradientBuckets(),
      ({ bytes, dtype }: GradientPiece) =>
        this.mpi.sum(bytes, dtype, this.#waiting("the sum of the gradients")),
    );
    return this.gather(what, async () => {
      try {
        return await body(sums);
      } finally {
        await sums.finish();
        this.exchanged += sums.seconds;
      }
    });
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
