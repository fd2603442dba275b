/** What every benchmark has: a device, its limits measured among the work, repetitions, the form of a result. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { BenchName, BenchOptions } from "../../config/schema-inference.ts";
import { threadCount } from "../../core/env.ts";
import type { Device } from "../../device/device.ts";
import { writeModelFolder } from "../../io/hf-folder.ts";
import { type AdapterOptions, initialiseAdapters } from "../../nn/adapters.ts";
import type { Quantization } from "../../nn/quantized.ts";
import { Transformer } from "../../nn/transformer.ts";
import { Dtype, type DtypeCode, type MomentCode } from "../../ops/define.ts";
import { Costs, leastSeconds, type MachineLimit, type Work } from "../limits.ts";
import { dtypeCode, openDevice } from "../open-model.ts";
import { configOf, type Kind, type Shape } from "./shapes.ts";

export type Result = Readonly<Record<string, unknown>> & { readonly name: BenchName };
export interface Context {
  readonly talk: (line: string) => void;
  /** argv that starts this program again. */
  readonly program: readonly string[];
}
type Common = Pick<
  BenchOptions<Exclude<BenchName, "metal-model">>,
  "device" | "threads" | "dtype" | "seed" | "steps"
>;

/** Seconds of a part of the work, one a repetition, and what it does at least. */
export interface Phase {
  readonly name: string;
  readonly seconds: readonly number[];
  readonly work: readonly Work[];
}

export const median = (values: readonly number[]): number => {
  if (values.length === 0) return 0;
  const sorted = [...values].sort((a, b) => a - b);
  const mid = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[mid]! : (sorted[mid - 1]! + sorted[mid]!) / 2;
};

export const seconds = (since: number): number => (performance.now() - since) / 1000;

/** Small pseudo-random weights: speed does not depend on values as long as everything stays finite. */
function fillWeights(model: Transformer): void {
  for (const p of model.parameters.list) {
    const size = p.shape.reduce((a, b) => a * b, 1);
    const values = new Float32Array(size);
    if (p.name.endsWith("norm.weight")) values.fill(1);
    else
      for (let i = 0, x = 12345; i < size; i++) {
        x = (Math.imul(x, 1664525) + 1013904223) | 0;
        values[i] = x * 2e-11;
      }
    model.parameters.load(p.name, values);
  }
}

/** Seconds of one measurement of a limit. */
const SLICE = 0.04;

/**
 * Limits are measured between repetitions, in short slices: other work on the machine slows both alike. The memory of
 * the read test is taken before the work and stays, so that it can be left out of the process's peak.
 */
export class Bench implements Disposable {
  readonly device: Device;
  readonly #gflops: number[] = [];
  readonly #float32: number[] = [];
  readonly #gbps: number[] = [];
  readonly #kept: number;
  readonly #folders: string[] = [];
  #peak = 0;

  constructor(
    readonly name: BenchName,
    readonly options: Common,
    readonly talk: (line: string) => void,
    /** Whether the peak of float32 is wanted beside that of the benchmark's dtype. */
    readonly wantsFloat32 = false,
  ) {
    this.device = openDevice(options.device, options.threads);
    this.#kept = this.device.measureBytes;
    this.#measure();
  }

  get elementBytes(): number {
    return this.options.dtype === "bfloat16" ? 2 : 4;
  }

  #measure(): void {
    const dtype = this.options.dtype === "bfloat16" ? "bf16" : "f32";
    this.#gflops.push(this.device.measure(dtype, SLICE));
    if (this.wantsFloat32 && dtype !== "f32") this.#float32.push(this.device.measure("f32", SLICE));
    // A test that takes and gives back its memory waits until the peak has been read.
    if (this.#kept > 0 || this.#peak > 0) this.#gbps.push(this.device.measure("read", SLICE));
  }

  /** Resident peak of the process without the read test's memory. */
  #takePeak(): void {
    if (this.#peak > 0) return;
    this.#peak = this.device.stats().residentPeak - this.#kept;
    for (let i = 0; this.#kept === 0 && i < 5; i++) this.#measure();
  }

  get limit(): MachineLimit {
    return {
      gemm_gflops: Math.max(0, ...this.#gflops),
      gemm_gflops_median: median(this.#gflops),
      read_gbps: Math.max(0, ...this.#gbps),
      read_gbps_median: median(this.#gbps),
    };
  }

  /** Peak of float32 multiply-adds, GFLOP/s. */
  get float32Gflops(): number {
    return this.options.dtype === "bfloat16" ? Math.max(0, ...this.#float32) : this.limit.gemm_gflops;
  }

  model(
    shape: Shape,
    maxPositions: number,
    options: {
      readonly trainable: boolean;
      readonly checkpointing?: boolean;
      readonly lora?: AdapterOptions | null;
      readonly quantization?: Quantization | null;
      readonly momentDtype?: MomentCode;
      readonly gradientDtype?: DtypeCode;
      readonly kind?: Kind;
    },
  ): Transformer {
    const { kind = "causal", ...rest } = options;
    this.talk(`making random weights of shape ${shape}`);
    const dtype = dtypeCode(this.options.dtype);
    const model = new Transformer(
      this.device,
      configOf(shape, kind),
      { dtype, maxPositions, ...rest },
      shape,
    );
    fillWeights(model);
    if (model.adapters) initialiseAdapters(model.adapters, model.parameters, this.options.seed);
    return model;
  }

  /** The model's weights as a folder, removed when the benchmark ends. */
  folder(model: Transformer): string {
    const folder = mkdtempSync(join(tmpdir(), "rlv-bench-"));
    this.#folders.push(folder);
    const bf16 = model.options.dtype === Dtype.bf16;
    const { parameters, config } = model;
    writeModelFolder(
      folder,
      { ...config, dtype: bf16 ? "bfloat16" : "float32" },
      parameters.list.map((p) => ({
        name: p.name,
        shape: p.shape,
        dtype: bf16 ? "BF16" : "F32",
        data: () => new Uint8Array((bf16 ? parameters.readBf16(p.name) : parameters.read(p.name)).buffer),
      })),
      [],
    );
    writeFileSync(join(folder, "generation_config.json"), "{}");
    return folder;
  }

  costs(shape: Shape, kind?: Kind, weightBytes?: number): Costs {
    return new Costs(configOf(shape, kind), this.elementBytes, weightBytes);
  }

  /** One warm-up, then `steps` repetitions with the limits measured between them; seconds of each. */
  async repeat(body: (i: number) => Promise<void> | void, what: string = this.name): Promise<number[]> {
    const { steps } = this.options;
    const times: number[] = [];
    for (let i = 0; i <= steps; i++) {
      const begin = performance.now();
      await body(i);
      if (i > 0) times.push(seconds(begin));
      this.#measure();
      this.talk(`${what} ${i === 0 ? "warm-up" : `${i}/${steps}`}`);
    }
    return times;
  }

  /** Median seconds of a phase beside the least that its work takes at the measured limits. */
  phase({ name, seconds: times, work }: Phase): Record<string, string | number> {
    const taken = median(times);
    const least_s = leastSeconds(work, this.limit);
    const total = (key: keyof Work) => work.reduce((sum, each) => sum + each[key], 0);
    return {
      phase: name,
      seconds: taken,
      best_s: Math.min(...times),
      least_s,
      fraction_of_limit: least_s / taken,
      gflops: total("flops") / taken / 1e9,
      gbps: total("bytes") / taken / 1e9,
    };
  }

  /** A result whose fraction is that of all phases with work together in `taken` seconds. */
  result(
    shape: string,
    figures: Record<string, unknown>,
    phases: readonly Phase[],
    taken: number = phases.reduce((sum, phase) => sum + median(phase.seconds), 0),
  ): Result {
    this.#takePeak();
    const least = phases.reduce((sum, { work }) => sum + leastSeconds(work, this.limit), 0);
    return {
      name: this.name,
      shape,
      device: this.device.name,
      threads: threadCount(this.options.threads),
      dtype: this.options.dtype,
      ...figures,
      phases: phases.map((phase) => this.phase(phase)),
      peak_bytes: this.#peak,
      limit: this.limit,
      fraction_of_limit: least / taken,
    };
  }

  /** Ends the device, which takes all memory of the benchmark along. */
  [Symbol.dispose](): void {
    for (const folder of this.#folders) rmSync(folder, { recursive: true, force: true });
    this.device.close();
  }
}
