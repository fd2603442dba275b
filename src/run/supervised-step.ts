/** One optimizer step of supervised fine-tuning: packed examples, token-mean cross-entropy, AdamW. */
import { Diverged } from "../core/errors.ts";
import type { Example } from "../data/prompts.ts";
import { globalNormaliser } from "../loss/count.ts";
import type { MaskedRows } from "../loss/rows.ts";
import { type SftLoss, sftLoss } from "../loss/sft.ts";
import type { AdamW } from "../nn/optimizer.ts";
import type { Transformer } from "../nn/transformer.ts";
import { type Group, packGroups, selectGroups } from "../rollout/pack.ts";
import { forwardRow, scoreGroups } from "../rollout/score.ts";
import { Graph, type StepMemory } from "../tape/tape.ts";
import { takeStep } from "./optimizer-step.ts";
import { ALONE, dealGroups, type Ranks } from "./ranks.ts";

export interface SupervisedOptions {
  readonly microBatchTokens: number;
  readonly trainOnPrompt: boolean;
}

export class SupervisedStep {
  updating = false;
  constructor(
    readonly memory: StepMemory,
    readonly model: Transformer,
    readonly optimizer: AdamW,
    readonly options: SupervisedOptions,
    readonly ranks: Ranks = ALONE,
  ) {}

  async update(examples: readonly Example[], step: number, lr: number): Promise<Record<string, number>> {
    const begin = performance.now();
    const { memory, model, ranks } = this;
    const groups = examples.map((e) => this.#group(e));
    const { batches, owners } = dealGroups(ranks, groups, this.options.microBatchTokens);
    const masks = batches.map((parts) => allTargets(selectGroups(groups, parts)));
    const normaliser = globalNormaliser(masks, 1);
    model.trained.zeroGradients();
    const shares = await ranks.gatherGradients(`gradient of step ${step}`, model.trained, async (sums) => {
      const losses: Pick<SftLoss, "loss" | "tokens">[] = [];
      for (const [i, parts] of batches.entries()) {
        if (owners[i] !== ranks.rank) continue;
        const g = new Graph(memory, true);
        const row = packGroups(selectGroups(groups, parts));
        const key = { seed: this.optimizer.options.seed, step, microBatch: i };
        const { logprob, entropy } = forwardRow(g, model, row, 1, null, key);
        memory.finish();
        const part = sftLoss({ ...masks[i]!, logprobs: logprob.float32() }, normaliser);
        losses.push({ loss: part.loss, tokens: part.tokens });
        const seed = g.upload(Float32Array.from(part.gradLogprobs), "logprob gradient");
        g.backward([[logprob, seed]], [], i === owners.lastIndexOf(ranks.rank) ? sums.final : undefined);
        g.release(logprob, entropy);
        memory.device.submit();
        await Bun.sleep(0);
      }
      await sums.finish();
      memory.finish();
      return losses;
    });
    const loss = shares.flat().reduce((sum, part) => sum + part.loss, 0);
    const tokens = shares.flat().reduce((sum, part) => sum + part.tokens, 0);
    if (memory.device.hasMemory && !Number.isFinite(loss)) {
      throw ranks.everywhere(new Diverged(`loss is ${loss}`, `step ${step}`, "lower the learning rate"));
    }
    const gradNorm = takeStep(this, ranks, step, lr);
    const seconds = (performance.now() - begin) / 1000;
    return {
      "train/loss": loss,
      "train/grad_norm": gradNorm,
      "train/lr": lr,
      "train/tokens": tokens,
      "train/step_time": seconds,
      "train/tokens_per_second": tokens / seconds,
    };
  }

  /** Token-mean negative log-likelihood of held-out examples. */
  async evaluate(examples: readonly Example[]): Promise<Record<string, number>> {
    const groups = examples.map((e) => this.#group(e));
    const shares = await this.ranks.gather("evaluation", () => {
      const own = groups.slice(...this.ranks.share(groups.length));
      return scoreGroups(this.memory, this.model, own, 1, this.options.microBatchTokens).logprobs;
    });
    let nll = 0;
    let tokens = 0;
    for (const rows of shares.flat())
      for (const row of rows) {
        for (const l of row) nll -= l;
        tokens += row.length;
      }
    return { "eval/loss": nll / tokens, "eval/perplexity": Math.exp(nll / tokens) };
  }

  /** With train_on_prompt every token but the first is a target. */
  #group({ prompt, completion }: Example): Group {
    if (!this.options.trainOnPrompt) return { prompt, completions: [completion] };
    const all = Int32Array.from([...prompt, ...completion]);
    return { prompt: all.slice(0, 1), completions: [all.slice(1)] };
  }
}

function allTargets(groups: readonly Group[]): MaskedRows {
  const lengths = groups.flatMap((g) => g.completions.map((c) => c.length));
  const offsets = new Int32Array(lengths.length + 1);
  lengths.forEach((length, i) => {
    offsets[i + 1] = offsets[i]! + length;
  });
  return { rows: lengths.length, offsets, mask: new Uint8Array(offsets[lengths.length]!).fill(1) };
}
