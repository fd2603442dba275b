import { describe, expect, test } from "bun:test";
import { cpSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { Unsupported, UsageError } from "../../src/core/errors.ts";
import { Tokenizer } from "../../src/io/tokenizer.ts";
import { type GoldenCase, goldenCases } from "../goldens-dirs.ts";
import { errorOf, TemporaryFolder } from "./temporary.ts";

const CASES = goldenCases("text").filter((c) => c.kind === "tokenizer");

const tokenizerOf = (c: GoldenCase): Tokenizer => Tokenizer.load(join(c.dir, c.spec.tokenizer));

/** One of the project's own cases, whatever folder the goldens are walked in. */
const own = (name: string): string => join(import.meta.dir, "../goldens/text", name, "tokenizer");

function load(name: string): Tokenizer {
  return Tokenizer.load(own(name));
}

/** A folder with the tokenizer of a golden case and the given files over it. */
function folderWith(name: string, files: Record<string, unknown>): TemporaryFolder {
  const folder = new TemporaryFolder();
  cpSync(own(name), folder.path, { recursive: true });
  for (const [file, content] of Object.entries(files)) {
    writeFileSync(folder.file(file), typeof content === "string" ? content : JSON.stringify(content));
  }
  return folder;
}

test("there are tokenizer goldens, and no text golden of an unknown kind", () => {
  expect(CASES.length).toBeGreaterThan(0);
  const known = ["tokenizer", "chat_template", "chat_template_files", "jinja"];
  expect(
    goldenCases("text")
      .filter((c) => !known.includes(c.kind))
      .map((c) => c.name),
  ).toEqual([]);
});

describe.each(CASES.map((c) => [c.name, c] as const))("golden %s", (_, c) => {
  const tokenizer = tokenizerOf(c);
  const { special } = c.spec;

  test("encodes", () => {
    for (const k of c.spec.cases) {
      expect([k.text, ...tokenizer.encode(k.text)]).toEqual([k.text, ...k.ids]);
      expect([...tokenizer.encode(k.text, { addSpecialTokens: true })]).toEqual(k.ids_with_special);
    }
  });

  test("decodes", () => {
    for (const k of c.spec.cases) {
      expect(k.ids.map((id: number) => tokenizer.idToToken(id))).toEqual(k.tokens);
      expect(tokenizer.decode(k.ids)).toBe(k.decoded);
      expect(tokenizer.decode(k.ids, { skipSpecialTokens: true })).toBe(k.decoded_skip_special);
      expect(tokenizer.decode(k.ids_with_special, { skipSpecialTokens: true })).toBe(
        k.decoded_with_special_skipped,
      );
      for (const [i, text] of (k.decoded_prefixes ?? []).entries()) {
        expect(tokenizer.decode(k.ids.slice(0, i + 1))).toBe(text);
      }
    }
  });

  test("streams what it decodes and never takes text back", () => {
    for (const k of c.spec.cases) {
      const stream = tokenizer.stream();
      let text = "";
      k.ids.forEach((id: number, i: number) => {
        text += stream.push(id);
        expect(tokenizer.decode(k.ids.slice(0, i + 1)).startsWith(text)).toBe(true);
        if (k.decoded_prefixes) expect(k.decoded_prefixes[i].startsWith(text)).toBe(true);
      });
      expect(text + stream.end()).toBe(k.decoded);
    }
  });

  test("knows its special tokens", () => {
    if (special.vocab_size_with_added !== undefined) {
      expect(tokenizer.vocabSize).toBe(special.vocab_size_with_added);
    }
    const idOf = (token: string | null): number | null =>
      token === null ? null : (tokenizer.tokenToId(token) ?? null);
    if ("eos" in special) expect(tokenizer.eosId).toBe(idOf(special.eos));
    if ("pad" in special) expect(tokenizer.padId).toBe(idOf(special.pad));
    if ("bos" in special) expect(tokenizer.bosId).toBe(idOf(special.bos));
    for (const id of special.all_special_ids ?? []) expect(tokenizer.isSpecial(id)).toBe(true);
  });

  test("any ids: the stream's pieces are the decoded text, an embedding's spare rows are nothing", () => {
    const ids = fc.array(fc.nat(tokenizer.vocabSize + 3), { maxLength: 24 });
    fc.assert(
      fc.property(ids, fc.boolean(), (tokens, skipSpecialTokens) => {
        const stream = tokenizer.stream({ skipSpecialTokens });
        const pieces = tokens.map((id) => stream.push(id)).join("") + stream.end();
        expect(pieces).toBe(tokenizer.decode(tokens, { skipSpecialTokens }));
        const known = tokens.filter((id) => tokenizer.idToToken(id) !== undefined);
        expect(tokenizer.decode(known, { skipSpecialTokens })).toBe(pieces);
      }),
      { numRuns: 150 },
    );
  });

  test("encodes the same twice: the cache changes nothing", () => {
    const fresh = tokenizerOf(c);
    for (const k of [...c.spec.cases].reverse()) {
      expect([...fresh.encode(k.text)]).toEqual(k.ids);
      expect([...fresh.encode(k.text)]).toEqual(k.ids);
    }
  });
});

const TEXT = fc.oneof(
  fc.string({ unit: "binary", maxLength: 40 }),
  fc.string({
    unit: fc.constantFrom("a", "b", " ", "\n", "é", "東", "🎉", "\ufeff", "▁", "<", "0", "'"),
    maxLength: 40,
  }),
);

describe("round trips", () => {
  test("byte-level BPE gives every NFC text back", () => {
    const tokenizer = load("bytelevel_bpe_qwen");
    fc.assert(
      fc.property(TEXT, (raw) => {
        const text = raw.toWellFormed().normalize("NFC");
        expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
      }),
      { numRuns: 300 },
    );
  });

  test("SentencePiece BPE with byte fallback gives every text back whose ▁ is no space", () => {
    const tokenizer = load("sentencepiece_bpe_llama");
    fc.assert(
      fc.property(TEXT, (raw) => {
        const text = raw.toWellFormed().replaceAll("▁", "_");
        expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
      }),
      { numRuns: 300 },
    );
  });

  test("what WordPiece decodes it encodes to the same ids, for text of known words", () => {
    const tokenizer = load("wordpiece_simplestories");
    const words = Array.from({ length: tokenizer.vocabSize }, (_, id) => tokenizer.idToToken(id)!).filter(
      (token) => /^[a-z]{2,}$/.test(token),
    );
    fc.assert(
      fc.property(fc.array(fc.constantFrom(...words), { minLength: 1, maxLength: 12 }), (text) => {
        const ids = tokenizer.encode(text.join(" "));
        expect([...tokenizer.encode(tokenizer.decode(ids))]).toEqual([...ids]);
      }),
      { numRuns: 200 },
    );
  });
});

describe("invalid UTF-8", () => {
  test("byte-level: an unfinished character is one U+FFFD, and waits in a stream", () => {
    const tokenizer = load("bytelevel_gpt2_prefix");
    // 🎉 is F0 9F 8E 89: ð Ł İ ī in GPT-2's alphabet.
    const ids = [..."ðŁİī"].map((letter) => tokenizer.tokenToId(letter)!);
    expect(ids.every((id) => id !== undefined)).toBe(true);
    expect(tokenizer.decode(ids.slice(0, 3))).toBe("\ufffd");
    const stream = tokenizer.stream();
    expect(ids.map((id) => stream.push(id))).toEqual(["", "", "", "🎉"]);
    expect(stream.end()).toBe("");
  });

  test("byte fallback: every byte of a broken run is a U+FFFD of its own", () => {
    const tokenizer = load("sentencepiece_bpe_llama");
    const ids = ["<0xF0>", "<0x9F>", "<0x8E>"].map((token) => tokenizer.tokenToId(token)!);
    expect(tokenizer.decode(ids)).toBe("\ufffd\ufffd\ufffd");
    expect(tokenizer.decode([...ids, tokenizer.tokenToId("<0x89>")!])).toBe("🎉");
  });

  test("a lone surrogate is encoded as U+FFFD", () => {
    const tokenizer = load("bytelevel_gpt2_prefix");
    expect(tokenizer.decode(tokenizer.encode("a\ud83c"))).toBe(" a\ufffd");
  });
});

describe("files beside tokenizer.json", () => {
  test("eos: generation_config.json, else config.json, else the tokenizer's", () => {
    using none = folderWith("bytelevel_bpe_qwen", {});
    expect(Tokenizer.load(none.path).eosIds).toEqual([1502]);
    using config = folderWith("bytelevel_bpe_qwen", { "config.json": { eos_token_id: 7 } });
    expect(Tokenizer.load(config.path).eosIds).toEqual([7]);
    using both = folderWith("bytelevel_bpe_qwen", {
      "config.json": { eos_token_id: 7 },
      "generation_config.json": { eos_token_id: [1502, 1500] },
    });
    expect(Tokenizer.load(both.path).eosIds).toEqual([1502, 1500]);
    expect(Tokenizer.load(both.path).eosId).toBe(1502);
    using silent = folderWith("bytelevel_bpe_qwen", {
      "config.json": { eos_token_id: 7 },
      "generation_config.json": { eos_token_id: null },
    });
    expect(Tokenizer.load(silent.path).eosIds).toEqual([7]);
    using broken = folderWith("bytelevel_bpe_qwen", { "config.json": { eos_token_id: "</s>" } });
    expect(errorOf(() => Tokenizer.load(broken.path))).toBeInstanceOf(UsageError);
  });

  test("special tokens that tokenizer.json does not list are added as transformers adds them", () => {
    using folder = folderWith("wordpiece_unk_not_added", {
      "tokenizer_config.json": {
        unk_token: "[UNK]",
        pad_token: { content: "[PAD]", __type: "AddedToken" },
        eos_token: "[EOS]",
      },
    });
    const bare = load("wordpiece_unk_not_added");
    const tokenizer = Tokenizer.load(folder.path);
    expect(bare.encode("[UNK]").length).toBeGreaterThan(1);
    expect([...tokenizer.encode("[UNK]")]).toEqual([0]);
    // [PAD] is in no vocabulary: the next free id.
    expect(tokenizer.padId).toBe(bare.vocabSize);
    expect(tokenizer.vocabSize).toBe(bare.vocabSize + 1);
    expect(tokenizer.decode([tokenizer.padId!], { skipSpecialTokens: true })).toBe("");
  });

  test("special_tokens_map.json names tokens that tokenizer_config.json does not", () => {
    using folder = folderWith("wordpiece_unk_not_added", {
      "special_tokens_map.json": { eos_token: { content: "[EOS]" } },
    });
    expect(Tokenizer.load(folder.path).eosId).toBe(1);
  });

  test("add_bos_token and add_eos_token replace the post-processor", () => {
    const config = { bos_token: "<s>", eos_token: "</s>", add_bos_token: false, add_eos_token: true };
    using folder = folderWith("sentencepiece_bpe_llama", { "tokenizer_config.json": config });
    const ids = Tokenizer.load(folder.path).encode("", { addSpecialTokens: true });
    expect([...ids]).toEqual([2]);
  });

  test("clean_up_tokenization_spaces holds for WordPiece, not for BPE (transformers 5)", () => {
    const config = { eos_token: "<|im_end|>", clean_up_tokenization_spaces: true };
    using bpe = folderWith("bytelevel_bpe_qwen", { "tokenizer_config.json": config });
    const kept = Tokenizer.load(bpe.path);
    expect(kept.decode(kept.encode("a ."))).toBe("a .");
    using level = folderWith("split_char_delimiter", {
      "tokenizer.json": {
        added_tokens: [],
        model: { type: "WordLevel", unk_token: "u", vocab: { u: 0, a: 1, ".": 2, "'": 3, "n't": 4 } },
      },
      "tokenizer_config.json": { clean_up_tokenization_spaces: true },
    });
    const cleaned = Tokenizer.load(level.path);
    expect(cleaned.decode([1, 2, 1, 3, 1, 4])).toBe("a. a'an't");
    fc.assert(
      fc.property(fc.array(fc.nat(4), { maxLength: 16 }), (ids) => {
        const stream = cleaned.stream();
        expect(ids.map((id) => stream.push(id)).join("") + stream.end()).toBe(cleaned.decode(ids));
        // The clean-up of the whole text at once, in transformers' order.
        let whole = ids.map((id) => cleaned.idToToken(id)).join(" ");
        for (const [from, to] of [
          [" .", "."],
          [" ' ", "'"],
          [" n't", "n't"],
        ] as const) {
          whole = whole.replaceAll(from, to);
        }
        expect(cleaned.decode(ids)).toBe(whole);
      }),
      { numRuns: 500 },
    );
  });

  test("lists the files to copy beside a saved model", () => {
    using folder = folderWith("bytelevel_bpe_qwen", {
      "chat_template.jinja": "x",
      "vocab.json": "{}",
      "model.safetensors": "",
      "config.json": "{}",
    });
    expect(Tokenizer.load(folder.path).files).toEqual([
      "tokenizer.json",
      "tokenizer_config.json",
      "vocab.json",
      "chat_template.jinja",
    ]);
  });
});

describe("errors name the file and the remedy", () => {
  const minimal = { added_tokens: [], model: { type: "WordLevel", unk_token: "u", vocab: { u: 0 } } };
  const refusal = (files: Record<string, unknown>): Error => {
    using folder = folderWith("bytelevel_bpe_qwen", files);
    return errorOf(() => Tokenizer.load(folder.path));
  };

  test("no tokenizer.json", () => {
    using folder = new TemporaryFolder();
    const error = errorOf(() => Tokenizer.load(folder.path));
    expect(error).toBeInstanceOf(UsageError);
    expect(error.message).toContain("no tokenizer.json");
    expect(error.message).toContain(folder.path);
    expect(error.message).toContain("save_pretrained");
  });

  test("broken JSON", () => {
    for (const name of ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]) {
      const error = refusal({ [name]: "{" });
      expect(error).toBeInstanceOf(UsageError);
      expect(error.message).toContain(name);
    }
  });

  test.each([
    ["model", { ...minimal, model: { type: "Quantum", vocab: {} } }],
    ["pre-tokenizer", { ...minimal, pre_tokenizer: { type: "UnicodeScripts" } }],
    ["normalizer", { ...minimal, normalizer: { type: "Precompiled", precompiled_charsmap: "" } }],
    ["decoder", { ...minimal, decoder: { type: "Sequence", decoders: [{ type: "CTC" }] } }],
    ["post-processor", { ...minimal, post_processor: { type: "Custom" } }],
  ])("unknown type of %s", (kind, json) => {
    const error = refusal({ "tokenizer.json": json });
    expect(error).toBeInstanceOf(Unsupported);
    expect(error.message).toContain(`unknown ${kind} type`);
    expect(error.message).toContain("tokenizer.json");
  });

  test.each([
    ["a model without vocabulary", { ...minimal, model: { type: "BPE", merges: [] } }],
    [
      "an unknown token outside the vocabulary",
      { ...minimal, model: { type: "WordLevel", vocab: { a: 0 } } },
    ],
    ["dropout", { ...minimal, model: { type: "BPE", dropout: 0.1, vocab: {}, merges: [] } }],
    [
      "a pattern that is no regular expression",
      { ...minimal, pre_tokenizer: { type: "Split", pattern: { Regex: "(" }, behavior: "Isolated" } },
    ],
    [
      "an unknown behavior",
      { ...minimal, pre_tokenizer: { type: "Split", pattern: { String: " " }, behavior: "Eaten" } },
    ],
    ["no model", { added_tokens: [] }],
    [
      "an id beyond any vocabulary",
      { ...minimal, model: { type: "BPE", vocab: { a: 1_040_390_363 }, merges: [] } },
    ],
    [
      "an added token without a proper id",
      { ...minimal, added_tokens: [{ id: 1.5, content: "<a>", special: true }] },
    ],
  ])("%s", (_, json) => {
    expect(refusal({ "tokenizer.json": json })).toBeInstanceOf(UsageError);
  });
});

test("speed of encoding a megabyte, cold (printed, not judged)", () => {
  const words = "the king went to town and sang about dragons; don't you know? 42 times.".split(" ");
  let seed = 1;
  let text = "";
  while (text.length < 1e6) {
    seed = (seed * 1103515245 + 12345) & 0x7fffffff;
    text += words[seed % words.length] + (seed % 31 === 0 ? ` ${seed.toString(36)} ` : " ");
  }
  for (const name of ["bytelevel_bpe_qwen", "sentencepiece_bpe_llama", "wordpiece_simplestories"]) {
    const tokenizer = load(name);
    const start = performance.now();
    const ids = tokenizer.encode(text);
    const encoded = performance.now();
    tokenizer.decode(ids);
    const decoded = performance.now();
    console.log(
      `${name}: 1 MB, ${ids.length} tokens, ` +
        `encode ${Math.round(encoded - start)} ms, decode ${Math.round(decoded - encoded)} ms`,
    );
    expect(ids.length).toBeGreaterThan(100_000);
  }
});
