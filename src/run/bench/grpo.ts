import type { BenchOptions } from "../../config/schema-inference.ts";
import { assert, UsageError } from "../../core/errors.ts";
import type { Prompt } from "../../core/records.ts";
import { openWeights } from "../../io/hf-folder.ts";
import type { Tokenizer } from "../../io/tokenizer.ts";
import { TRL_ADVANTAGE } from "../../loss/advantage.ts";
import { policyOptions } from "../../loss/options.ts";
import { AdamW } from "../../nn/optimizer.ts";
import { Transformer } from "../../nn/transformer.ts";
import { StepMemory } from "../../tape/tape.ts";
import { type Costs, groupRows, type Work } from "../limits.ts";
import { dtypeCode, momentCode } from "../open-model.ts";
import { PolicyStep } from "../policy-step.ts";
import { Reference } from "../reference.ts";
import { Bench, type Context, median, type Phase, type Result } from "./context.ts";
import { promptIds, type Shape, sampling } from "./shapes.ts";

/** A GRPO step's token counts; every completion runs to its full length. */
export interface GrpoWork {
  /** Tokens of a prompt and of a completion. */
  readonly prompt: number;
  readonly completion: number;
  /** Completions of a prompt and of the step. */
  readonly group: number;
  readonly completions: number;
  readonly beta: number;
  readonly share_prefix: boolean;
  readonly micro_batch_tokens: number;
  /** Share of completions that are flagged, where the model has retain and forget adapters. */
  readonly flagged?: number;
}

export const TRAIN_OPTIONS = { beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, maxGradNorm: 1 } as const;

/** Prompt tokens encoded together. */
const PREFILL_TOKENS = 2048;

/** A policy with its optimizer and, with a KL term, its reference: steps of different token counts run on it. */
export class GrpoSubject {
  readonly model: Transformer;
  readonly memory: StepMemory;
  readonly #copy: Transformer | null;
  readonly #reference: Reference | null;
  readonly #optimizer: AdamW;
  /** Optimizer steps so far: only before the first are policy and reference the same. */
  #steps = 0;

  constructor(
    readonly bench: Bench,
    shape: Shape,
    maxPositions: number,
    options: {
      readonly beta: number;
      readonly checkpointing: boolean;
      readonly lora_r?: number;
      readonly forget_lora_r?: number;
      readonly optimizer_dtype?: "float32" | "bfloat16" | "8bit";
      readonly gradient_dtype?: "float32" | "bfloat16";
      readonly reference_offload?: boolean;
    },
  ) {
    const { checkpointing, lora_r = 0, forget_lora_r = 0 } = options;
    if (forget_lora_r > 0 && lora_r === 0)
      throw new UsageError("forget adapters without retain adapters", "forget_lora_r", "give --lora_r too");
    const side = (r: number) => ({ r, alpha: 2 * r, targets: "all-linear" as const });
    const lora =
      lora_r === 0
        ? null
        : forget_lora_r > 0
          ? { retain: side(lora_r), forget: side(forget_lora_r) }
          : side(lora_r);
    this.model = bench.model(shape, maxPositions, {
      trainable: true,
      checkpointing,
      lora,
      momentDtype: momentCode(options.optimizer_dtype ?? "float32"),
      gradientDtype: dtypeCode(options.gradient_dtype ?? "float32"),
    });
    this.memory = new StepMemory(bench.device);
    this.#optimizer = new AdamW(this.model.trained, {
      ...TRAIN_OPTIONS,
      seed: bench.options.seed,
      dropsGradients: options.reference_offload ?? false,
    });
    this.#copy = null;
    if (options.beta > 0 && !lora) {
      const frozen = { ...this.model.options, trainable: false };
      this.#copy = new Transformer(bench.device, this.model.config, frozen, "reference");
      this.#copy.copyFrom(this.model);
    }
    this.#reference = options.beta > 0 ? Reference.kept(this.#copy ?? this.model.base) : null;
    if (this.#copy && options.reference_offload) {
      const folder = bench.folder(this.#copy);
      this.#reference = Reference.offloaded(this.#copy, (model) => {
        using weights = openWeights(folder);
        model.loadWeights(weights);
      });
    }
  }

  /** The step, and the prompts that it is given. */
  step(work: GrpoWork): { readonly policy: PolicyStep; readonly prompts: readonly Prompt[] } {
    const { prompt: P, completion: C, group, completions, beta } = work;
    assert(completions % group === 0, "completions must be a multiple of group");
    const { seed } = this.bench.options;
    const share = work.flagged ?? 0;
    const isFlagged = (i: number) => Math.floor((i + 1) * share) > Math.floor(i * share);
    const policy = new PolicyStep(
      this.memory,
      this.model,
      this.#reference,
      { decode: () => "" } as unknown as Tokenizer,
      this.#optimizer,
      async (rollouts) =>
        rollouts.map((r, i) => ({ ...r, reward: i % 2, components: {}, flagged: isFlagged(i) })),
      {
        seed,
        groupSize: group,
        numIterations: 1,
        stepsPerGeneration: 1,
        gradAccumSteps: 1,
        sampling: sampling(C),
        loss: policyOptions({ lossType: "grpo", beta }),
        advantage: TRL_ADVANTAGE,
        gamma: 1,
        maskTruncated: false,
        microBatchTokens: work.micro_batch_tokens,
        sharePrefix: work.share_prefix,
        exactSampler: true,
        routing: this.model.dual ? "classic" : "none",
      },
      {
        maxBatch: Math.min(completions, 64),
        maxLength: P + C,
        prefillTokens: Math.max(P, PREFILL_TOKENS),
      },
    );
    const prompts = Array.from({ length: completions / group }, (_, index) => ({
      index,
      text: "",
      ids: promptIds(index, P, this.model.config.vocabSize),
      fields: {},
    }));
    return { policy, prompts };
  }

  /** One step; its metrics. */
  async run(policy: PolicyStep, prompts: readonly Prompt[]): Promise<Record<string, number>> {
    const step = ++this.#steps;
    await policy.generate(step, prompts);
    return policy.update(step, 1e-6);
  }

  /**
   * Runs steps of these token counts: phases, seconds of whole steps and those of all threads together, which other work
   * on the machine changes less, and the sampler's largest difference.
   */
  async measure(
    work: GrpoWork,
    costs: Costs,
    what = "grpo",
  ): Promise<{
    readonly phases: Phase[];
    readonly steps: number[];
    readonly cpu_s: number;
    readonly reward_s: number;
    readonly difference: number;
  }> {
    const { policy, prompts } = this.step(work);
    const taken: Record<string, number[]> = {};
    const cpu: number[] = [];
    let difference = 0;
    const steps = await this.bench.repeat(async (i) => {
      const before = { ...policy.engine.seconds };
      const begin = process.cpuUsage();
      const m = await this.run(policy, prompts);
      const { user, system } = process.cpuUsage(begin);
      if (i > 0) cpu.push((user + system) / 1e6);
      difference = Math.max(difference, m["train/sampler_logp_diff_max"]!);
      if (i === 0) return;
      const times = {
        prefill: policy.engine.seconds.prefill - before.prefill,
        decode: policy.engine.seconds.decode - before.decode,
        reward: m["train/reward_time"]!,
        reference: m["train/reference_time"]!,
        training: m["train/train_time"]! - m["train/optimizer_time"]!,
        optimizer: m["train/optimizer_time"]!,
      };
      for (const [name, value] of Object.entries(times)) {
        taken[name] ??= [];
        taken[name].push(value);
      }
    }, what);
    policy.dispose();
    const phase = (name: string, works: readonly Work[]): Phase => ({
      name,
      seconds: taken[name]!,
      work: works,
    });
    const least = grpoLeast(work, costs, this.model);
    return {
      phases: Object.entries(least).map(([name, works]) => phase(name, works)),
      steps,
      cpu_s: median(cpu),
      reward_s: median(taken.reward!),
      difference,
    };
  }

  dispose(): void {
    this.memory.dispose();
    this.model.dispose();
    this.#copy?.dispose();
  }
}

/** What each phase of a step does at least. */
function grpoLeast(work: GrpoWork, costs: Costs, model: Transformer): Record<string, readonly Work[]> {
  const { prompt: P, completion: C, completions: B, beta } = work;
  // Unshared, every completion has a prompt of its own.
  const [n, G] = work.share_prefix ? [B / work.group, work.group] : [B, 1];
  const rows = groupRows(n, P, G, C);
  const prompts = { tokens: n * P, pairs: (n * P * (P + 1)) / 2, scored: n };
  return {
    prefill: [costs.prefill(prompts)],
    decode: Array.from({ length: C - 1 }, (_, i) => costs.decode(B, B * (P + i + 1), n * P + B * (i + 1))),
    ...(beta > 0 ? { reference: [costs.forward(rows)] } : {}),
    training: [
      costs.forward(rows),
      model.adapters ? costs.adapting(rows, model.adapters.count) : costs.backward(rows),
    ],
    optimizer: [costs.optimizer(model.trained.count)],
  };
}

export async function grpo(options: BenchOptions<"grpo">, context: Context): Promise<Result> {
  using bench = new Bench("grpo", options, context.talk);
  const { shape, prompt, completion, group, completions, beta, share_prefix } = options;
  const subject = new GrpoSubject(bench, shape, prompt + completion, options);
  const { phases, steps, cpu_s, reward_s, difference } = await subject.measure(options, bench.costs(shape));
  const of = (...names: readonly string[]) =>
    phases.filter((p) => names.includes(p.name)).reduce((sum, p) => sum + median(p.seconds), 0);
  const step_s = median(steps);
  return bench.result(
    shape,
    {
      ...{ prompt, completion, group, completions, beta, share_prefix, lora_r: options.lora_r },
      ...{ forget_lora_r: options.forget_lora_r, flagged: options.flagged },
      step_s,
      cpu_s,
      steps,
      rollout_s: of("prefill", "decode"),
      reward_s,
      reference_s: of("reference"),
      train_s: of("training", "optimizer"),
      sampler_logp_diff_max: difference,
    },
    phases,
    step_s,
  );
}
