/** A tokenizer of a few hundred tokens for models made here: bytes, and the words of a small language. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Tokenizer } from "../src/io/tokenizer.ts";

const END = "<|end|>";

/** GPT-2's byte alphabet: printable characters stand for themselves, the others are moved up. */
function byteAlphabet(): string[] {
  const kept = (b: number) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCodePoint(kept(b) ? b : next++));
}

/** Byte-level BPE with single digits: any text is representable, the given words are one token each. */
function tokenizerJson(words: readonly string[]): object {
  const alphabet = byteAlphabet();
  const vocab = new Map<string, number>(alphabet.map((char, i) => [char, i]));
  const merges: [string, string][] = [];
  for (const word of words) {
    const chars = [...new TextEncoder().encode(word)].map((b) => alphabet[b]!);
    let joined = chars[0]!;
    for (const char of chars.slice(1)) {
      const longer = joined + char;
      if (!vocab.has(longer)) {
        vocab.set(longer, vocab.size);
        merges.push([joined, char]);
      }
      joined = longer;
    }
  }
  const end = vocab.size;
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: [
      {
        id: end,
        content: END,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
        special: true,
      },
    ],
    normalizer: null,
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        {
          type: "Split",
          pattern: { Regex: "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s+" },
          behavior: "Isolated",
          invert: false,
        },
        { type: "ByteLevel", add_prefix_space: false, trim_offsets: false, use_regex: false },
      ],
    },
    post_processor: null,
    decoder: { type: "ByteLevel", add_prefix_space: false, trim_offsets: false, use_regex: false },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      vocab: Object.fromEntries(vocab),
      merges,
    },
  };
}

/** Writes tokenizer.json and tokenizer_config.json and reads them back. */
export function writeSmallTokenizer(
  folder: string,
  words: readonly string[],
  maxLength: number,
  config: Readonly<Record<string, unknown>> = {},
): Tokenizer {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "tokenizer.json"), `${JSON.stringify(tokenizerJson(words))}\n`);
  const whole = {
    tokenizer_class: "PreTrainedTokenizerFast",
    model_max_length: maxLength,
    eos_token: END,
    pad_token: END,
    clean_up_tokenization_spaces: false,
    ...config,
  };
  writeFileSync(join(folder, "tokenizer_config.json"), `${JSON.stringify(whole, null, 2)}\n`);
  const tokenizer = Tokenizer.load(folder);
  for (const word of words)
    if (tokenizer.encode(word).length !== 1) throw new Error(`${JSON.stringify(word)} is not one token`);
  return tokenizer;
}
