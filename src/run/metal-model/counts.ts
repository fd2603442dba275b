/** What the kernels of an operation move and multiply, counted by software Metal on a few of its threadgroups. */
import { Device } from "../../device/device.ts";
import { softCounters } from "../../device/lib.ts";
import type { View } from "../../ops/define.ts";
import type { Captured } from "./workload.ts";

export interface KernelCounts {
  readonly kernel: string;
  readonly dispatches: number;
  /** Distinct 32-byte sectors of each threadgroup, summed over threadgroups: what caches do not spare. */
  readonly loaded_bytes: number;
  readonly stored_bytes: number;
  /** Products of 8 x 8 matrices, 1024 FLOPs each. */
  readonly matrix_ops: number;
  readonly barriers: number;
  readonly groups: number;
  readonly threads: number;
  readonly threadgroup_memory: number;
}

/**
 * Threadgroups to run of a dispatch; 0: all of them, where a later kernel reads every result of an earlier one, or
 * where groups differ much. Those of most operations are alike.
 */
const SAMPLED: Readonly<Record<string, number>> = {
  sample: 0,
  attn_fwd: 0,
  attn_decode: 0,
  attn_bwd: 0,
  logprob_bwd: 2,
};
const SAMPLED_OTHERWISE = 8;

export class Counter {
  readonly #symbols = softCounters();
  readonly #device: Device;

  constructor() {
    this.#symbols.soft_counting(1);
    this.#device = Device.open("soft");
    this.#symbols.soft_counting(0);
  }

  /** Counts of one run of an operation on zeros and what the host gave it. */
  count(captured: Captured): KernelCounts[] {
    const { op, params, tensors } = captured;
    this.#symbols.soft_sample_groups(SAMPLED[op.name] ?? SAMPLED_OTHERWISE);
    const buffers = new Map<string, ReturnType<Device["buffer"]>>();
    const args: Record<string, View | number | null> = { ...params };
    for (const [name, tensor] of Object.entries(tensors)) {
      if (!tensor) {
        args[name] = null;
        continue;
      }
      const buffer = buffers.get(tensor.place) ?? this.#device.buffer(tensor.bytes, name);
      buffers.set(tensor.place, buffer);
      if (tensor.data) new Uint8Array(buffer.view(0, tensor.data.length)).set(tensor.data);
      args[name] = buffer.range(0, tensor.bytes);
    }
    this.#read();
    this.#device.emit(op, args as never);
    this.#device.finish();
    const counts = this.#read();
    for (const buffer of buffers.values()) buffer.free();
    return counts;
  }

  #read(): KernelCounts[] {
    const out = new Uint8Array(65536);
    const length = this.#symbols.soft_counters(out, out.length, 1);
    const kernels: Record<string, Omit<KernelCounts, "kernel">> = JSON.parse(
      new TextDecoder().decode(out.subarray(0, length)),
    );
    return Object.entries(kernels).map(([kernel, counts]) => ({ kernel, ...counts }));
  }

  close(): void {
    this.#device.close();
  }
}
