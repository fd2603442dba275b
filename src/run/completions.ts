/** Completions of prompts: options, stop texts, streaming. */
import { UsageError } from "../core/errors.ts";
import type { Finish } from "../core/records.ts";
import { Purpose } from "../core/rng.ts";
import type { Tokenizer } from "../io/tokenizer.ts";
import type { Completion as Drawn, Request, RolloutEngine, Sampling } from "../rollout/engine.ts";

/** A token as it is drawn. */
export interface TokenEvent {
  /** Which prompt of the call, and which of its completions; both from 0. */
  readonly prompt: number;
  readonly completion: number;
  readonly id: number;
  /** Natural log-probability at the sampling temperature, before top-k, top-p and min-p. */
  readonly logprob: number;
  /** What the token adds to the text: whole characters, so it may be empty and come with a later token. */
  readonly text: string;
}

export interface GenerateOptions {
  /** Completions of each prompt. Default 1. */
  readonly n?: number;
  /** Longest completion in tokens. Default 512, or what the context leaves behind the longest prompt. */
  readonly maxNewTokens?: number;
  /** Divides the logits; 0 takes the likeliest token. Default 1. */
  readonly temperature?: number;
  /** Keeps the K likeliest tokens; 0 (default) keeps all. */
  readonly topK?: number;
  /** Keeps the likeliest tokens that hold this share of probability; 1 (default) keeps all. */
  readonly topP?: number;
  /** Drops tokens below this share of the likeliest one's probability; 0 (default) drops none. */
  readonly minP?: number;
  /** Texts that end a completion; its text ends before the first of them. Default: none. */
  readonly stop?: string | readonly string[] | null;
  /** Key of every draw, 0 to 2³²−1: the same seed, model and prompts give the same completions. Default 42. */
  readonly seed?: number;
  /** Called for every token in the order of drawing; returning false ends that completion with "stop". */
  readonly onToken?: (event: TokenEvent) => unknown;
}

export interface Completion {
  /** Without special tokens, and without a stop text and what was drawn behind it. */
  readonly text: string;
  /** Every token drawn, the ending EOS included. */
  readonly ids: Int32Array;
  /** Natural log-probability of each of `ids`, at the sampling temperature. */
  readonly logprobs: Float32Array;
  /** eos: it ended by itself; stop: by a stop text or by `onToken`; length: by `maxNewTokens`. */
  readonly finish: Finish;
}

const NEW_TOKENS = 512;

export interface CompletionSettings {
  readonly n: number;
  readonly sampling: Sampling;
  readonly stops: readonly string[];
  readonly seed: number;
  readonly onToken: GenerateOptions["onToken"];
}

/** Options checked. `room`: tokens that fit behind the longest prompt. */
export function settingsOf(options: GenerateOptions, tokenizer: Tokenizer, room: number): CompletionSettings {
  const { temperature = 1, topP = 1, minP = 0, stop = null } = options;
  above("temperature", temperature, 0, true);
  above("topP", topP, 0);
  above("minP", minP, 0, true);
  if (topP > 1 || minP > 1)
    throw new UsageError("topP and minP are shares of probability", undefined, "at most 1");
  const stops = stop === null ? [] : typeof stop === "string" ? [stop] : stop;
  if (stops.includes("")) throw new UsageError("a stop text is empty", "stop", "leave it out");
  return {
    n: whole("n", options.n ?? 1, 1),
    sampling: {
      temperature,
      topK: whole("topK", options.topK ?? 0, 0),
      topP,
      minP,
      maxNewTokens: whole("maxNewTokens", options.maxNewTokens ?? Math.max(1, Math.min(NEW_TOKENS, room)), 1),
      eosIds: tokenizer.eosIds,
    },
    stops,
    seed: whole("seed", options.seed ?? 42, 0, 2 ** 32 - 1),
    onToken: options.onToken,
  };
}

/** Runs requests on an engine, watching for stop texts. */
export async function complete(
  engine: RolloutEngine,
  requests: readonly Request[],
  { sampling, stops, seed, onToken }: CompletionSettings,
  tokenizer: Tokenizer,
): Promise<Completion[][]> {
  const watched = stops.length > 0 || onToken !== undefined;
  const texts = new Map<string, StreamedText>();
  const drawn = await engine.generateAsync(
    requests,
    sampling,
    { seed, purpose: Purpose.generate, step: 0 },
    watched
      ? (prompt, completion, id, { logprob }) => {
          const key = `${prompt}/${completion}`;
          let text = texts.get(key);
          if (text === undefined) {
            text = new StreamedText(tokenizer, stops);
            texts.set(key, text);
          }
          const piece = text.push(id);
          const goOn = onToken?.({ prompt, completion, id, logprob, text: piece });
          return goOn !== false && text.end === null;
        }
      : undefined,
  );
  return drawn.map((completions, prompt) =>
    completions.map((each, i) => completionOf(each, texts.get(`${prompt}/${i}`)?.end ?? null, tokenizer)),
  );
}

function completionOf(
  { ids, logprobs, finish }: Drawn,
  end: number | null,
  tokenizer: Tokenizer,
): Completion {
  const text = tokenizer.decode(ids, { skipSpecialTokens: true });
  return { text: end === null ? text : text.slice(0, end), ids, logprobs, finish };
}

/** The text of a completion as it grows. */
class StreamedText {
  readonly #stream: ReturnType<Tokenizer["stream"]>;
  #text = "";
  /** Where the first stop text begins; null: none has come. */
  end: number | null = null;

  constructor(
    tokenizer: Tokenizer,
    readonly stops: readonly string[],
  ) {
    this.#stream = tokenizer.stream({ skipSpecialTokens: true });
  }

  push(id: number): string {
    const piece = this.#stream.push(id);
    const before = this.#text.length;
    this.#text += piece;
    for (const stop of this.stops) {
      const at = this.#text.indexOf(stop, Math.max(0, before - stop.length + 1));
      if (at >= 0 && (this.end === null || at < this.end)) this.end = at;
    }
    return piece;
  }
}

/** A whole number in its range, or a UsageError. */
export function whole(name: string, value: number, least: number, most = Number.MAX_SAFE_INTEGER): number {
  if (Number.isSafeInteger(value) && value >= least && value <= most) return value;
  const range = most === Number.MAX_SAFE_INTEGER ? `at least ${least}` : `from ${least} to ${most}`;
  throw new UsageError(`${name} is ${value}`, undefined, `give a whole number ${range}`);
}

/** Refuses what is not a number above `least`, or `least` itself where that may be. */
export function above(name: string, value: number, least: number, itself = false): void {
  if (Number.isFinite(value) && (value > least || (itself && value === least))) return;
  throw new UsageError(
    `${name} is ${value}`,
    undefined,
    `give a number ${itself ? "of at least" : "above"} ${least}`,
  );
}
