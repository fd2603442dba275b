import { SplitPreTokenizer } from "@huggingface/tokenizers";
import { UsageError } from "../core/errors.ts";
import type { Part } from "./tokenizer-config.ts";

/**
 * The `pattern` of a Split or Replace as a global, Unicode-aware RegExp. A String is taken literally;
 * a Regex is in Oniguruma's syntax, which the package rewrites for JavaScript.
 */
export function compilePattern(part: Part): RegExp {
  const pattern = part.pattern();
  if ("text" in pattern) return literal(pattern.text);
  try {
    const split = new SplitPreTokenizer({
      type: "Split",
      pattern: { Regex: pattern.regex },
      behavior: "Isolated",
      invert: false,
    });
    return (split as unknown as { readonly pattern: RegExp }).pattern;
  } catch (error) {
    throw new UsageError(
      `${part.kind} ${part.type}: cannot read the pattern ${pattern.regex} (${(error as Error).message})`,
      part.file,
      "write the pattern in plainer regular-expression syntax",
    );
  }
}

/** A global RegExp that matches a text as it stands. */
export function literal(text: string): RegExp {
  return new RegExp(text.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&"), "gu");
}

/**
 * GPT-2's printable alphabet of the 256 bytes: printable Latin-1 stands for itself, the others follow
 * from U+0100 on (openai/gpt-2, encoder.py `bytes_to_unicode`).
 */
const BYTE_ALPHABET: readonly string[] = (() => {
  const alphabet: string[] = [];
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    alphabet.push(String.fromCharCode(printable ? byte : next++));
  }
  return alphabet;
})();

const BYTE_OF_LETTER = new Map(BYTE_ALPHABET.map((letter, byte) => [letter, byte]));
const utf8 = new TextEncoder();

/** The UTF-8 bytes of a text, each as its letter of the byte alphabet. */
export function bytesToAlphabet(text: string): string {
  let out = "";
  for (const byte of utf8.encode(text)) out += BYTE_ALPHABET[byte];
  return out;
}

/** The bytes behind a byte-level token; a token with any other letter stands for its own UTF-8 bytes. */
export function alphabetToBytes(token: string): Uint8Array {
  const bytes = new Uint8Array(token.length);
  for (let i = 0; i < token.length; i++) {
    const byte = BYTE_OF_LETTER.get(token[i]!);
    if (byte === undefined) return utf8.encode(token);
    bytes[i] = byte;
  }
  return bytes;
}
