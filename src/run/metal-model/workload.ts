/** The operations of real work at a model's shape, collected on the device without memory. */
import { Purpose } from "../../core/rng.ts";
import { Device, type Trace } from "../../device/device.ts";
import { AdamW } from "../../nn/optimizer.ts";
import { Transformer } from "../../nn/transformer.ts";
import type { DtypeCode, Operation, View } from "../../ops/define.ts";
import { RolloutEngine } from "../../rollout/engine.ts";
import { packGroups } from "../../rollout/pack.ts";
import { forwardRow } from "../../rollout/score.ts";
import { Graph, StepMemory } from "../../tape/tape.ts";
import { configOf, promptIds, type Shape, sampling } from "../bench/shapes.ts";

/** One tensor of an operation. Tensors of one operation with the same `place` are the same memory. */
export interface CapturedTensor {
  readonly place: string;
  readonly bytes: number;
  /** What the host wrote there. */
  readonly data: Uint8Array | null;
}

export interface Captured {
  readonly op: Operation;
  readonly params: Readonly<Record<string, number>>;
  readonly tensors: Readonly<Record<string, CapturedTensor | null>>;
}

/** Operations that one dispatch table of the GPU treats alike, and how often they run. */
export interface Repeated extends Captured {
  readonly calls: number;
}

export interface Phase {
  readonly name: string;
  /** How often the phase runs in a step. */
  readonly times: number;
  readonly operations: readonly Repeated[];
}

/** Knows what the host wrote, and so what an operation is given. */
export class Capturer {
  readonly #written = new Map<string, Uint8Array>();

  capture(op: Operation, args: Readonly<Record<string, unknown>>): Captured {
    const tensors: Record<string, CapturedTensor | null> = {};
    for (const [name, field] of Object.entries(op.tensors)) {
      const view = args[name] as View | null | undefined;
      if (!view) {
        tensors[name] = null;
        continue;
      }
      const place = `${view.buffer}:${view.offset}`;
      const data = field.access === "in" ? (this.#written.get(place) ?? null) : null;
      tensors[name] = { place, bytes: view.length * 16, data };
      if (field.access !== "in") this.#written.delete(place);
    }
    const params = Object.fromEntries(Object.keys(op.params).map((name) => [name, args[name] as number]));
    return { op, params, tensors };
  }

  uploaded(buffer: number, offset: number, data: Uint8Array): void {
    this.#written.set(`${buffer}:${offset}`, data.slice());
  }
}

class Recorder extends Capturer implements Trace {
  readonly operations: Captured[] = [];

  emitted(op: Operation, args: Readonly<Record<string, unknown>>): void {
    this.operations.push(this.capture(op, args));
  }
}

/** Settings that change what the host passes along, not what the GPU does. */
const WITHOUT_EFFECT = new Set(["tensor", "slot", "slots", "step", "seed"]);

/** Equal operations once, in the order of their first appearance. */
export function repeated(operations: readonly Captured[]): Repeated[] {
  const kinds = new Map<string, { captured: Captured; calls: number }>();
  for (const captured of operations) {
    const { op, params, tensors } = captured;
    const settings = Object.entries(params).filter(([name]) => !WITHOUT_EFFECT.has(name));
    const places = [...new Set(Object.values(tensors).map((t) => t?.place))];
    const layout = Object.values(tensors).map((t) => (t ? `${places.indexOf(t.place)}/${t.bytes}` : "-"));
    const key = JSON.stringify([op.name, settings, layout]);
    const known = kinds.get(key);
    if (known) known.calls += 1;
    else kinds.set(key, { captured, calls: 1 });
  }
  return [...kinds.values()].map(({ captured, calls }) => ({ ...captured, calls }));
}

export interface Work {
  readonly shape: Shape;
  readonly dtype: DtypeCode;
  readonly completions: number;
  readonly group: number;
  readonly prompt: number;
  readonly completion: number;
}

/** A GRPO step: prompts encoded once for their groups, decoding, reference, forward and backward pass, AdamW. */
export function capture(work: Work): Phase[] {
  const { dtype, completions, group, prompt: P, completion: C } = work;
  const config = configOf(work.shape);
  const device = Device.open("null");
  const model = new Transformer(device, config, { dtype, trainable: true, maxPositions: P + C }, "policy");
  const memory = new StepMemory(device);
  const record = (body: () => void): Captured[] => {
    const recorder = new Recorder();
    device.trace = recorder;
    body();
    memory.finish();
    device.trace = null;
    return recorder.operations;
  };

  const prompts = Array.from({ length: completions / group }, (_, i) => promptIds(i, P, config.vocabSize));
  const engine = new RolloutEngine(memory, model, {
    maxBatch: completions,
    maxLength: P + C,
    prefillTokens: prompts.length * P,
  });
  // A step in the middle stands for all: attention grows linearly with what is cached.
  const rollout = record(() => {
    const requests = prompts.map((ids, prompt) => ({ ids, prompt, completions: group }));
    const key = { seed: 1, purpose: Purpose.generate, step: 0 };
    engine.generate(requests, sampling(Math.max(2, Math.ceil(C / 2))), key);
  });
  const drawn = rollout.flatMap(({ op }, i) => (op.name === "sample" ? [i + 1] : []));
  const row = packGroups(
    prompts.map((prompt, i) => ({
      prompt,
      completions: Array.from({ length: group }, (_, c) => promptIds(i * group + c + 1, C, config.vocabSize)),
    })),
  );
  const reference = record(() => {
    const g = new Graph(memory, false);
    const { logprob, entropy } = forwardRow(g, model, row, 1);
    g.release(logprob, entropy);
  });
  const training = record(() => {
    const g = new Graph(memory, true);
    const { logprob, entropy } = forwardRow(g, model, row, 1);
    g.backward([[logprob, g.upload(new Float32Array(logprob.size).fill(-1e-3), "seed")]]);
    g.release(logprob, entropy);
  });
  const optimizer = record(() => {
    const options = { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, maxGradNorm: 1, seed: 1 };
    new AdamW(model.trained, options).step(memory, 1, 1e-6);
  });
  device.close();
  const phase = (name: string, operations: readonly Captured[], times = 1): Phase => ({
    name,
    times,
    operations: repeated(operations),
  });
  return [
    phase("prefill", rollout.slice(0, drawn[0])),
    phase("decode", rollout.slice(drawn.at(-2), drawn.at(-1)), C - 1),
    phase("reference", reference),
    phase("training", training),
    phase("optimizer", optimizer),
  ];
}
