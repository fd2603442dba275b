/** Every operation of a GRPO step at its own shape, timed on the device one by one. */
import type { BenchOptions } from "../../config/schema-inference.ts";
import type { Device, Trace } from "../../device/device.ts";
import { Dtype, evaluate, type Operation, operationId } from "../../ops/define.ts";
import { catalogue } from "../../ops/index.ts";
import { least } from "../metal-model/least.ts";
import { type Captured, Capturer } from "../metal-model/workload.ts";
import { Bench, type Context, median, type Result } from "./context.ts";
import { GrpoSubject } from "./grpo.ts";

type PhaseName = "prefill" | "decode" | "reference" | "training" | "optimizer";

/** What all calls of one operation at one shape in one phase of a step do. */
interface Row {
  readonly phase: PhaseName;
  readonly op: Operation;
  readonly shape: string;
  readonly dt: number;
  calls: number;
  ns: number;
  flops: number;
  bytes: number;
}

interface Timed {
  readonly captured: Captured;
  ns: number;
}

/** Settings that say nothing about how much there is to do, or differ with every token. */
const NOT_SHAPE =
  /^(dt|ydt|wdt|mdt|edt|ddt|sdt|seed|purpose|tensor|slots?|step|pairs|max_p.*|.*_pages|greedy|top_k)$/;

function shapeOf({ op, params }: Captured): string {
  if (op.name.startsWith("gemm_")) return `${params.m}x${params.n}x${params.k}`;
  return Object.entries(op.params)
    .filter(([name, type]) => type === "u32" && !NOT_SHAPE.test(name))
    .map(([name]) => `${name} ${params[name]}`)
    .join(" ");
}

/**
 * Runs every operation alone and takes its time from the device's profile. Which phase it belongs to shows when the
 * round ends in which it was emitted.
 */
class OpTimer extends Capturer implements Trace {
  readonly rows = new Map<string, Row>();
  #round: Timed[] = [];
  #before = 0;
  constructor(readonly device: Device) {
    super();
    device.profile(true, catalogue.length);
    device.trace = this;
  }

  #nanoseconds(op: Operation): number {
    return this.device.profile(true, catalogue.length)[4 * operationId(op) + 1]!;
  }

  emitted(op: Operation, args: Readonly<Record<string, unknown>>): void {
    this.#settle();
    this.#before = this.#nanoseconds(op);
    this.#round.push({ captured: this.capture(op, args), ns: 0 });
  }

  /** The operation before this one has now run. */
  #settle(): void {
    const last = this.#round.at(-1);
    if (!last || last.ns > 0) return;
    this.device.finish();
    last.ns = this.#nanoseconds(last.captured.op) - this.#before;
  }

  /** Ends rounds: `phaseOf` sees each operation with those of its round up to the next `ends`. */
  close(ends: (op: string) => boolean, phaseOf: (names: readonly string[]) => PhaseName): void {
    this.#settle();
    let round: Timed[] = [];
    const flush = () => {
      if (round.length === 0) return;
      const phase = phaseOf(round.map(({ captured }) => captured.op.name));
      for (const { captured, ns } of round) this.#add(phase, captured, ns);
      round = [];
    };
    for (const each of this.#round) {
      round.push(each);
      if (ends(each.captured.op.name)) flush();
    }
    flush();
    this.#round = [];
  }

  #add(phase: PhaseName, captured: Captured, ns: number): void {
    const { op, params } = captured;
    const shape = shapeOf(captured);
    const dt = params.dt ?? Dtype.f32;
    const key = `${phase} ${op.name} ${shape} ${dt}`;
    let row = this.rows.get(key);
    if (!row) {
      row = { phase, op, shape, dt, calls: 0, ns: 0, flops: 0, bytes: 0 };
      this.rows.set(key, row);
    }
    row.calls += 1;
    row.ns += ns;
    row.flops += evaluate(op.flops, op, { ...params });
    row.bytes += least(captured).once;
  }

  stop(): void {
    this.device.trace = null;
    this.device.profile(false, catalogue.length);
  }
}

/** A round of tokens ends with its draw; one without cached keys is a prompt's. */
const rolloutPhase = (names: readonly string[]): PhaseName =>
  names.includes("attn_decode") ? "decode" : "prefill";

/** Clearing the gradients begins the training, their norms the optimizer's step. */
function updatePhase(): (names: readonly string[]) => PhaseName {
  let phase: PhaseName = "reference";
  return ([name]) => {
    if (phase === "reference" && name === "fill") phase = "training";
    if (phase === "training" && name === "sq_norm") phase = "optimizer";
    return phase;
  };
}

const MARK_ABOVE = 0.05;

export async function ops(options: BenchOptions<"ops">, context: Context): Promise<Result> {
  using bench = new Bench("ops", options, context.talk, true);
  const { shape, prompt, completion, group, completions, beta } = options;
  const work = { ...options, share_prefix: true };
  const subject = new GrpoSubject(bench, shape, prompt + completion, { beta, checkpointing: false });
  const { policy, prompts } = subject.step(work);
  const runs: Map<string, Row>[] = [];
  await bench.repeat(async (i) => {
    const timer = i === 0 ? null : new OpTimer(bench.device);
    await policy.generate(i + 1, prompts);
    timer?.close((op) => op === "sample", rolloutPhase);
    await policy.update(i + 1, 1e-6);
    timer?.close(() => true, updatePhase());
    timer?.stop();
    if (timer) runs.push(timer.rows);
  });
  const rows = [...runs[0]!].map(([key, row]) => ({
    ...row,
    ns: median(runs.map((run) => run.get(key)?.ns ?? 0)),
  }));
  const total = (some: readonly Row[]) => some.reduce((sum, row) => sum + row.ns, 0);
  const whole = total(rows);
  const { read_gbps, gemm_gflops } = bench.limit;
  const peakOf = (row: Row) => (row.dt === Dtype.bf16 ? gemm_gflops : bench.float32Gflops);
  const atLeast = (row: Row) => Math.max(row.flops / peakOf(row), row.bytes / read_gbps);
  const list = rows
    .sort((a, b) => b.ns - a.ns)
    .map((row) => {
      const ofPhase = row.ns / total(rows.filter(({ phase }) => phase === row.phase));
      return {
        ...{ op: row.op.name, shape: row.shape, phase: row.phase, calls: row.calls, ms: row.ns / 1e6 },
        ...{ share_of_phase: ofPhase, share_of_step: row.ns / whole },
        ...{ gflops: row.flops / row.ns, gbps: row.bytes / row.ns },
        // Small operands stay in a cache: more than the memory's limit is possible.
        fraction_of_limit: atLeast(row) / row.ns,
        ...(ofPhase > MARK_ABOVE ? { large: true } : {}),
      };
    });
  const phases = [...Map.groupBy(rows, ({ phase }) => phase)].map(([phase, some]) => ({
    phase,
    ms: total(some) / 1e6,
    fraction_of_limit: some.reduce((sum, row) => sum + atLeast(row), 0) / total(some),
  }));
  const result = bench.result(shape, { prompt, completion, group, completions, beta, ops: list }, [], 1);
  return {
    ...result,
    float32_gflops: bench.float32Gflops,
    phases,
    fraction_of_limit: rows.reduce((sum, row) => sum + atLeast(row), 0) / whole,
  };
}
