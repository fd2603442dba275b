/**
 * A language model as judge of responses, by a rubric. Two readings of each criterion: the score in what the judge says,
 * greedily, and the one expected from its probabilities of the scale's values.
 *
 * Everything is encoded once: the preamble for all responses (once a run if the weights are frozen), a prompt for its
 * completions, a response for all criteria. Figures are those of each sequence by itself, bit for bit.
 */
import { DeviceError, Diverged, UsageError } from "../core/errors.ts";
import { sum } from "../core/lists.ts";
import * as F from "../nn/functional.ts";
import type { Decoder } from "../nn/transformer.ts";
import { Dtype, VOCAB_TILE } from "../ops/define.ts";
import { sample } from "../ops/head.ts";
import { parseScore } from "../reward/judge-answer.ts";
import type { Rubric } from "../reward/rubric.ts";
import { decodeTokens, encodeShortBranches, fillBranches } from "../rollout/branch.ts";
import { type CachedSequence, KvStore, pagesFor } from "../rollout/kv.ts";
import { Graph, type StepMemory } from "../tape/tape.ts";
import type { Tensor } from "../tape/tensor.ts";
import type { JudgeFrame } from "./judge-prompt.ts";

/** The model that judges, as long as it is held. */
export interface JudgeModel {
  /** As details and headers call it. */
  readonly name: string;
  /** Its weights never change: what was encoded in one step holds in the next. */
  readonly frozen: boolean;
  /** Shape and options; its weights may be absent outside of `hold`. */
  readonly shape: Decoder;
  hold<T>(body: (model: Decoder) => Promise<T>): Promise<T>;
}

export interface JudgeOptions {
  /** Tokens of the longest text answer. */
  readonly maxNewTokens: number;
  /** Most tokens of a prompt and of a response that the judge reads; a longer response is cut there. */
  readonly maxPromptTokens: number;
  readonly maxResponseTokens: number;
  /** Most packed tokens of one pass. */
  readonly budget: number;
}

export interface Conversation {
  readonly prompt: string;
  readonly response: string;
}

/** What the judge made of one criterion. */
export interface Judgement {
  /** The score in what it said; null if there is none. */
  readonly text: number | null;
  readonly said: string;
  /** Mean of the scale's values under `probabilities`. */
  readonly expected: number;
  /** Of the scale's values, lowest first, among themselves. */
  readonly probabilities: readonly number[];
  /** Probability of all of them together among all tokens. */
  readonly mass: number;
}

export interface Verdict {
  readonly criteria: Readonly<Record<string, Judgement>>;
  /** Whether the response was longer than what was read of it. */
  readonly cut: boolean;
}

/** Tokens encoded and rows of the head so far. */
export interface JudgeCounts {
  preamble: number;
  prompts: number;
  responses: number;
  /** What stands behind responses: the end of the message, and each criterion's own tokens. */
  questions: number;
  /** Tokens of text answers behind the first. */
  decoded: number;
  headRows: number;
}

/** Rows of logits at once: a row of a large vocabulary takes 600 kB. */
const MOST_ROWS = 128;

/** A response on its way. */
interface Asked {
  readonly at: number;
  readonly prompt: string;
  readonly promptIds: Int32Array;
  readonly responseIds: Int32Array;
  readonly cut: boolean;
}

export class Judge {
  readonly store: KvStore;
  readonly counts: JudgeCounts = {
    ...{ preamble: 0, prompts: 0, responses: 0, questions: 0, decoded: 0, headRows: 0 },
  };
  readonly #eos: ReadonlySet<number>;
  #preamble: CachedSequence | null = null;

  constructor(
    readonly memory: StepMemory,
    readonly model: JudgeModel,
    readonly rubric: Pick<Rubric, "scale" | "criteria">,
    /** The rubric in the model's tokens. */
    readonly frame: JudgeFrame,
    readonly options: JudgeOptions,
  ) {
    const { shape } = model;
    this.#eos = new Set(frame.eosIds);
    const longest = Judge.positions(frame, options);
    const { maxPositions } = shape.options;
    if (longest > maxPositions)
      throw new UsageError(
        `the judge reads up to ${longest} tokens and has ${maxPositions} positions`,
        model.name,
        "shorten the rubric, lower --max_completion_length, or take another judge",
      );
    // Responses to one prompt fill a pass; of several prompts fewer fit.
    const perPass = Math.max(1, Math.floor(options.budget / options.maxResponseTokens));
    const pages =
      pagesFor(frame.preamble.length) +
      pagesFor(options.maxPromptTokens) +
      perPass * this.#pagesOf(0, options.maxResponseTokens);
    this.store = new KvStore(memory.device, shape.shape, shape.config.numLayers, shape.options.dtype, pages);
  }

  /** Positions that the longest sequence of a judge takes. */
  static positions({ preamble, shared, own }: JudgeFrame, options: Omit<JudgeOptions, "budget">): number {
    const behind = shared.length + Math.max(...own.map((ids) => ids.length)) + options.maxNewTokens;
    return preamble.length + options.maxPromptTokens + options.maxResponseTokens + behind;
  }

  /** Pages of a response with its prompt and its criteria; a page begun by each of them is its own. */
  #pagesOf(promptTokens: number, responseTokens: number): number {
    const { shared, own } = this.frame;
    const ends = own.map((ids) => pagesFor(ids.length + this.options.maxNewTokens) + 1);
    return pagesFor(promptTokens) + 1 + pagesFor(responseTokens + shared.length) + 1 + sum(ends);
  }

  get bytes(): number {
    return this.store.bytes;
  }

  /** Verdicts in the order of the conversations. */
  async judge(conversations: readonly Conversation[], signal?: AbortSignal): Promise<Verdict[]> {
    const asked = conversations.map(({ prompt, response }, at) => this.#ask(prompt, response, at));
    const verdicts: Verdict[] = new Array(conversations.length);
    if (asked.length === 0) return verdicts;
    await this.model.hold(async (model) => {
      try {
        this.#preamble ??= this.#encodePreamble(model);
        for (const part of this.#passes(asked)) {
          for (const [i, verdict] of this.#pass(model, part).entries()) verdicts[part[i]!.at] = verdict;
          // Signals and messages are served between passes.
          await Bun.sleep(0);
          signal?.throwIfAborted();
        }
      } finally {
        if (!this.model.frozen) this.#forget();
      }
    });
    this.store.rest();
    return verdicts;
  }

  #ask(prompt: string, response: string, at: number): Asked {
    const { maxPromptTokens, maxResponseTokens } = this.options;
    const promptIds = this.frame.promptIds(prompt);
    if (promptIds.length > maxPromptTokens)
      throw new UsageError(
        `a prompt of ${promptIds.length} tokens is longer than the judge's ${maxPromptTokens}`,
        JSON.stringify(prompt.slice(0, 40)),
        "shorten the prompt",
      );
    const whole = this.frame.responseIds(response);
    const cut = whole.length > maxResponseTokens;
    return { at, prompt, promptIds, responseIds: cut ? whole.slice(0, maxResponseTokens) : whole, cut };
  }

  #encodePreamble(model: Decoder): CachedSequence {
    const g = new Graph(this.memory, false);
    const { preamble } = this.frame;
    this.counts.preamble += preamble.length;
    const [cache] = fillBranches(g, model, this.store, [{ prefix: null, ids: preamble }]);
    return cache!.snapshot();
  }

  #forget(): void {
    this.#preamble?.release();
    this.#preamble = null;
  }

  /** Responses in order, as many at once as pages, tokens and rows allow. */
  #passes(asked: readonly Asked[]): Asked[][] {
    const passes: Asked[][] = [];
    let current: Asked[] = [];
    let [tokens, pages] = [0, 0];
    const most = Math.max(1, Math.floor(MOST_ROWS / this.rubric.criteria.length));
    for (const each of asked) {
      const needs = () => {
        const promptTokens = current.at(-1)?.prompt === each.prompt ? 0 : each.promptIds.length;
        return {
          tokens: promptTokens + each.responseIds.length,
          pages: this.#pagesOf(promptTokens, each.responseIds.length),
        };
      };
      let need = needs();
      const full = pages + need.pages > this.store.freePages || tokens + need.tokens > this.options.budget;
      if (current.length > 0 && (full || current.length >= most)) {
        passes.push(current);
        current = [];
        tokens = pages = 0;
        need = needs();
      }
      current.push(each);
      tokens += need.tokens;
      pages += need.pages;
    }
    if (current.length > 0) passes.push(current);
    return passes;
  }

  /** Verdicts of responses encoded together. */
  #pass(model: Decoder, asked: readonly Asked[]): Verdict[] {
    const g = new Graph(this.memory, false);
    const { frame, counts } = this;
    const held: CachedSequence[] = [];
    /** Snapshots of `ids[i]` behind `prefixes[i]`. */
    const extend = (prefixes: readonly CachedSequence[], ids: readonly Int32Array[]): CachedSequence[] => {
      const some = ids.flatMap((own, i) => (own.length > 0 ? [{ prefix: prefixes[i]!, ids: own }] : []));
      if (some.length === 0) return [...prefixes];
      const caches = fillBranches(g, model, this.store, some);
      held.push(...caches);
      let next = 0;
      return ids.map((own, i) => (own.length > 0 ? caches[next++]!.snapshot() : prefixes[i]!));
    };
    try {
      const starts = asked.flatMap(({ prompt }, i) => (i > 0 && asked[i - 1]!.prompt === prompt ? [] : [i]));
      const prompts = extend(
        starts.map(() => this.#preamble!),
        starts.map((i) => asked[i]!.promptIds),
      );
      const responses = extend(
        asked.map((_, i) => prompts[starts.findLastIndex((start) => start <= i)]!),
        asked.map(({ responseIds }) => Int32Array.from([...responseIds, ...frame.shared])),
      );
      const questions = responses.flatMap((prefix) => frame.own.map((ids) => ({ prefix, ids })));
      const { caches, hidden, last } = encodeShortBranches(g, model, this.store, questions);
      held.push(...caches);
      const length = (lists: readonly Int32Array[]) => lists.reduce((sum, ids) => sum + ids.length, 0);
      counts.prompts += length(starts.map((i) => asked[i]!.promptIds));
      counts.responses += length(asked.map(({ responseIds }) => responseIds));
      counts.questions += asked.length * (frame.shared.length + length(frame.own));
      const index = g.upload(last, "judge rows");
      const rows = F.gather(g, hidden, index);
      g.release(hidden, index);
      const judgements = this.#answers(g, model, caches, rows);
      const { criteria } = this.rubric;
      return asked.map(({ cut }, i) => ({
        cut,
        criteria: Object.fromEntries(
          criteria.map(({ name }, c) => [name, judgements[i * criteria.length + c]!]),
        ),
      }));
    } finally {
      for (const cache of held) cache.release();
    }
  }

  /** Both readings of sequences that end at `rows` [R, C], which are consumed. */
  #answers(g: Graph, model: Decoder, caches: readonly CachedSequence[], rows: Tensor): Judgement[] {
    const { scale } = this.rubric;
    const said: number[][] = caches.map(() => []);
    let readings: Reading[] = [];
    let active = caches.map((_, i) => i);
    let hidden = rows;
    for (let n = 1; ; n++) {
      const drawn = this.#greedy(g, model, hidden);
      if (n === 1) readings = drawn.readings();
      active = active.filter((at, i) => {
        const id = drawn.ids[i]!;
        if (this.#eos.has(id)) return false;
        said[at]!.push(id);
        return n < this.options.maxNewTokens && !/\S.*\n/s.test(this.frame.decode(said[at]!));
      });
      drawn.release();
      if (active.length === 0) break;
      this.counts.decoded += active.length;
      const last = g.upload(
        Uint32Array.from(active, (at) => said[at]!.at(-1)!),
        "judge ids",
      );
      hidden = decodeTokens(
        g,
        model,
        this.store,
        active.map((at) => caches[at]!),
        last,
      );
      g.release(last);
    }
    return readings.map((reading, i) => {
      const text = this.frame.decode(said[i]!);
      return { text: parseScore(text, scale), said: text, ...reading };
    });
  }

  /** The likeliest token behind each row of `hidden` (consumed), and what the scale's values get there. */
  #greedy(g: Graph, model: Decoder, hidden: Tensor) {
    const [batch, vocab] = [hidden.shape[0]!, model.config.vocabSize];
    this.counts.headRows += batch;
    const logits = model.logits(g, hidden);
    const out = {
      ids: g.empty([batch], Dtype.f32, "judge tokens"),
      logprob: g.empty([batch], Dtype.f32, "judge logprobs"),
      lse: g.empty([batch], Dtype.f32, "judge lse"),
    };
    const counters = g.upload(new Uint32Array(batch * 4), "counters");
    const work = g.empty([batch, Math.ceil(vocab / VOCAB_TILE), 4], Dtype.f32, "sampling tiles");
    g.apply(
      sample,
      { ...out, logits, counters, work },
      { batch, vocab, seed: 0, purpose: 0, inv_temp: 1, top_k: 0, top_p: 1, min_p: 0, greedy: 1 },
    );
    g.release(hidden, counters, work);
    this.#finish();
    const { values } = this.frame;
    const { min } = this.rubric.scale;
    return {
      ids: out.ids.uint32(),
      readings: () => {
        const [z, lse] = [logits.float32(), out.lse.float32()];
        return Array.from({ length: batch }, (_, i) =>
          readingOf(
            // As the head gives log-probabilities of given tokens.
            values.map((ids) => ids.map((id) => Math.fround(z[i * vocab + id]! - lse[i]!))),
            min,
          ),
        );
      },
      release: () => g.release(logits, ...Object.values(out)),
    };
  }

  #finish(): void {
    try {
      this.memory.finish();
    } catch (error) {
      if (!(error instanceof DeviceError && error.message.includes("not finite"))) throw error;
      throw new Diverged("the judge's logits are not finite", this.model.name, "lower the learning rate");
    }
  }

  dispose(): void {
    this.#forget();
    this.store.dispose();
  }
}

type Reading = Pick<Judgement, "expected" | "probabilities" | "mass">;

/** `logprobs`: of the tokens of each value of a scale that begins at `min`. */
export function readingOf(logprobs: readonly (readonly number[])[], min: number): Reading {
  const top = Math.max(...logprobs.flat());
  const weights = logprobs.map((ids) => ids.reduce((sum, logprob) => sum + Math.exp(logprob - top), 0));
  const total = sum(weights);
  const probabilities = weights.map((weight) => weight / total);
  return {
    probabilities,
    expected: probabilities.reduce((sum, p, i) => sum + p * (min + i), 0),
    mass: total * Math.exp(top),
  };
}
