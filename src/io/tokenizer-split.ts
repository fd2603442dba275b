import type { Part } from "./tokenizer-config.ts";
import { bytesToAlphabet, compilePattern, literal } from "./tokenizer-pattern.ts";

/**
 * Cuts a piece of text into smaller pieces (tokenizers: `pre_tokenizers`). `first`: the piece stands at
 * the very start of the text.
 */
export type Splitter = (piece: string, first: boolean) => string[];

/** The stages of a pre-tokenizer; `finish` rewrites a finished word and can wait until a cache misses. */
export interface Words {
  readonly split: Splitter;
  readonly finish: (word: string) => string;
}

type Behavior = "Removed" | "Isolated" | "MergedWithPrevious" | "MergedWithNext" | "Contiguous";

const KNOWN = [
  "Sequence",
  "Whitespace",
  "WhitespaceSplit",
  "Punctuation",
  "Digits",
  "Split",
  "CharDelimiterSplit",
  "BertPreTokenizer",
  "Metaspace",
  "ByteLevel",
  "FixedLength",
] as const;

// The classes of Rust's regex crate and char methods, which JavaScript's \w, \d and \s are not.
const WORD = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";
const WHITESPACE_WORDS = new RegExp(`[${WORD}]+|[^${WORD}\\p{White_Space}]+`, "gu");
const SPACES = /\p{White_Space}+/gu;
const PUNCTUATION = /[!-/:-@[-`{-~\p{P}]/gu;
const NUMERIC = /\p{N}/gu;
/** GPT-2's pattern (openai/gpt-2, encoder.py) with Unicode's white space. */
const GPT2_WORDS =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

const whole = (piece: string): string[] => [piece];
const unchanged = (word: string): string => word;

/** `null` in tokenizer.json: the whole text is one word. */
export function makeWords(part: Part | null): Words {
  if (part === null) return { split: whole, finish: unchanged };
  const parts = flatten(part);
  const last = parts.at(-1);
  // Mapping bytes is the costly half of ByteLevel: where nothing follows, do it for new words alone.
  const deferred = last?.type === "ByteLevel";
  const stages = parts.map((p, i) => makeSplitter(p, deferred && i === parts.length - 1));
  const finish = deferred ? bytesToAlphabet : unchanged;
  if (stages.length === 1) return { split: stages[0]!, finish };
  return {
    finish,
    split: (text, first) => {
      let pieces = [text];
      for (const stage of stages) {
        const next: string[] = [];
        for (let i = 0; i < pieces.length; i++) {
          const piece = pieces[i]!;
          const parts = stage(piece, first && i === 0 && text.startsWith(piece));
          for (const part of parts) if (part !== "") next.push(part);
        }
        pieces = next;
      }
      return pieces;
    },
  };
}

function flatten(part: Part): Part[] {
  return part.type === "Sequence" ? part.parts("pretokenizers").flatMap(flatten) : [part];
}

function makeSplitter(part: Part, deferBytes: boolean): Splitter {
  switch (part.type) {
    case "Whitespace":
      return (piece) => piece.match(WHITESPACE_WORDS) ?? [];
    case "WhitespaceSplit":
      return (piece) => cut(piece, SPACES, "Removed", false);
    case "Punctuation": {
      const behavior = behaviorOf(part, "Isolated");
      return (piece) => cut(piece, PUNCTUATION, behavior, false);
    }
    case "Digits": {
      const behavior = part.flag("individual_digits", false) ? "Isolated" : "Contiguous";
      return (piece) => cut(piece, NUMERIC, behavior, false);
    }
    case "Split": {
      const pattern = compilePattern(part);
      const behavior = behaviorOf(part);
      const invert = part.flag("invert", false);
      return (piece) => cut(piece, pattern, behavior, invert);
    }
    case "CharDelimiterSplit": {
      const delimiter = part.string("delimiter");
      return (piece) => piece.split(delimiter);
    }
    case "BertPreTokenizer":
      return (piece) =>
        cut(piece, SPACES, "Removed", false).flatMap((word) => cut(word, PUNCTUATION, "Isolated", false));
    case "Metaspace":
      return metaspace(part);
    case "ByteLevel": {
      const prefix = part.flag("add_prefix_space", true);
      const split = part.flag("use_regex", true);
      return (piece) => {
        if (prefix && !piece.startsWith(" ")) piece = ` ${piece}`;
        const words = split ? cut(piece, GPT2_WORDS, "Isolated", false) : [piece];
        return deferBytes ? words : words.map(bytesToAlphabet);
      };
    }
    case "FixedLength": {
      const length = part.number("length", 5);
      return (piece) => {
        const chars = Array.from(piece);
        const pieces: string[] = [];
        for (let i = 0; i < chars.length; i += length) pieces.push(chars.slice(i, i + length).join(""));
        return pieces;
      };
    }
    default:
      return part.unknown(KNOWN);
  }
}

/** SentencePiece's way: a space is a letter of the word that follows it. */
function metaspace(part: Part): Splitter {
  const space = part.string("replacement", "\u2581");
  const scheme = part.json.prepend_scheme ?? (part.flag("add_prefix_space", true) ? "always" : "never");
  if (scheme !== "always" && scheme !== "first" && scheme !== "never") {
    part.broken("prepend_scheme", "always, first or never");
  }
  const split = part.flag("split", true);
  const pattern = literal(space);
  return (piece, first) => {
    let text = piece.replaceAll(" ", space);
    if ((scheme === "always" || (scheme === "first" && first)) && !text.startsWith(space))
      text = space + text;
    return split ? cut(text, pattern, "MergedWithNext", false) : [text];
  };
}

function behaviorOf(part: Part, fallback?: Behavior): Behavior {
  const behavior = part.string("behavior", fallback);
  const known = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"];
  if (!known.includes(behavior)) part.broken("behavior", known.join(", "));
  return behavior as Behavior;
}

/**
 * Cuts a text at the matches of a pattern. What becomes of a match is the behavior's to say; `invert`
 * swaps matches and gaps (tokenizers: `NormalizedString::split`). Pieces may be empty.
 */
function cut(text: string, pattern: RegExp, behavior: Behavior, invert: boolean): string[] {
  const pieces: string[] = [];
  const isMatch: boolean[] = [];
  let end = 0;
  for (const found of text.matchAll(pattern)) {
    const word = found[0];
    if (word === "") continue;
    if (found.index > end) {
      pieces.push(text.slice(end, found.index));
      isMatch.push(invert);
    }
    pieces.push(word);
    isMatch.push(!invert);
    end = found.index + word.length;
  }
  if (end < text.length) {
    pieces.push(text.slice(end));
    isMatch.push(invert);
  }
  switch (behavior) {
    case "Isolated":
      return pieces;
    case "Removed":
      return pieces.filter((_, i) => !isMatch[i]);
    case "Contiguous":
      return join(pieces, (i) => isMatch[i] === isMatch[i - 1]);
    case "MergedWithPrevious":
      return join(pieces, (i) => isMatch[i]! && !isMatch[i - 1]);
    case "MergedWithNext":
      return join(pieces, (i) => isMatch[i - 1]! && !isMatch[i]);
  }
}

/** Glues each piece i for which `joined(i)` holds to the one before it. */
function join(pieces: string[], joined: (i: number) => boolean): string[] {
  const out: string[] = [];
  for (let i = 0; i < pieces.length; i++) {
    if (i > 0 && joined(i)) out.push(out.pop()! + pieces[i]);
    else out.push(pieces[i]!);
  }
  return out;
}
