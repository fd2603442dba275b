/**
 * `rlv bench metal-model`: estimated times of a GRPO step on Apple's GPUs, kernel by kernel, from what software Metal
 * counts and what is published of the chips. A roofline: nothing of this has run on the hardware.
 */
import type { BenchOptions } from "../../config/schema-inference.ts";
import { CHIPS, type Chip, DISPATCH_SECONDS, REACHED } from "../../core/apple-chips.ts";
import { UsageError } from "../../core/errors.ts";
import { evaluate } from "../../ops/define.ts";
import { dtypeCode } from "../open-model.ts";
import { Counter, type KernelCounts } from "./counts.ts";
import { least } from "./least.ts";
import { capture, type Repeated } from "./workload.ts";

const MATRIX_FLOPS = 2 * 8 ** 3;

/** What all calls of one kernel in one phase of a step need. */
interface KernelWork {
  readonly phase: string;
  readonly kernel: string;
  calls: number;
  /** Every byte of the operation's tensors once, and every threadgroup's own reads and writes. */
  least_bytes: number;
  counted_bytes: number;
  flops: number;
}

/** Splits an operation over its kernels: bytes as they were counted, FLOPs to those that multiply. */
function addOperation(
  kernels: Map<string, KernelWork>,
  phase: string,
  operation: Repeated,
  counts: readonly KernelCounts[],
  times: number,
): void {
  const calls = operation.calls * times;
  const traffic = (k: KernelCounts) => k.loaded_bytes + k.stored_bytes;
  const total = counts.reduce((sum, k) => sum + traffic(k), 0);
  const largest = counts.reduce((a, b) => (traffic(b) > traffic(a) ? b : a));
  const multiplies = counts.some((k) => k.matrix_ops > 0);
  for (const k of counts) {
    const key = `${phase} ${k.kernel}`;
    let work = kernels.get(key);
    if (!work) {
      work = { phase, kernel: k.kernel, calls: 0, least_bytes: 0, counted_bytes: 0, flops: 0 };
      kernels.set(key, work);
    }
    const share = total === 0 ? 0 : traffic(k) / total;
    work.calls += calls * k.dispatches;
    work.least_bytes += calls * share * Math.min(least(operation).once, total);
    work.counted_bytes += calls * traffic(k);
    if (multiplies) work.flops += calls * k.matrix_ops * MATRIX_FLOPS;
    else if (k === largest)
      work.flops += calls * evaluate(operation.op.flops, operation.op, { ...operation.params });
  }
}

type Bound = "memory" | "arithmetic" | "dispatches";

/** Milliseconds if caches serve every repeated read, and if they serve none; what bounds the former. */
function estimate(work: KernelWork, chip: Chip): { low: number; high: number; bound: Bound } {
  const memory = (bytes: number) => bytes / (chip.gbps * 1e9);
  const arithmetic = work.flops / (chip.tflops * 1e12 * REACHED);
  const dispatches = work.calls * DISPATCH_SECONDS;
  const low = Math.max(memory(work.least_bytes), arithmetic, dispatches);
  const bound: Bound = low === dispatches ? "dispatches" : low === arithmetic ? "arithmetic" : "memory";
  return { low: low * 1000, high: Math.max(low, memory(work.counted_bytes)) * 1000, bound };
}

const round = (ms: number) => Number(ms.toPrecision(4));

export function metalModel(
  options: BenchOptions<"metal-model">,
  talk: (line: string) => void,
): Record<string, unknown> {
  const { shape, completions, group, prompt, completion } = options;
  if (completions % group !== 0)
    throw new UsageError(
      `--completions ${completions} --group ${group}`,
      "bench metal-model",
      "give a multiple",
    );
  const chip = CHIPS.find(({ name }) => name.toLowerCase() === options.chip.toLowerCase());
  if (!chip)
    throw new UsageError(
      `unknown chip ${JSON.stringify(options.chip)}`,
      "--chip",
      `one of ${CHIPS.map(({ name }) => name).join(", ")}`,
    );
  const phases = capture({ shape, dtype: dtypeCode(options.dtype), completions, group, prompt, completion });
  const counter = new Counter();
  const kernels = new Map<string, KernelWork>();
  for (const { name, times, operations } of phases) {
    talk(`counting the ${operations.length} different operations of ${name}`);
    for (const operation of operations)
      addOperation(kernels, name, operation, counter.count(operation), times);
  }
  counter.close();
  const all = [...kernels.values()];
  const sum = (of: readonly KernelWork[], on: Chip) => {
    const parts = of.map((work) => estimate(work, on));
    const total = (key: "low" | "high") => round(parts.reduce((ms, part) => ms + part[key], 0));
    return { estimate_ms: total("low"), estimate_ms_without_caches: total("high") };
  };
  return {
    shape,
    dtype: options.dtype,
    ...{ prompt, completion, group, completions },
    note: "estimates from counts on software Metal and published figures of the chips; nothing ran on Apple hardware",
    chip: chip.name,
    estimate_by_kernel: all
      .map((work) => ({ work, time: estimate(work, chip) }))
      .sort((a, b) => b.time.low - a.time.low)
      .map(({ work, time }) => ({
        phase: work.phase,
        kernel: work.kernel,
        calls: work.calls,
        estimate_ms: round(time.low),
        estimate_ms_without_caches: round(time.high),
        bound: time.bound,
        mb: round(work.least_bytes / 1e6),
        mb_counted: round(work.counted_bytes / 1e6),
        gflop: round(work.flops / 1e9),
      })),
    estimate_by_phase: phases.map(({ name }) => ({
      phase: name,
      ...sum(
        all.filter(({ phase }) => phase === name),
        chip,
      ),
    })),
    estimate_by_chip: CHIPS.map((each) => ({ chip: each.name, ...sum(all, each) })),
  };
}
