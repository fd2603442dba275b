import { BPE, WordPiece } from "@huggingface/tokenizers";
import { shown, UsageError } from "../core/errors.ts";
import { isObject, type JsonObject, Part } from "./tokenizer-config.ts";

/** Turns one word into token ids (tokenizers: `models`). */
export interface WordModel {
  readonly type: "BPE" | "WordPiece" | "WordLevel" | "Unigram";
  readonly vocab: ReadonlyMap<string, number>;
  /** Every token with its id; a Unigram may list a token under two ids. */
  readonly entries: Iterable<readonly [string, number]>;
  encodeWord(word: string): number[];
}

const KNOWN = ["BPE", "WordPiece", "WordLevel", "Unigram"] as const;
const METASPACE = "\u2581";
const utf8 = new TextEncoder();

export function makeModel(json: JsonObject, file: string): WordModel {
  const part = new Part({ ...json, type: json.type ?? inferType(json) }, file, "model");
  switch (part.type) {
    case "BPE":
      return bpe(part);
    case "WordPiece":
      return wordPiece(part);
    case "WordLevel":
      return wordLevel(part);
    case "Unigram":
      return unigram(part);
    default:
      return part.unknown(KNOWN);
  }
}

/** Files of before 2021 do not name the model's type. */
function inferType(json: JsonObject): string {
  if ("merges" in json) return "BPE";
  if (Array.isArray(json.vocab)) return "Unigram";
  return "continuing_subword_prefix" in json ? "WordPiece" : "WordLevel";
}

/** Ids are places of a table, and no vocabulary is near as large: a larger one is damage. */
const MOST_TOKENS = 2 ** 22;

export function isTokenId(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) < MOST_TOKENS;
}

function vocabOf(part: Part): Map<string, number> {
  const vocab = part.json.vocab;
  if (!isObject(vocab)) part.broken("vocab", "an object of token: id");
  const entries = Object.entries(vocab as Record<string, unknown>);
  for (const [token, id] of entries) {
    if (!isTokenId(id)) part.broken(`vocab.${token}`, `an id below ${MOST_TOKENS}`);
  }
  return new Map(entries as [string, number][]);
}

function unknownId(part: Part, vocab: ReadonlyMap<string, number>): number {
  const token = part.string("unk_token", "[UNK]");
  const id = vocab.get(token);
  if (id === undefined) {
    throw new UsageError(
      `${part.type}: the vocabulary lacks its unk_token ${shown(token)}`,
      part.file,
      "save the tokenizer with an unknown token",
    );
  }
  return id;
}

function wordPiece(part: Part): WordModel {
  const vocab = vocabOf(part);
  unknownId(part, vocab);
  const model = new WordPiece({
    type: "WordPiece",
    unk_token: part.string("unk_token", "[UNK]"),
    continuing_subword_prefix: part.string("continuing_subword_prefix", "##"),
    max_input_chars_per_word: part.number("max_input_chars_per_word", 100),
    vocab: part.json.vocab as Record<string, number>,
  });
  return {
    type: "WordPiece",
    vocab,
    entries: vocab,
    encodeWord: (word) => model.encode([word]).map((token) => vocab.get(token)!),
  };
}

function wordLevel(part: Part): WordModel {
  const vocab = vocabOf(part);
  const unknown = unknownId(part, vocab);
  return { type: "WordLevel", vocab, entries: vocab, encodeWord: (word) => [vocab.get(word) ?? unknown] };
}

function isMerges(merges: readonly unknown[]): boolean {
  const pair = (merge: unknown) =>
    Array.isArray(merge) && merge.length === 2 && merge.every((token) => typeof token === "string");
  return merges.every((merge) => typeof merge === "string") || merges.every(pair);
}

function bpe(part: Part): WordModel {
  const vocab = vocabOf(part);
  const json = part.json;
  if (!Array.isArray(json.merges) || !isMerges(json.merges))
    part.broken("merges", 'a list of "a b" or of ["a", "b"]');
  if (json.continuing_subword_prefix) part.unsupported("continuing_subword_prefix");
  if (json.dropout) part.unsupported("dropout");
  const fuse = part.flag("fuse_unk", false);
  const ignoreMerges = part.flag("ignore_merges", false);
  const suffix = typeof json.end_of_word_suffix === "string" ? json.end_of_word_suffix : "";
  const unknown = typeof json.unk_token === "string" ? unknownId(part, vocab) : undefined;
  const model = new BPE({
    type: "BPE",
    unk_token: (json.unk_token ?? null) as string | null,
    end_of_word_suffix: suffix === "" ? null : suffix,
    // The package fuses across words, the reference within one: below.
    fuse_unk: false,
    byte_fallback: part.flag("byte_fallback", false),
    ignore_merges: ignoreMerges,
    vocab: json.vocab as Record<string, number>,
    merges: json.merges as string[],
  });
  const encode = (word: string, out: number[]): void => {
    let previous = -1;
    for (const token of model.encode([word])) {
      const id = vocab.get(token)!;
      if (!(fuse && id === unknown && previous === unknown)) out.push(id);
      previous = id;
    }
  };
  const separable = !ignoreMerges && suffix === "" && spacesSeparate(vocab);
  const cache = new WordCache();
  return {
    type: "BPE",
    vocab,
    entries: vocab,
    encodeWord(word) {
      const out: number[] = [];
      if (!separable || word.length < 16) {
        encode(word, out);
        return out;
      }
      for (const piece of word.match(/\u2581+[^\u2581]*|[^\u2581]+/g) ?? []) {
        let ids = cache.get(piece);
        if (ids === undefined) {
          ids = [];
          encode(piece, ids);
          cache.set(piece, ids);
        }
        for (const id of ids) out.push(id);
      }
      return out;
    },
  };
}

/**
 * True where no token holds a ▁ after another letter: then no merge crosses a space, and a text that is
 * one long "word" (SentencePiece pipelines without a pre-tokenizer) may be cut there with the same result.
 */
function spacesSeparate(vocab: ReadonlyMap<string, number>): boolean {
  if (!vocab.has(METASPACE)) return false;
  for (const token of vocab.keys()) if (/[^\u2581]\u2581/.test(token)) return false;
  return true;
}

function unigram(part: Part): WordModel {
  const list = part.json.vocab;
  if (
    !Array.isArray(list) ||
    !list.every((e) => Array.isArray(e) && typeof e[0] === "string" && typeof e[1] === "number")
  ) {
    part.broken("vocab", "a list of [token, score]");
  }
  const scored = list as [string, number][];
  const vocab = new Map(scored.map(([token], id) => [token, id]));
  const unknown = part.number("unk_id");
  const bytes = part.flag("byte_fallback", false);
  let lowest = Number.POSITIVE_INFINITY;
  let longest = 1;
  for (const [token, score] of scored) {
    lowest = Math.min(lowest, score);
    longest = Math.max(longest, token.length);
  }
  const pieces = { vocab, scored, unknown, unknownScore: lowest - UNKNOWN_PENALTY, longest };
  return {
    type: "Unigram",
    vocab,
    entries: scored.map(([token], id) => [token, id] as const),
    encodeWord(word) {
      const out: number[] = [];
      let stranger = "";
      const flush = (): void => {
        if (stranger === "") return;
        const ids = bytes ? byteIds(stranger, vocab) : undefined;
        out.push(...(vocab.has(stranger) ? [vocab.get(stranger)!] : (ids ?? [unknown])));
        stranger = "";
      };
      for (const { text, id } of bestPath(word, pieces)) {
        if (id === unknown) {
          stranger += text;
        } else {
          flush();
          out.push(id);
        }
      }
      flush();
      return out;
    },
  };
}

interface Pieces {
  readonly vocab: ReadonlyMap<string, number>;
  readonly scored: readonly (readonly [string, number])[];
  readonly unknown: number;
  readonly unknownScore: number;
  /** Length of the longest token in UTF-16 units. */
  readonly longest: number;
}

/** What a character outside the vocabulary costs below the rarest token (SentencePiece, kUnkPenalty). */
const UNKNOWN_PENALTY = 10;

/**
 * The segmentation of highest summed score, by dynamic programming over ends of tokens (Kudo, 2018,
 * arXiv:1804.10959). Of equal ones the first found stays, as in tokenizers' `encode_optimized`.
 */
function bestPath(word: string, pieces: Pieces): { text: string; id: number }[] {
  const { vocab, scored, unknown, unknownScore, longest } = pieces;
  const best = new Float64Array(word.length + 1);
  const from = new Int32Array(word.length + 1).fill(-1);
  const ids = new Int32Array(word.length + 1);
  const offer = (start: number, end: number, id: number, score: number): void => {
    const candidate = best[start]! + score;
    if (from[end] === -1 || candidate > best[end]!) {
      best[end] = candidate;
      from[end] = start;
      ids[end] = id;
    }
  };
  for (let start = 0; start < word.length; ) {
    const next = start + (word.codePointAt(start)! > 0xffff ? 2 : 1);
    const last = Math.min(word.length, start + longest);
    for (let end = next; end <= last; end++) {
      const id = vocab.get(word.slice(start, end));
      if (id !== undefined) offer(start, end, id, scored[id]![1]);
    }
    if (!vocab.has(word.slice(start, next))) offer(start, next, unknown, unknownScore);
    start = next;
  }
  const path: { text: string; id: number }[] = [];
  for (let end = word.length; end > 0; end = from[end]!) {
    path.push({ text: word.slice(from[end]!, end), id: ids[end]! });
  }
  return path.reverse();
}

/** The tokens <0x00>…<0xFF> of a text's bytes, undefined where the vocabulary lacks one of them. */
function byteIds(text: string, vocab: ReadonlyMap<string, number>): number[] | undefined {
  const ids: number[] = [];
  for (const byte of utf8.encode(text)) {
    const id = vocab.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
    if (id === undefined) return undefined;
    ids.push(id);
  }
  return ids;
}

/** Ids of words seen before. Bounded: emptied when full, since common words are back at once. */
export class WordCache {
  static readonly CAPACITY = 1 << 17;
  static readonly LONGEST = 128;
  readonly #ids = new Map<string, number[]>();

  get(word: string): number[] | undefined {
    return this.#ids.get(word);
  }

  set(word: string, ids: number[]): void {
    if (word.length > WordCache.LONGEST) return;
    if (this.#ids.size >= WordCache.CAPACITY) this.#ids.clear();
    this.#ids.set(word, ids);
  }
}
