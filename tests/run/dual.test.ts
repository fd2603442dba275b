/** Retain and forget adapters: one routed pass is two homogeneous ones, scales, and that the sampler is the trainer. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { Purpose, Random } from "../../src/core/rng.ts";
import { policyOptions } from "../../src/loss/options.ts";
import {
  type AdapterOptions,
  adapterNames,
  type DualLoraOptions,
  dualTensors,
  initialiseAdapters,
  putSide,
  sideOf,
} from "../../src/nn/adapters.ts";
import type { Decoder, Transformer, TransformerOptions } from "../../src/nn/transformer.ts";
import { Dtype } from "../../src/ops/define.ts";
import { Route } from "../../src/ops/lora.ts";
import { type Group, packGroups } from "../../src/rollout/pack.ts";
import { forwardRow, scoreGroups } from "../../src/rollout/score.ts";
import { Reference } from "../../src/run/reference.ts";
import { unitsOf } from "../../src/run/routing.ts";
import { Graph, type StepMemory } from "../../src/tape/tape.ts";
import { norm, relativeL2 } from "../golden/support.ts";
import { type Family, promptOf, Tiny } from "./tiny.ts";
import { tinyPolicyStep, tinyPrompts } from "./tiny-policy.ts";

const dual: DualLoraOptions = {
  retain: { r: 3, alpha: 6, targets: "all-linear" },
  forget: { r: 2, alpha: 8, targets: "all-linear" },
};
/** Maps with both, with one of either, and with none. */
const partial: DualLoraOptions = {
  retain: { r: 4, alpha: 4, targets: ["q_proj", "down_proj"], rslora: true },
  forget: { r: 5, alpha: 10, targets: ["q_proj", "v_proj"], rankPattern: { "layers.1.self_attn.q_proj": 2 } },
};

/** A tiny model whose adapters have moved, as after training. */
function adapted(
  family: Family,
  lora: AdapterOptions,
  options: Partial<TransformerOptions> = {},
  threads = 2,
): Tiny {
  const tiny = new Tiny(family, { lora, trainable: true, ...options }, threads);
  const { adapters, parameters } = tiny.model;
  initialiseAdapters(adapters!, parameters, 11);
  for (const [i, { name, shape }] of adapters!.list.entries())
    if (name.endsWith("lora_B.weight")) adapters!.load(name, normal(shape[0]! * shape[1]!, i));
  return tiny;
}

function normal(n: number, key: number): Float32Array {
  const random = new Random(3, Purpose.init, key);
  return Float32Array.from({ length: n }, () => 0.1 * random.normal());
}
const bits = (values: Float32Array) => [...new Uint32Array(values.slice().buffer)];

type Gradients = Map<string, Float32Array>;

/** Gradients by side of -Σ weight·logprob over the completions of a packed row. */
function gradients(
  memory: StepMemory,
  model: Transformer,
  row: ReturnType<typeof packGroups>,
  weights: Float32Array,
): Gradients {
  model.trained.zeroGradients();
  const g = new Graph(memory, true);
  const { logprob, entropy } = forwardRow(g, model, row, 1);
  g.backward([[logprob, g.upload(weights, "seed")]]);
  g.release(logprob, entropy);
  memory.finish();
  expect(memory.used).toBe(0);
  return new Map(
    dualTensors(model.adaptedMaps).map((tensor) => [
      tensor.name,
      sideOf(tensor, model.trained.readGradient(tensor.parameter)),
    ]),
  );
}

const sum = (a: Float32Array, b: Float32Array) => a.map((x, i) => x + b[i]!);
const isRetain = (name: string) => name.includes(".retain.");
/** The largest relative difference over all tensors. */
function worst(got: Gradients, want: Gradients): number {
  let most = 0;
  for (const [name, values] of want) {
    const found = got.get(name)!;
    most = Math.max(most, norm(values) === 0 ? norm(found) : relativeL2(found, values));
  }
  return most;
}

/** Groups of completions of which some are flagged, and a weight for every token. */
interface Batch {
  readonly groups: readonly Group[];
  readonly flags: readonly (readonly boolean[])[];
  readonly weightOf: (group: number, completion: number) => Float32Array;
}
const flat = (parts: readonly Float32Array[]) => Float32Array.from(parts.flatMap((p) => [...p]));

function routed(batch: Batch, routing: "classic" | "exclusive", sharePrefix = true) {
  const rows = batch.groups.flatMap(({ completions }, i) => completions.map((_, c) => [i, c] as const));
  const units = unitsOf(
    batch.groups,
    rows.map((_, row) => row),
    (row) => batch.flags[rows[row]![0]]![rows[row]![1]]!,
    routing,
  );
  const weights = flat(units.flatMap((u) => u.rows.map((row) => batch.weightOf(...rows[row]!))));
  return {
    row: packGroups(
      units.map((u) => u.group),
      sharePrefix,
    ),
    weights,
  };
}

/** All completions, or those of one class, as an ordinary batch that knows no routes. */
function plain(batch: Batch, wanted: (flagged: boolean) => boolean, sharePrefix = true) {
  const groups: Group[] = [];
  const weights: Float32Array[] = [];
  batch.groups.forEach(({ prompt, completions }, i) => {
    const members = completions.flatMap((_, c) => (wanted(batch.flags[i]![c]!) ? [c] : []));
    if (members.length === 0) return;
    groups.push({ prompt, completions: members.map((c) => completions[c]!) });
    weights.push(...members.map((c) => batch.weightOf(i, c)));
  });
  return { row: packGroups(groups, sharePrefix), weights: flat(weights), empty: groups.length === 0 };
}

/**
 * The definition: one pass over the flagged completions, one over the others, each weighed by its share of the whole
 * batch (here in the weights of its tokens); the retain gradients of the flagged pass are zeroed, and with `exclusive`
 * the forget gradients of the other.
 */
function twoPasses(
  { memory, model }: Tiny,
  batch: Batch,
  routing: "classic" | "exclusive",
  sharePrefix: boolean,
  around: (body: () => Gradients) => Gradients = (body) => body(),
): Gradients {
  const pass = (flagged: boolean): Gradients | null => {
    const { row, weights, empty } = plain(batch, (f) => f === flagged, sharePrefix);
    return empty ? null : gradients(memory, model, row, weights);
  };
  const others = pass(false);
  const flagged = plain(batch, (f) => f, sharePrefix).empty ? null : around(() => pass(true)!);
  const names = [...(others ?? flagged)!.keys()];
  return new Map(
    names.map((name) => {
      const zero = new Float32Array((others ?? flagged)!.get(name)!.length);
      const ofFlagged = isRetain(name) ? zero : (flagged?.get(name) ?? zero);
      const ofOthers = routing === "exclusive" && !isRetain(name) ? zero : (others?.get(name) ?? zero);
      return [name, sum(ofFlagged, ofOthers)];
    }),
  );
}

function batchOf(
  vocab: number,
  sizes: readonly (readonly [number, readonly (readonly [number, boolean])[]])[],
): Batch {
  return {
    groups: sizes.map(([prompt, completions], i) => ({
      prompt: promptOf(prompt, vocab, i),
      completions: completions.map(([length], c) => promptOf(length, vocab, 10 + 7 * i + c)),
    })),
    flags: sizes.map(([, completions]) => completions.map(([, flagged]) => flagged)),
    weightOf: (group, completion) => normal(sizes[group]![1][completion]![0], 100 * group + completion),
  };
}

const MIXED = [
  [
    20,
    [
      [7, true],
      [12, false],
      [1, true],
      [9, false],
    ],
  ],
  [
    5,
    [
      [6, false],
      [8, false],
    ],
  ],
  [
    33,
    [
      [4, true],
      [11, true],
    ],
  ],
] as const;
const TOLERANCE = 1e-6;

describe("one routed pass is two homogeneous ones", () => {
  const sizes = fc.array(
    fc.tuple(
      fc.integer({ min: 1, max: 40 }),
      fc.array(fc.tuple(fc.integer({ min: 1, max: 20 }), fc.boolean()), { minLength: 1, maxLength: 6 }),
    ),
    { minLength: 1, maxLength: 4 },
  );

  test.each(["classic", "exclusive"] as const)("%s, on any batch", (routing) => {
    using tiny = adapted("llama", dual);
    fc.assert(
      fc.property(sizes, (shape) => {
        const batch = batchOf(tiny.model.config.vocabSize, shape);
        const { row, weights } = routed(batch, routing);
        const got = gradients(tiny.memory, tiny.model, row, weights);
        expect(worst(got, twoPasses(tiny, batch, routing, true))).toBeLessThan(TOLERANCE);
        // Sharing prompts changes the order of sums, nothing else.
        expect(worst(got, twoPasses(tiny, batch, routing, false))).toBeLessThan(10 * TOLERANCE);
      }),
      { numRuns: 25 },
    );
  });

  test.each([
    ["maps with one adapter alone", "llama", partial, {}],
    ["qwen3", "qwen3", dual, {}],
    ["gradient checkpointing", "qwen3", partial, { checkpointing: true }],
    ["one thread", "llama", dual, {}],
    ["a base of int8", "qwen3", dual, { quantization: { type: "int8", head: false } }],
    ["a base of nf4", "qwen3", dual, { quantization: { type: "nf4", head: false } }],
  ] as const)("%s", (title, family, lora, options) => {
    using tiny = adapted(family, lora, options, title === "one thread" ? 1 : 2);
    const batch = batchOf(tiny.model.config.vocabSize, MIXED);
    const { row, weights } = routed(batch, "classic");
    const got = gradients(tiny.memory, tiny.model, row, weights);
    expect(worst(got, twoPasses(tiny, batch, "classic", true))).toBeLessThan(TOLERANCE);
  });

  test("bfloat16, to its rounding", () => {
    using tiny = adapted("qwen3", dual, { dtype: Dtype.bf16 });
    const batch = batchOf(tiny.model.config.vocabSize, MIXED);
    const { row, weights } = routed(batch, "classic");
    const got = gradients(tiny.memory, tiny.model, row, weights);
    expect(worst(got, twoPasses(tiny, batch, "classic", true))).toBeLessThan(0.02);
  });

  test("what routing leaves alone: forget gradients are those of the whole batch, retain gradients those of the others", () => {
    using tiny = adapted("llama", dual);
    const { memory, model } = tiny;
    const batch = batchOf(model.config.vocabSize, MIXED);
    const { row, weights } = routed(batch, "classic");
    const got = gradients(memory, model, row, weights);
    const whole = plain(batch, () => true);
    const others = plain(batch, (flagged) => !flagged);
    const all = gradients(memory, model, whole.row, whole.weights);
    const honest = gradients(memory, model, others.row, others.weights);
    for (const [name, values] of got)
      expect(relativeL2(values, (isRetain(name) ? honest : all).get(name)!)).toBeLessThan(TOLERANCE);
  });

  test("nothing flagged: the bits of an unrouted pass; all flagged: retain gradients are zero", () => {
    using tiny = adapted("llama", dual);
    const { memory, model } = tiny;
    const sizesOf = (flag: boolean) =>
      MIXED.map(([n, list]) => [n, list.map(([length]) => [length, flag] as const)] as const);
    const of = (flag: boolean) => {
      const { row, weights } = routed(batchOf(model.config.vocabSize, sizesOf(flag)), "classic");
      return gradients(memory, model, row, weights);
    };
    const whole = plain(batchOf(model.config.vocabSize, sizesOf(false)), () => true);
    const all = gradients(memory, model, whole.row, whole.weights);
    const [none, every] = [of(false), of(true)];
    for (const [name, values] of all) {
      expect(bits(none.get(name)!)).toEqual(bits(values));
      if (isRetain(name)) expect(norm(every.get(name)!)).toBe(0);
      else expect(bits(every.get(name)!)).toEqual(bits(values));
    }
  });
});

describe("a broken routing is found:", () => {
  test("prompts shared by flagged and other completions", () => {
    using tiny = adapted("llama", dual);
    const batch = batchOf(tiny.model.config.vocabSize, MIXED);
    const want = twoPasses(tiny, batch, "classic", true);
    const { row, weights } = plain(batch, () => true);
    const flags = batch.flags.flat();
    for (const ofPrompt of [0, Route.skipFirst]) {
      const routes = new Uint32Array(row.ids.length).fill(ofPrompt);
      let completion = 0;
      for (let s = 0; s < row.segmentCount; s++) {
        const [start, length, parent] = row.segments.subarray(8 * s, 8 * s + 3) as unknown as number[];
        if (parent === 0xffffffff) continue;
        // A completion of one token has no segment of its own.
        while (batch.groups.flatMap((g) => g.completions)[completion]!.length === 1) completion++;
        routes.fill(flags[completion++] ? Route.skipFirst : 0, start, start! + length!);
      }
      const got = gradients(tiny.memory, tiny.model, { ...row, routes }, weights);
      expect(worst(got, want)).toBeGreaterThan(0.01);
    }
  });

  test("activations detached on their way through the retain adapters", () => {
    using tiny = adapted("llama", dual);
    const { device, memory, model } = tiny;
    const batch = batchOf(model.config.vocabSize, MIXED);
    const { row, weights } = routed(batch, "classic");
    const got = gradients(memory, model, row, weights);
    const emit = device.emit.bind(device);
    const detached = twoPasses(tiny, batch, "classic", true, (body) => {
      device.emit = ((op: { name: string }, args: object) =>
        emit(
          op as never,
          (op.name === "lora_bwd" ? { ...args, scale: 0 } : args) as never,
        )) as typeof device.emit;
      try {
        return body();
      } finally {
        device.emit = emit;
      }
    });
    expect(worst(got, twoPasses(tiny, batch, "classic", true))).toBeLessThan(TOLERANCE);
    expect(worst(got, detached)).toBeGreaterThan(0.01);
  });
});

describe.each([Dtype.f32, Dtype.bf16])("scales, dtype %p", (dtype) => {
  const groupsOf = (model: Decoder): Group[] =>
    [20, 33].map((n, i) => ({
      prompt: promptOf(n, model.config.vocabSize, i),
      completions: [7, 12, 1].map((c) => promptOf(c, model.config.vocabSize, 10 + c)),
    }));
  const scored = ({ memory }: Tiny, model: Decoder) =>
    scoreGroups(memory, model, groupsOf(model), 1, 4096).logprobs.flat().map(bits);
  /** A model with one side's adapters alone, as an ordinary adapter. */
  const alone = (tiny: Tiny, lora: DualLoraOptions, side: "retain" | "forget"): Tiny => {
    const single = adapted("llama", lora[side], { dtype });
    const { model } = single;
    for (const tensor of dualTensors(tiny.model.adaptedMaps)) {
      if (!tensor.name.includes(`.${side}.`)) continue;
      const values = sideOf(tensor, tiny.model.trained.readRounded(tensor.parameter));
      model.trained.load(tensor.parameter, values);
    }
    return single;
  };

  test("(1, 0) has the bits of the retain adapter alone, (0, 0) those of the base, (1, 1) those of training", () => {
    for (const lora of [dual, partial]) {
      using tiny = adapted("llama", lora, { dtype });
      using retain = alone(tiny, lora, "retain");
      const { model } = tiny;
      const both = scored(tiny, model);
      const base = scored(tiny, model.base);
      model.setScales(1, 0);
      expect(scored(tiny, model)).toEqual(scored(retain, retain.model));
      expect(scored(tiny, model)).not.toEqual(both);
      model.setScales(0, 0);
      expect(scored(tiny, model)).toEqual(base);
      expect(scored(tiny, model.base)).toEqual(base);
      model.setScales(1, 1);
      expect(scored(tiny, model)).toEqual(both);
    }
  });

  test("(0, 1) is the forget adapter alone", () => {
    using tiny = adapted("llama", dual, { dtype });
    using forget = alone(tiny, dual, "forget");
    tiny.model.setScales(0, 1);
    const values = (t: Tiny) => scoreGroups(t.memory, t.model, groupsOf(t.model), 1, 4096).logprobs.flat(2);
    const [got, want] = [values(tiny), values(forget)];
    got.forEach((row, i) => {
      expect(relativeL2(row, want[i]!)).toBeLessThan(dtype === Dtype.f32 ? 1e-6 : 0.01);
    });
  });

  test("halves halve what an adapter adds to its map", () => {
    using tiny = adapted("llama", dual, { dtype });
    using half = adapted("llama", { ...dual, forget: { ...dual.forget, alpha: 4 } }, { dtype });
    tiny.model.setScales(1, 0.5);
    expect(scored(tiny, tiny.model)).toEqual(scored(half, half.model));
  });

  test("GRPO samples what it trains, routed, with scales as they are set, on any number of threads", async () => {
    const run = async (threads: number) => {
      using tiny = adapted("qwen3", dual, { dtype }, threads);
      const { model, memory } = tiny;
      const flagged = (i: number) => i % 3 === 0;
      const step = tinyPolicyStep(memory, model, Reference.kept(model.base, false), {
        options: { routing: "classic" },
        flagged,
      });
      const history: Record<string, number>[] = [];
      for (let i = 1; i <= 3; i++) {
        await step.generate(i, tinyPrompts(model.config.vocabSize));
        history.push(await step.update(i, 1e-2));
      }
      step.dispose();
      return { history, weights: model.trained.list.map(({ name }) => bits(model.trained.read(name))) };
    };
    const { history, weights } = await run(2);
    for (const metrics of history) {
      expect(metrics["train/sampler_logp_diff_max"]).toBe(0);
      expect(metrics["train/rh_rate"]).toBeCloseTo(1 / 3, 10);
      const [retain, forget] = [metrics["train/grad_norm_retain"]!, metrics["train/grad_norm_forget"]!];
      expect(retain).toBeGreaterThan(0);
      expect(Math.hypot(retain, forget) / metrics["train/grad_norm"]!).toBeCloseTo(1, 5);
    }
    expect((await run(1)).weights).toEqual(weights);
    expect((await run(3)).weights).toEqual(weights);
  });
});

describe("routing in a policy step", () => {
  const options = { routing: "classic" } as const;
  test("all flagged: the retain adapters stand still at first, the forget adapters move", async () => {
    using tiny = adapted("llama", dual);
    const { model, memory } = tiny;
    const before = new Map(model.trained.list.map(({ name }) => [name, model.trained.read(name)]));
    const step = tinyPolicyStep(memory, model, Reference.kept(model.base, false), {
      options,
      flagged: () => true,
    });
    await step.generate(1, tinyPrompts(model.config.vocabSize));
    const metrics = await step.update(1, 1e-2);
    expect(metrics["train/rh_rate"]).toBe(1);
    expect(metrics["train/grad_norm_retain"]).toBe(0);
    for (const tensor of dualTensors(model.adaptedMaps)) {
      const [old, now] = [before.get(tensor.parameter)!, model.trained.read(tensor.parameter)];
      const [was, is] = [sideOf(tensor, old), sideOf(tensor, now)].map((v) => bits(v));
      if (isRetain(tensor.name)) expect(is).toEqual(was!);
      else expect(is).not.toEqual(was!);
    }
    step.dispose();
  });

  test("advantages among the unflagged: the gradients are two passes' with advantages of the formula", async () => {
    using tiny = adapted("llama", dual);
    const { model, memory } = tiny;
    const reward = (i: number) => ((7 * i) % 5) / 2;
    const flagged = (i: number) => i % 3 === 0;
    const step = tinyPolicyStep(memory, model, Reference.kept(model.base, false), {
      options: { ...options, routingAdvantages: "unflagged", loss: policyOptions({ lossType: "grpo" }) },
      ...{ reward, flagged },
    });
    const { scored } = await step.generate(1, tinyPrompts(model.config.vocabSize));
    await step.update(1, 0);
    const got = new Map(
      dualTensors(model.adaptedMaps).map((tensor) => [
        tensor.name,
        sideOf(tensor, model.trained.readGradient(tensor.parameter)),
      ]),
    );
    step.dispose();
    // On policy the loss is -A / length / completions at every token.
    const weightsWith =
      (within: (a: number, b: number) => boolean) => (group: number, completion: number) => {
        const i = 4 * group + completion;
        const peers = [0, 1, 2, 3].map((c) => 4 * group + c).filter((j) => within(i, j));
        const mean = peers.reduce((sum, j) => sum + reward(j), 0) / peers.length;
        const squares = peers.reduce((sum, j) => sum + (reward(j) - mean) ** 2, 0);
        const advantage = (reward(i) - mean) / (Math.sqrt(squares / (peers.length - 1)) + 1e-4);
        const { length } = scored[i]!.ids;
        return new Float32Array(length).fill(-advantage / length / scored.length);
      };
    const batch = (weightOf: Batch["weightOf"]): Batch => ({
      groups: [0, 1, 2].map((g) => ({
        prompt: scored[4 * g]!.prompt.ids,
        completions: scored.slice(4 * g, 4 * g + 4).map(({ ids }) => ids),
      })),
      flags: [0, 1, 2].map((g) => [0, 1, 2, 3].map((c) => flagged(4 * g + c))),
      weightOf,
    });
    const want = (within: (a: number, b: number) => boolean) =>
      worst(got, twoPasses(tiny, batch(weightsWith(within)), "classic", true));
    expect(want((i, j) => flagged(i) || !flagged(j))).toBeLessThan(1e-5);
    expect(want(() => true)).toBeGreaterThan(0.01);
  });

  test("the loss is the unrouted one; a lost label, or nothing to route between, is refused", async () => {
    const lossOf = async (routing: "none" | "classic" | "exclusive") => {
      using tiny = adapted("llama", dual);
      const { model, memory } = tiny;
      const step = tinyPolicyStep(memory, model, Reference.kept(model.base, false), {
        options: { routing },
        flagged: (i) => i % 4 === 1,
      });
      await step.generate(1, tinyPrompts(model.config.vocabSize));
      const { "train/loss": loss, "train/rh_rate": rate } = await step.update(1, 1e-2);
      step.dispose();
      expect(rate).toBe(0.25);
      return loss!;
    };
    const loss = await lossOf("none");
    expect(Math.abs((await lossOf("classic")) - loss)).toBeLessThan(1e-6);
    expect(Math.abs((await lossOf("exclusive")) - loss)).toBeLessThan(1e-6);

    using tiny = adapted("llama", dual);
    const { model, memory } = tiny;
    const step = tinyPolicyStep(memory, model, Reference.kept(model.base, false), { options });
    const prompts = tinyPrompts(model.config.vocabSize);
    await expect(step.generate(1, prompts)).rejects.toThrow("12 of 12 completions have no label");
    step.dispose();
    using single = adapted("llama", dual.retain);
    const reference = Reference.kept(single.model.base, false);
    expect(() => tinyPolicyStep(single.memory, single.model, reference, { options })).toThrow(
      "nothing to route between",
    );
    expect(() => single.model.setScales(1, 0)).toThrow("no retain and forget adapters");
    expect(() => model.setScales(1, Number.NaN)).toThrow("bad scales");
  });
});

test("joined parameters hold both sides", () => {
  fc.assert(
    fc.property(
      fc.nat(6),
      fc.nat(6),
      fc.integer({ min: 1, max: 9 }),
      fc.integer({ min: 1, max: 9 }),
      (s, f, n, k) => {
        const r = s + f;
        if (r === 0) return;
        const map = { module: "m", n, k, r, split: s, scale: 1, scale2: 1 };
        const tensors = dualTensors([map]);
        const joined = new Map(
          [adapterNames("m").a, adapterNames("m").b].map((name, i) => [
            name,
            normal(r * (i === 0 ? k : n), i),
          ]),
        );
        const again = new Map([...joined].map(([name, values]) => [name, new Float32Array(values.length)]));
        for (const tensor of tensors) {
          const values = sideOf(tensor, joined.get(tensor.parameter)!);
          expect(values.length).toBe(tensor.shape[0] * tensor.shape[1]);
          putSide(tensor, values, again.get(tensor.parameter)!);
        }
        for (const [name, values] of joined) expect([...again.get(name)!]).toEqual([...values]);
      },
    ),
  );
});
