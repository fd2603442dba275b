/** How much of its device a run uses. */
import type { Device } from "../device/device.ts";
import { Dtype, type DtypeCode } from "../ops/define.ts";

const PROBE_SECONDS = 0.05;

export class DeviceMeter {
  /** FLOP/s of matrix products in the run's type, measured once; 0 where the device does not say. */
  readonly #peak: number;

  constructor(
    readonly device: Device,
    dtype: DtypeCode,
  ) {
    this.#peak = 1e9 * device.measure(dtype === Dtype.bf16 ? "bf16" : "f32", PROBE_SECONDS);
  }

  /**
   * Runs one step and adds what it took of the device: the most bytes so far, and the FLOPs of its operations as a share of
   * what matrix products alone would reach in the same time. Decoding is bound by memory and keeps that share low.
   */
  async step(body: () => Promise<Record<string, number>>): Promise<Record<string, number>> {
    const begin = performance.now();
    const before = this.device.stats().flops;
    const metrics = await body();
    const { flops, residentPeak } = this.device.stats();
    const seconds = (performance.now() - begin) / 1000;
    const all: Record<string, number> = { ...metrics, "device/peak_bytes": residentPeak };
    if (this.#peak > 0) all["device/flops_utilization"] = (flops - before) / (this.#peak * seconds);
    return all;
  }
}
