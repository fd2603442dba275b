/** The gradients of several ranks added up bucket by bucket, while the device computes those of the layers before. */
import type { Device } from "../device/device.ts";
import type { GradientBucket, GradientPiece } from "../nn/parameters.ts";
import type { Tensor } from "../tape/tensor.ts";
import type { GradientSums } from "./ranks.ts";

/**
 * All ranks go through the same buckets in the same order, whatever each of them computes. A rank that fails goes through
 * them too, with what its gradients hold by then: all meet afterwards where the error is one of all, and nobody waits.
 */
export class BucketSums implements GradientSums {
  readonly #bucketOf = new Map<Tensor, number>();
  /** By bucket: parameters whose gradients are not final yet, and the stream's ticket of the last. */
  readonly #open: number[];
  readonly #tickets: number[] = [];
  #finished: Promise<void> | null = null;
  /** Seconds spent here when this rank's own gradients were done. */
  seconds = 0;

  constructor(
    readonly device: Device,
    readonly buckets: readonly GradientBucket[],
    /** Replaces values by their sums over the ranks. */
    readonly sum: (piece: GradientPiece) => Promise<void>,
  ) {
    this.#open = buckets.map(({ parameters }) => parameters.length);
    for (const [i, { parameters }] of buckets.entries())
      for (const parameter of parameters) this.#bucketOf.set(parameter, i);
  }

  readonly final = (parameter: Tensor): void => {
    const bucket = this.#bucketOf.get(parameter)!;
    if (--this.#open[bucket]! === 0) this.#tickets[bucket] = this.device.submit();
  };

  finish(): Promise<void> {
    this.#finished ??= this.#sumAll();
    return this.#finished;
  }

  async #sumAll(): Promise<void> {
    const { device, buckets } = this;
    const failures: unknown[] = [];
    const whileWell = async (work: () => void | Promise<void>) => {
      if (failures.length > 0) return;
      try {
        await work();
      } catch (error) {
        failures.push(error);
      }
    };
    let all = 0;
    let done = Number.POSITIVE_INFINITY;
    await whileWell(() => {
      all = device.submit();
    });
    for (const [i, bucket] of buckets.entries()) {
      await whileWell(async () => {
        const ticket = i < buckets.length - 1 ? (this.#tickets[i] ?? all) : all;
        // Signals and messages are served in between.
        do await Bun.sleep(0);
        while (!device.reached(ticket));
        if (device.reached(all, 0)) done = Math.min(done, performance.now());
      });
      for (const piece of bucket.pieces()) await this.sum(piece);
    }
    this.seconds = Math.max(0, performance.now() - done) / 1000;
    if (failures.length > 0) throw failures[0];
  }
}
