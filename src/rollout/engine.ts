/**
 * The rollout engine: packed prefill, a shared prefix per prompt, continuous batching. Kernels are batch-invariant
 * and draws are keyed by (seed, purpose, step, prompt, completion, position), so what a request gets does not
 * depend on what else is in the batch or on the order of admission.
 */
import { assert, DeviceError, Diverged, UsageError } from "../core/errors.ts";
import type { Finish, Prompt, Rollout } from "../core/records.ts";
import type { Purpose } from "../core/rng.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import * as F from "../nn/functional.ts";
import type { Decoder } from "../nn/transformer.ts";
import { Dtype, VOCAB_TILE } from "../ops/define.ts";
import { sample } from "../ops/head.ts";
import { Graph, type StepMemory } from "../tape/tape.ts";
import type { Tensor } from "../tape/tensor.ts";
import { decodeTokens, encodeBehind, fillBehind } from "./branch.ts";
import { CachedSequence, fullPages, KvStore, pagesFor } from "./kv.ts";
import { type Alternative, inverseTemperature, likeliest } from "./likeliest.ts";

export interface Sampling {
  /** 0 = greedy. */
  readonly temperature: number;
  /** 0 = off. */
  readonly topK: number;
  /** 1 = off. */
  readonly topP: number;
  /** 0 = off. */
  readonly minP: number;
  readonly maxNewTokens: number;
  readonly eosIds: readonly number[];
  /** How many of the likeliest tokens are reported beside each drawn one; none if absent. */
  readonly alternatives?: number;
}

/** The random key of a request; its completions and positions are the further words. */
export interface DrawKey {
  readonly seed: number;
  readonly purpose: Purpose;
  readonly step: number;
}

export interface Request {
  readonly ids: Int32Array;
  /** Identifies the prompt in the random key. */
  readonly prompt: number;
  readonly completions: number;
  /** What the random key calls the first of them; 0 if absent. */
  readonly firstCompletion?: number;
  /**
   * The cached beginning of `ids`, shorter than they are: a snapshot in this engine's store that was encoded from the
   * very same ids. What follows it is encoded alone, to the same bits. The caller keeps and releases it.
   */
  readonly prefix?: CachedSequence;
  /** Completions come with their cache. */
  readonly keep?: boolean;
}

export interface Completion {
  /** The ending EOS included. */
  readonly ids: Int32Array;
  readonly logprobs: Float32Array;
  /** log sum exp of the scaled logits, and entropy in nats, at each token. */
  readonly lse: Float32Array;
  readonly entropies: Float32Array;
  readonly finish: Finish;
  /** Of a request that asked to keep it: prompt and completion without its last token. The caller releases it. */
  readonly cache?: CachedSequence;
}

/** A drawn token. */
export interface Drawn {
  readonly id: number;
  readonly logprob: number;
  readonly lse: number;
  readonly entropy: number;
  /** The likeliest tokens by falling log-probability, as many as `Sampling.alternatives`. */
  readonly alternatives: readonly Alternative[];
}

/** Sees tokens as they come; returning false ends that completion with "stop". */
export type OnToken = (request: number, completion: number, id: number, drawn: Drawn) => boolean;

/** Parameters up to which a decoding step takes the CPU about as long as telling the host about it. */
const SMALL_MODEL = 8_000_000;

export interface EngineOptions {
  /** Sequences that decode at once. */
  readonly maxBatch: number;
  /** Prompt plus completion tokens of the longest request. */
  readonly maxLength: number;
  /** Packed prompt tokens of one prefill. */
  readonly prefillTokens: number;
  /** Pages of the key-value store, for callers that keep sequences; as many as a full batch needs if absent. */
  readonly pages?: number;
}

/** A completion on its way. */
interface Sequence {
  readonly request: number;
  readonly completion: number;
  readonly cache: CachedSequence;
  readonly ids: number[];
  readonly logprobs: number[];
  readonly lse: number[];
  readonly entropies: number[];
  /** Pages it may still ask for. */
  reserved: number;
}

/** A prompt that has been encoded and whose completions have not all started. */
interface Encoded {
  readonly request: number;
  readonly prefix: CachedSequence;
  readonly hidden: Tensor;
  readonly row: number;
  next: number;
}

/** A token of each sequence, on the device. */
interface Draw {
  readonly ids: Tensor;
  readonly logprob: Tensor;
  readonly lse: Tensor;
  readonly entropy: Tensor;
  /** [B, V], kept where alternatives are asked for. */
  readonly logits: Tensor | null;
}

export class RolloutEngine {
  readonly store: KvStore;
  /** Seconds spent so far: on prompts up to the first token of each completion, and on all further tokens. */
  readonly seconds = { prefill: 0, decode: 0 };
  constructor(
    readonly memory: StepMemory,
    readonly model: Decoder,
    readonly options: EngineOptions,
  ) {
    this.store = new KvStore(
      memory.device,
      model.shape,
      model.config.numLayers,
      model.options.dtype,
      options.pages ?? RolloutEngine.pagesNeeded(options),
    );
  }

  /**
   * Tokens drawn before the host looks at the first of them: each from the one before, on the device. What lies
   * behind an end is dropped, so large models draw one by one.
   */
  get #tokensAhead(): number {
    if (this.memory.device.isGpu) return 8;
    return this.model.size <= SMALL_MODEL ? 4 : 1;
  }

  /** Enough for a full batch of the longest sequences, each with a prefix of its own. */
  static pagesNeeded(options: EngineOptions): number {
    const prefixes = Math.max(1, Math.ceil(options.prefillTokens / 16)) + options.maxBatch;
    return options.maxBatch * pagesFor(options.maxLength) + prefixes + pagesFor(options.maxLength);
  }

  /** Samples every completion of every request. */
  generate(
    requests: readonly Request[],
    sampling: Sampling,
    key: DrawKey,
    onToken?: OnToken,
  ): Completion[][] {
    return toEnd(this.#steps(requests, sampling, key, onToken));
  }

  /** The same, giving way to timers, signals and messages about twenty times a second. */
  async generateAsync(
    requests: readonly Request[],
    sampling: Sampling,
    key: DrawKey,
    onToken?: OnToken,
  ): Promise<Completion[][]> {
    return givingWay(this.#steps(requests, sampling, key, onToken));
  }

  /**
   * Encodes `ids` behind their cached beginning, if there is one, at most `prefillTokens` at a time: a prompt that many
   * requests may continue. The caller releases the snapshot, and keeps `prefix`.
   */
  encode(ids: Int32Array, prefix?: CachedSequence): CachedSequence {
    return toEnd(this.#encode(ids, prefix));
  }

  /** The same, giving way between pieces; undefined if the caller gives up. */
  async encodeAsync(
    ids: Int32Array,
    prefix?: CachedSequence,
    signal?: AbortSignal,
  ): Promise<CachedSequence | undefined> {
    return givingWay(this.#encode(ids, prefix), signal);
  }

  *#encode(ids: Int32Array, prefix: CachedSequence | undefined): Generator<void, CachedSequence> {
    checkIds(ids, this.model.config.vocabSize);
    const g = new Graph(this.memory, false);
    const cache = prefix ? prefix.broadcast(g, 1)[0]! : new CachedSequence(this.store);
    let whole = false;
    try {
      while (cache.length < ids.length) {
        const piece = ids.subarray(cache.length, cache.length + this.options.prefillTokens);
        fillBehind(g, this.model, this.store, [{ cache, ids: piece }]);
        this.memory.finish();
        yield;
      }
      whole = true;
      return cache.snapshot();
    } finally {
      if (!whole) cache.release();
    }
  }

  *#steps(
    requests: readonly Request[],
    sampling: Sampling,
    key: DrawKey,
    onToken?: OnToken,
  ): Generator<void, Completion[][]> {
    const results: Completion[][] = requests.map((r) => new Array<Completion>(r.completions));
    let complete = false;
    for (const r of requests) this.#check(r, sampling);
    const eos = new Set(sampling.eosIds);
    const waiting = requests.map((_, i) => i).filter((i) => requests[i]!.completions > 0);
    let encoded: Encoded[] = [];
    let active: Sequence[] = [];
    /** Sequences that hold pages. */
    const live = new Set<Sequence>();
    let reserved = 0;

    const finish = (s: Sequence, reason: Finish) => {
      const request = requests[s.request]!;
      const cached = request.ids.length + s.ids.length - 1;
      results[s.request]![s.completion] = {
        ids: Int32Array.from(s.ids),
        logprobs: Float32Array.from(s.logprobs),
        lse: Float32Array.from(s.lse),
        entropies: Float32Array.from(s.entropies),
        finish: reason,
        // Tokens drawn ahead of the end are cut off.
        ...(request.keep ? { cache: s.cache.snapshot().cut(cached) } : {}),
      };
      reserved -= s.reserved;
      if (!request.keep) s.cache.release();
      live.delete(s);
    };
    /** Takes one drawn token; false when the sequence has ended. */
    const accept = (s: Sequence, drawn: Drawn): boolean => {
      const { id, logprob, lse, entropy } = drawn;
      s.ids.push(id);
      s.logprobs.push(logprob);
      s.lse.push(lse);
      s.entropies.push(entropy);
      const goOn = onToken?.(s.request, s.completion, id, drawn) ?? true;
      if (eos.has(id)) finish(s, "eos");
      else if (!goOn) finish(s, "stop");
      else if (s.ids.length >= sampling.maxNewTokens) finish(s, "length");
      else return true;
      return false;
    };

    try {
      while (waiting.length > 0 || encoded.length > 0 || active.length > 0) {
        // Every round ends with its tokens on the host: nothing of it is left to the next one.
        const begin = performance.now();
        if (encoded.length === 0 && waiting.length > 0 && active.length < this.options.maxBatch) {
          encoded = this.#prefill(requests, waiting, reserved);
        }
        const g = new Graph(this.memory, false);
        const started: Sequence[] = [];
        const rows: { hidden: Tensor; row: number }[] = [];
        for (const e of encoded) {
          const request = requests[e.request]!;
          const perSequence = pagesFor(request.ids.length + sampling.maxNewTokens);
          const own = perSequence - fullPages(e.prefix.length);
          let count = 0;
          while (
            e.next + count < request.completions &&
            active.length + started.length + count < this.options.maxBatch &&
            this.store.freePages - reserved >= own * (count + 1)
          )
            count++;
          for (const cache of e.prefix.broadcast(g, count)) {
            const pages = perSequence - cache.pages.length;
            reserved += pages;
            const sequence: Sequence = {
              request: e.request,
              completion: e.next++,
              cache,
              ids: [],
              logprobs: [],
              lse: [],
              entropies: [],
              reserved: pages,
            };
            started.push(sequence);
            live.add(sequence);
            rows.push({ hidden: e.hidden, row: e.row });
          }
        }
        if (started.length > 0) {
          const index = upload(
            g,
            rows.map((r) => r.row),
            "start rows",
          );
          const hidden = F.gather(g, rows[0]!.hidden, index);
          g.release(index);
          const draws = [this.#draw(g, hidden, started, requests, sampling, key, 0)];
          active.push(...this.#take(g, started, draws, sampling, key, accept));
          encoded = this.#retire(g, encoded, requests);
          this.seconds.prefill += (performance.now() - begin) / 1000;
          yield;
          continue;
        }
        assert(active.length > 0, "rollout: no sequence fits the key-value store");
        const left = Math.min(...active.map((s) => sampling.maxNewTokens - s.ids.length));
        const draws: Draw[] = [];
        for (let ahead = 0; ahead < Math.min(this.#tokensAhead, left); ahead++) {
          const hidden = this.#decode(g, active, draws.at(-1)?.ids ?? null, (s) => {
            reserved -= 1;
            s.reserved -= 1;
          });
          draws.push(this.#draw(g, hidden, active, requests, sampling, key, ahead));
          if (!this.memory.device.isGpu) this.memory.device.submit();
        }
        active = this.#take(g, active, draws, sampling, key, accept);
        this.seconds.decode += (performance.now() - begin) / 1000;
        yield;
      }
      complete = true;
    } finally {
      // Nothing is left after a normal end; `onToken` may throw, logits may be NaN, the caller may stop asking.
      for (const s of live) s.cache.release();
      if (!complete) for (const c of results.flat()) c?.cache?.release();
      for (const e of encoded) e.prefix.release();
      if (encoded.length > 0) new Graph(this.memory, false).release(encoded[0]!.hidden);
    }
    return results;
  }

  #check(request: Request, sampling: Sampling): void {
    const total = request.ids.length + sampling.maxNewTokens;
    if (request.ids.length === 0) throw new UsageError("empty prompt", `prompt ${request.prompt}`);
    if (total > this.options.maxLength) {
      throw new UsageError(
        `prompt of ${request.ids.length} tokens plus ${sampling.maxNewTokens} new ones exceeds ${this.options.maxLength}`,
        `prompt ${request.prompt}`,
        "shorten the prompt, lower the completion length or raise the maximum prompt length",
      );
    }
    const cached = request.prefix?.length ?? 0;
    assert(cached < request.ids.length, `prompt ${request.prompt} has no token behind its cached prefix`);
    checkIds(request.ids, this.model.config.vocabSize);
  }

  /** Encodes waiting prompts as one packed row, as many as fit. Removes them from `waiting`. */
  #prefill(requests: readonly Request[], waiting: number[], reserved: number): Encoded[] {
    const g = new Graph(this.memory, false);
    const taken: { request: number; cache: CachedSequence; ids: Int32Array }[] = [];
    let tokens = 0;
    let pages = 0;
    while (waiting.length > 0) {
      const { ids, prefix } = requests[waiting[0]!]!;
      const cached = prefix?.length ?? 0;
      const fits = tokens + ids.length - cached <= this.options.prefillTokens;
      if (taken.length > 0 && (!fits || taken.length >= this.options.maxBatch)) break;
      const own = pagesFor(ids.length) - fullPages(cached);
      if (this.store.freePages - reserved < own + pages) break;
      const cache = prefix ? prefix.broadcast(g, 1)[0]! : new CachedSequence(this.store);
      pages += pagesFor(ids.length) - cache.pages.length;
      tokens += ids.length - cached;
      taken.push({ request: waiting.shift()!, cache, ids: ids.subarray(cached) });
    }
    if (taken.length === 0) return [];
    const { hidden, last } = encodeBehind(g, this.model, this.store, taken);
    const index = upload(g, last, "last rows");
    const lastHidden = F.gather(g, hidden, index);
    g.release(hidden, index);
    this.memory.device.submit();
    return taken.map(({ request, cache }, row) => ({
      ...{ request, prefix: cache.snapshot() },
      ...{ hidden: lastHidden, row, next: 0 },
    }));
  }

  /** Forgets prompts all of whose completions have started. */
  #retire(g: Graph, encoded: readonly Encoded[], requests: readonly Request[]): Encoded[] {
    const left = encoded.filter((e) => e.next < requests[e.request]!.completions);
    for (const e of encoded) if (!left.includes(e)) e.prefix.release();
    if (left.length === 0 && encoded.length > 0) g.release(encoded[0]!.hidden);
    return left;
  }

  /** One token of every active sequence, its last one or the one in `drawn`; hidden states [B, C]. */
  #decode(
    g: Graph,
    active: readonly Sequence[],
    drawn: Tensor | null,
    onPage: (s: Sequence) => void,
  ): Tensor {
    const held = active.map((s) => s.cache.pages.length);
    const last =
      drawn ??
      upload(
        g,
        active.map((s) => s.ids.at(-1)!),
        "ids",
      );
    const caches = active.map((s) => s.cache);
    const hidden = decodeTokens(g, this.model, this.store, caches, last);
    active.forEach((s, i) => {
      if (s.cache.pages.length > held[i]!) onPage(s);
    });
    if (!drawn) g.release(last);
    return hidden;
  }

  /** Samples a token for each row of `hidden` (consumed), `ahead` tokens beyond those the sequences have. */
  #draw(
    g: Graph,
    hidden: Tensor,
    sequences: readonly Sequence[],
    requests: readonly Request[],
    sampling: Sampling,
    key: DrawKey,
    ahead: number,
  ): Draw {
    const batch = sequences.length;
    const vocab = this.model.config.vocabSize;
    const counters = new Uint32Array(batch * 4);
    sequences.forEach((s, i) => {
      const { prompt, firstCompletion = 0 } = requests[s.request]!;
      counters.set([s.ids.length + ahead, firstCompletion + s.completion, prompt, key.step], 4 * i);
    });
    const logits = this.model.logits(g, hidden);
    const ids = g.empty([batch], Dtype.f32, "sampled ids");
    const logprob = g.empty([batch], Dtype.f32, "sampled logprobs");
    const lse = g.empty([batch], Dtype.f32, "sampled lse");
    const entropy = g.empty([batch], Dtype.f32, "sampled entropies");
    const uploaded = g.upload(counters, "counters");
    const work = g.empty([batch, Math.ceil(vocab / VOCAB_TILE), 4], Dtype.f32, "sampling tiles");
    const greedy = sampling.temperature === 0;
    g.apply(
      sample,
      { ids, logprob, logits, counters: uploaded, work, lse, entropy },
      {
        batch,
        vocab,
        seed: key.seed >>> 0,
        purpose: key.purpose,
        inv_temp: inverseTemperature(sampling),
        top_k: sampling.topK,
        top_p: sampling.topP,
        min_p: sampling.minP,
        greedy: greedy ? 1 : 0,
      },
    );
    g.release(hidden, uploaded, work);
    const kept = sampling.alternatives ? logits : null;
    if (!kept) g.release(logits);
    return { ids, logprob, lse, entropy, logits: kept };
  }

  /**
   * Waits for tokens that were drawn one after the other (consumed), gives each sequence its own up to its end, and
   * returns the sequences that go on. What was drawn beyond an end is dropped: it changes nothing for the others.
   */
  #take(
    g: Graph,
    sequences: readonly Sequence[],
    draws: readonly Draw[],
    sampling: Sampling,
    key: DrawKey,
    accept: (s: Sequence, drawn: Drawn) => boolean,
  ): Sequence[] {
    try {
      this.#finishDraw(key.step);
      const drawn = draws.map((d) => ({
        ids: d.ids.uint32(),
        logprob: d.logprob.float32(),
        lse: d.lse.float32(),
        entropy: d.entropy.float32(),
        logits: d.logits?.float32() ?? null,
      }));
      const vocab = this.model.config.vocabSize;
      return sequences.filter((s, i) =>
        drawn.every((d) => {
          const [lse, row] = [d.lse[i]!, d.logits?.subarray(i * vocab, (i + 1) * vocab)];
          const alternatives = row ? likeliest(row, sampling, lse) : [];
          const [id, logprob, entropy] = [d.ids[i]!, d.logprob[i]!, d.entropy[i]!];
          return accept(s, { id, logprob, lse, entropy, alternatives });
        }),
      );
    } finally {
      for (const d of draws) g.release(d.ids, d.logprob, d.lse, d.entropy, d.logits);
    }
  }

  /** A policy whose logits are not finite has diverged: that is not the device's failure. */
  #finishDraw(step: number): void {
    try {
      this.memory.finish();
    } catch (error) {
      if (!(error instanceof DeviceError && error.message.includes("not finite"))) throw error;
      throw new Diverged("the policy's logits are not finite", `step ${step}`, "lower the learning rate");
    }
  }

  dispose(): void {
    this.store.dispose();
  }
}

/** Completions of prompts, as many of each as were drawn, with their texts. */
export function asRollouts(
  prompts: readonly Prompt[],
  drawn: readonly (readonly Completion[])[],
  tokenizer: Tokenizer,
): Rollout[] {
  return prompts.flatMap((prompt, i) =>
    drawn[i]!.map((each, completion) => {
      const text = tokenizer.decode(each.ids, { skipSpecialTokens: true });
      return { prompt, completion, text, ...each };
    }),
  );
}

/** An error names `where`. */
export function checkIds(ids: Int32Array, vocab: number, where?: string): void {
  for (const id of ids)
    if (id < 0 || id >= vocab)
      throw new UsageError(`token id ${id} is outside the vocabulary of ${vocab}`, where);
}

function upload(g: Graph, values: readonly number[], label: string): Tensor {
  return g.upload(Uint32Array.from(values), label);
}

function toEnd<T>(steps: Generator<void, T>): T {
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
  }
}

/** Runs steps to their end; undefined once the signal says that nobody waits for them. */
async function givingWay<T>(steps: Generator<void, T>): Promise<T>;
async function givingWay<T>(steps: Generator<void, T>, signal?: AbortSignal): Promise<T | undefined>;
async function givingWay<T>(steps: Generator<void, T>, signal?: AbortSignal): Promise<T | undefined> {
  let since = performance.now();
  try {
    for (;;) {
      const { done, value } = steps.next();
      if (done) return value;
      if (performance.now() - since < 50) continue;
      await Bun.sleep(0);
      if (signal?.aborted) return undefined;
      since = performance.now();
    }
  } finally {
    // Runs the `finally` of steps that were left.
    steps.return(undefined as never);
  }
}
