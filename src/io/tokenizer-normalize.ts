import type { Part } from "./tokenizer-config.ts";
import { bytesToAlphabet, compilePattern } from "./tokenizer-pattern.ts";

/** Text to text, before it is split into words (tokenizers: `normalizers`). */
export type Normalizer = (text: string) => string;

const KNOWN = [
  "Sequence",
  "NFC",
  "NFD",
  "NFKC",
  "NFKD",
  "Lowercase",
  "Replace",
  "Prepend",
  "Strip",
  "StripAccents",
  "BertNormalizer",
  "ByteLevel",
] as const;

export function makeNormalizer(part: Part): Normalizer {
  switch (part.type) {
    case "Sequence": {
      const stages = part.parts("normalizers").map(makeNormalizer);
      return (text) => stages.reduce((t, stage) => stage(t), text);
    }
    case "NFC":
    case "NFD":
    case "NFKC":
    case "NFKD": {
      const form = part.type;
      return (text) => text.normalize(form);
    }
    case "Lowercase":
      return lowercase;
    case "Replace": {
      const pattern = compilePattern(part);
      const content = part.string("content");
      // A function, since a replacement string would give "$" a meaning.
      return (text) => text.replace(pattern, () => content);
    }
    case "Prepend": {
      const prefix = part.string("prepend");
      return (text) => (text === "" ? text : prefix + text);
    }
    case "Strip": {
      const left = part.flag("strip_left", true);
      const right = part.flag("strip_right", true);
      return (text) => {
        if (left) text = text.replace(/^\p{White_Space}+/u, "");
        return right ? text.replace(/(?<!\p{White_Space})\p{White_Space}+$/u, "") : text;
      };
    }
    case "StripAccents":
      return (text) => text.replace(/\p{Mn}/gu, "");
    case "BertNormalizer":
      return bertNormalizer(part);
    case "ByteLevel":
      return bytesToAlphabet;
    default:
      return part.unknown(KNOWN);
  }
}

/**
 * Lowercase by code point, as the reference does: String.toLowerCase makes Σ a final ς at the end of
 * a word, the reference never.
 */
export function lowercase(text: string): string {
  return text.includes("\u03a3")
    ? text
        .split("\u03a3")
        .map((part) => part.toLowerCase())
        .join("\u03c3")
    : text.toLowerCase();
}

const CJK_IDEOGRAPH =
  /[\u4e00-\u9fff\u3400-\u4dbf\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\uf900-\ufaff\u{2f800}-\u{2fa1f}]/gu;

/** BERT's basic text cleaning (google-research/bert, tokenization.py `BasicTokenizer`). */
function bertNormalizer(part: Part): Normalizer {
  const clean = part.flag("clean_text", true);
  const chinese = part.flag("handle_chinese_chars", true);
  const lower = part.flag("lowercase", true);
  const strip = part.json.strip_accents === null ? lower : part.flag("strip_accents", lower);
  return (text) => {
    if (clean) {
      text = text.replace(/(?![\t\n\r])[\0\ufffd\p{Cc}\p{Cf}\p{Co}]/gu, "").replace(/\p{White_Space}/gu, " ");
    }
    if (chinese) text = text.replace(CJK_IDEOGRAPH, " $& ");
    if (strip) text = text.normalize("NFD").replace(/\p{Mn}/gu, "");
    return lower ? lowercase(text) : text;
  };
}
