import { describe, expect, test } from "bun:test";
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { UsageError } from "../../src/core/errors.ts";
import {
  conversationText,
  parseTranscript,
  stripThinking,
  type Turn,
  transcriptText,
} from "../../src/data/conversation.ts";
import { preferenceRow, UnusableRow } from "../../src/data/preference-row.ts";
import {
  EpochSampler,
  mixedPrompts,
  openPreferences,
  type PreferenceRow,
  pairSampler,
  preferencePair,
  preferencePrompt,
} from "../../src/data/preferences.ts";
import { Tokenizer } from "../../src/io/tokenizer.ts";
import { TemporaryFolder } from "../io/temporary.ts";

const TEXT = join(import.meta.dir, "../goldens/text");
const plain = Tokenizer.load(join(TEXT, "bytelevel_bpe_qwen/tokenizer"));
const CHATML: string = JSON.parse(readFileSync(join(TEXT, "chat_own/case.json"), "utf8")).templates
  .own_chatml;

/** The same tokenizer with a chat template. */
function withTemplate(template: string): Tokenizer {
  using folder = new TemporaryFolder();
  cpSync(join(TEXT, "bytelevel_bpe_qwen/tokenizer"), folder.path, { recursive: true });
  writeFileSync(folder.file("chat_template.jinja"), template);
  return Tokenizer.load(folder.path);
}
const chatty = withTemplate(CHATML);
/** As Qwen3's does: an empty thought before every answer. */
const THINKING = CHATML.replace(
  "(m.content | trim)",
  "(('<think>\\n\\n</think>\\n\\n' if m.role == 'assistant' else '') + (m.content | trim))",
);
const thinking = withTemplate(THINKING);

const user = (content: string): Turn => ({ role: "user", content });
const assistant = (content: string): Turn => ({ role: "assistant", content });
const hh = (...turns: string[]) =>
  turns.map((text, i) => `\n\n${i % 2 === 0 ? "Human" : "Assistant"}: ${text}`).join("");
const rowOf = (row: Record<string, unknown>): PreferenceRow => preferenceRow(row, "f.jsonl:1", 0);
const pairText = (tokenizer: Tokenizer, row: PreferenceRow) => {
  const pair = preferencePair(row, tokenizer, 1000)!;
  return [tokenizer.decode(pair.chosen), tokenizer.decode(pair.rejected)];
};

describe("transcripts", () => {
  test("turns alternate and are trimmed", () => {
    expect(parseTranscript("\n\nHuman: Hi \n\nAssistant: Hello.\n\nHuman: A\nB\n\nAssistant: ")).toEqual([
      user("Hi"),
      assistant("Hello."),
      user("A\nB"),
      assistant(""),
    ]);
  });

  test("a marker inside a turn is text", () => {
    const tricky = "I said Human: x\nAssistant: y\n\nHuman: z";
    expect(parseTranscript(`\n\nHuman: ${tricky}\n\nAssistant: ok`)).toEqual([user(tricky), assistant("ok")]);
    expect(parseTranscript("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c")).toEqual([
      user("a"),
      assistant("b\n\nAssistant: c"),
    ]);
  });

  test("other text is none", () => {
    for (const text of ["", "Hello", "Assistant: x", "The Human: x"])
      expect(parseTranscript(text)).toBeNull();
  });

  test("what is written is read again", () => {
    const turn = fc
      .string({ minLength: 1 })
      .map((text) => text.trim())
      .filter((text) => !/\n\n(Human|Assistant):/.test(`\n\n${text}`));
    fc.assert(
      fc.property(fc.array(turn, { minLength: 1, maxLength: 6 }), (texts) => {
        const turns = texts.map((text, i) => (i % 2 === 0 ? user(text) : assistant(text)));
        expect(parseTranscript(transcriptText(turns, false))).toEqual(turns);
      }),
    );
  });
});

describe("formatted text", () => {
  test("thoughts are stripped", () => {
    expect(stripThinking("a<think>\nlong\n</think>\n\nb<think></think>c")).toBe("abc");
    expect(stripThinking("a<think>never closed")).toBe("a<think>never closed");
  });

  test("by template, with thoughts stripped and nothing behind EOS", () => {
    const turns = [user("Q"), assistant("A")];
    const want = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>";
    expect(conversationText(turns, chatty, false)).toBe(want);
    expect(conversationText(turns, thinking, false)).toBe(want);
    expect(conversationText([user("Q")], chatty, true)).toBe(
      "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
    );
  });

  test("as a transcript where there is no template", () => {
    expect(conversationText([user("Q"), assistant("A")], plain, false)).toBe(`${hh("Q", "A")}<|im_end|>`);
    expect(conversationText([user("Q")], plain, true)).toBe("\n\nHuman: Q\n\nAssistant:");
  });
});

describe("rows", () => {
  const want = { prompt: [user("Q")], chosen: [assistant("good")], rejected: [assistant("bad")] };
  test.each<[string, Record<string, unknown>]>([
    ["transcripts", { chosen: hh("Q", "good"), rejected: hh("Q", "bad") }],
    ["a transcript as prompt", { prompt: "\n\nHuman: Q\n\nAssistant:", chosen: " good", rejected: " bad" }],
    [
      "messages with the prompt in them",
      { chosen: [user("Q"), assistant("good")], rejected: [user("Q"), assistant("bad")] },
    ],
    [
      "messages with a prompt",
      { prompt: [user("Q")], chosen: [assistant("good")], rejected: [assistant("bad")] },
    ],
    [
      "messages with a prompt of text",
      { prompt: "Q", chosen: [assistant("good")], rejected: [assistant("bad")] },
    ],
    [
      "the prompt said twice",
      { prompt: "Q", chosen: [user("Q"), assistant("good")], rejected: [user("Q"), assistant("bad")] },
    ],
  ])("%s", (_, row) => {
    expect(rowOf(row)).toEqual({ index: 0, where: "f.jsonl:1", ...want });
  });

  test("conversations may part before the last turn", () => {
    const row = rowOf({ chosen: hh("a", "b", "c", "d"), rejected: hh("a", "x") });
    expect(row.prompt).toEqual([user("a")]);
    expect(row.chosen).toEqual([assistant("b"), user("c"), assistant("d")]);
    expect(preferencePrompt(row, plain, 100)!.text).toBe(
      "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:",
    );
  });

  test("the same answer twice is still an answer", () => {
    expect(rowOf({ chosen: hh("Q", "A"), rejected: hh("Q", "A") }).chosen).toEqual([assistant("A")]);
  });

  test("text with a prompt, and text that begins alike", () => {
    expect(rowOf({ prompt: "P ", chosen: "x", rejected: "y" })).toMatchObject({
      prompt: "P ",
      chosen: "x",
      rejected: "y",
    });
    expect(rowOf({ chosen: "The sky is blue", rejected: "The sky is blur" })).toMatchObject({
      prompt: "The sky is",
      chosen: " blue",
      rejected: " blur",
    });
    expect(rowOf({ chosen: "The sky", rejected: "The sky is" })).toMatchObject({
      prompt: "The",
      chosen: " sky",
    });
  });

  test("a margin is kept", () => {
    expect(rowOf({ chosen: "a", rejected: "b", margin: 1.5 }).margin).toBe(1.5);
    expect(preferencePair(rowOf({ chosen: "a", rejected: "b", margin: 1.5 }), plain, 9)!.margin).toBe(1.5);
    expect(rowOf({ chosen: "a", rejected: "b", margin: null }).margin).toBeUndefined();
  });

  test.each<[string, Record<string, unknown>, RegExp]>([
    ["no chosen", { rejected: "x" }, /no column "chosen": f\.jsonl:1/],
    ["rejected is null", { chosen: "x", rejected: null }, /no column "rejected"/],
    ["chosen is a number", { chosen: 3, rejected: "x" }, /chosen is number, not text/],
    ["rejected is an object", { chosen: "x", rejected: {} }, /rejected is object, not text/],
    ["one text, one list", { chosen: [assistant("x")], rejected: "x" }, /rejected is not a list/],
    ["one transcript", { chosen: hh("Q", "A"), rejected: "x" }, /only one of chosen and rejected/],
    [
      "a message without content",
      { chosen: [{ role: "assistant" }], rejected: [assistant("x")] },
      /role and a content.*f\.jsonl:1, chosen/,
    ],
    ["a margin of text", { chosen: "a", rejected: "b", margin: "1" }, /margin is "1"/],
    ["an endless margin", { chosen: "a", rejected: "b", margin: Number.NaN }, /margin/],
  ])("%s is an error", (_, row, message) => {
    expect(() => rowOf(row)).toThrow(message);
    expect(() => rowOf(row)).toThrow(UsageError);
    expect(() => rowOf(row)).not.toThrow(UnusableRow);
  });

  test.each<[string, Record<string, unknown>, RegExp]>([
    [
      "an empty answer",
      { chosen: hh("Q", " "), rejected: hh("Q", "A") },
      /chosen has an empty answer: f\.jsonl:1/,
    ],
    ["an empty text", { prompt: "P", chosen: "a", rejected: " \n" }, /rejected has an empty answer/],
    ["no answer", { chosen: hh("Q", "A"), rejected: hh("Q") }, /rejected does not end with the assistant/],
    ["no messages", { chosen: [], rejected: [assistant("x")] }, /chosen does not end with/],
  ])("%s holds no pair", (_, row, message) => {
    expect(() => rowOf(row)).toThrow(UnusableRow);
    expect(() => rowOf(row)).toThrow(message);
  });
});

test("any row gives a pair or an error that names it", () => {
  const text = fc.oneof(
    fc.string(),
    fc.constantFrom("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant:", "Human:", "a b"),
  );
  const message = fc.record({ role: fc.constantFrom("user", "assistant", "system"), content: text });
  const turns = fc
    .array(message, { maxLength: 3 })
    .map((list) => [...list, { role: "assistant", content: "x" }]);
  const odd = fc.oneof(text, fc.array(message, { maxLength: 4 }), fc.jsonValue());
  const margin = fc.option(fc.double(), { nil: undefined });
  const row = fc.oneof(
    fc.record(
      { chosen: text, rejected: text, prompt: text, margin },
      { requiredKeys: ["chosen", "rejected"] },
    ),
    fc.record({ chosen: turns, rejected: turns, prompt: turns }, { requiredKeys: ["chosen", "rejected"] }),
    fc.record({ chosen: odd, rejected: odd, prompt: odd, margin: odd }, { requiredKeys: [] }),
  );
  let pairs = 0;
  fc.assert(
    fc.property(row, (given) => {
      let made: PreferenceRow;
      try {
        made = rowOf(given);
      } catch (error) {
        expect(error).toBeInstanceOf(UsageError);
        expect((error as Error).message).toContain("f.jsonl:1");
        return;
      }
      const pair = preferencePair(made, plain, 100_000)!;
      for (const ids of [pair.chosen, pair.rejected]) expect(ids.at(-1)).toBe(plain.eosId!);
      pairs += 1;
    }),
    { numRuns: 2000 },
  );
  expect(pairs).toBeGreaterThan(100);
});

describe("pairs", () => {
  const row = rowOf({
    chosen: hh("Hi", "Yo", "Name a colour", "blue"),
    rejected: hh("Hi", "Yo", "Name a colour", "I will not"),
  });

  test.each([
    ["with a template", chatty],
    ["without one", plain],
    ["with thoughts", thinking],
  ])("begin with the ids of the prompt and end with EOS (%s)", (_, tokenizer) => {
    const pair = preferencePair(row, tokenizer, 1000)!;
    const prompt = preferencePrompt(row, tokenizer, 1000)!;
    for (const ids of [pair.chosen, pair.rejected]) {
      expect([...ids.subarray(0, prompt.ids.length)]).toEqual([...prompt.ids]);
      expect(ids.at(-1)).toBe(tokenizer.eosId!);
      expect([...ids].filter((id) => id === tokenizer.eosId).length).toBe(tokenizer === plain ? 1 : 4);
    }
    expect(tokenizer.decode(prompt.ids)).toBe(prompt.text);
    expect(prompt.fields.messages).toEqual([user("Hi"), assistant("Yo"), user("Name a colour")]);
  });

  test("their text", () => {
    expect(pairText(plain, row)).toEqual([
      `${hh("Hi", "Yo", "Name a colour", "blue")}<|im_end|>`,
      `${hh("Hi", "Yo", "Name a colour", "I will not")}<|im_end|>`,
    ]);
    expect(pairText(plain, rowOf({ prompt: "2+2=", chosen: "4", rejected: "5<|im_end|>" }))).toEqual([
      "2+2=4<|im_end|>",
      "2+2=5<|im_end|>",
    ]);
  });

  test("conversations that part early are whole", () => {
    const early = rowOf({ chosen: [user("a"), assistant("b")], rejected: [user("c"), assistant("d")] });
    expect(pairText(chatty, early)).toEqual([
      "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>",
      "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>",
    ]);
  });

  test("longer than allowed: none", () => {
    const { chosen, rejected } = preferencePair(row, plain, 1000)!;
    const longest = Math.max(chosen.length, rejected.length);
    expect(preferencePair(row, plain, longest)).not.toBeNull();
    expect(preferencePair(row, plain, longest - 1)).toBeNull();
    const { ids } = preferencePrompt(row, plain, 1000)!;
    expect(preferencePrompt(row, plain, ids.length)).not.toBeNull();
    expect(preferencePrompt(row, plain, ids.length - 1)).toBeNull();
  });

  test("texts without a common beginning have no prompt", () => {
    expect(() => preferencePrompt(rowOf({ chosen: "a", rejected: "b" }), plain, 10)).toThrow(
      'add a column "prompt"',
    );
  });
});

/** A folder with these files; .gz ones are gzipped. */
function dataset(files: Record<string, readonly object[] | string>): TemporaryFolder {
  const folder = new TemporaryFolder();
  for (const [name, rows] of Object.entries(files)) {
    const text = typeof rows === "string" ? rows : rows.map((row) => `${JSON.stringify(row)}\n`).join("");
    mkdirSync(dirname(folder.file(name)), { recursive: true });
    writeFileSync(folder.file(name), name.endsWith(".gz") ? gzipSync(text) : text);
  }
  return folder;
}
const pairRow = (name: string) => ({
  chosen: hh(`What is ${name}?`, `${name} is good`),
  rejected: hh(`What is ${name}?`, "no idea"),
});
const rows = (prefix: string, count: number) =>
  Array.from({ length: count }, (_, i) => pairRow(`${prefix}${i}`));
const questions = (source: { length: number; at(i: number): PreferenceRow }) =>
  Array.from(
    { length: source.length },
    (_, i) => /What is (.*)\?/.exec((source.at(i).prompt as Turn[])[0]!.content)![1]!,
  );

describe("sources", () => {
  test("the layout of HH: all folders but red-team-attempts, in order", async () => {
    using folder = dataset({
      "helpful-online/train.jsonl.gz": rows("c", 2),
      "harmless-base/train.jsonl.gz": rows("a", 3),
      "harmless-base/test.jsonl.gz": rows("x", 1),
      "helpful-base/train.jsonl.gz": rows("b", 2),
      "red-team-attempts/train.jsonl.gz": [{ transcript: "…" }],
      "README.md": "text",
    });
    expect(questions(await openPreferences(folder.path, "train"))).toEqual([
      "a0",
      "a1",
      "a2",
      "b0",
      "b1",
      "c0",
      "c1",
    ]);
    expect(questions(await openPreferences(folder.path, "test"))).toEqual(["x0"]);
  });

  test("files named by split, in shards or folders; one form of the same rows counts", async () => {
    using folder = dataset({
      "data/train-00001-of-00002.jsonl": rows("b", 1),
      "data/train-00000-of-00002.jsonl": rows("a", 1),
      "data/train-00000-of-00002.jsonl.gz": rows("a", 1),
      "data/validation-00000-of-00001.jsonl": rows("v", 2),
      "training-notes.jsonl": rows("n", 1),
    });
    expect(questions(await openPreferences(folder.path, "train"))).toEqual(["a0", "b0"]);
    expect(questions(await openPreferences(folder.path, "test"))).toEqual(["v0", "v1"]);
    using other = dataset({ "train/0000.jsonl": rows("t", 1), "test/0000.jsonl": rows("e", 1) });
    expect(questions(await openPreferences(other.path, "test"))).toEqual(["e0"]);
  });

  test("of one file every twentieth row is the test split", async () => {
    using folder = dataset({ "mine.jsonl": rows("q", 45) });
    const train = questions(await openPreferences(folder.file("mine.jsonl"), "train"));
    const held = questions(await openPreferences(folder.file("mine.jsonl"), "test"));
    expect(held).toEqual(["q19", "q39"]);
    expect(train).toEqual(rows("q", 45).flatMap((_, i) => (i % 20 === 19 ? [] : [`q${i}`])));
    using small = dataset({ "mine.jsonl": rows("q", 3) });
    await expect(openPreferences(small.file("mine.jsonl"), "test")).rejects.toThrow(
      /3 rows leave none for the test/,
    );
  });

  test("parquet", async () => {
    const train = await openPreferences(join(import.meta.dir, "../io/parquet/messages.parquet"), "train");
    expect(train.length).toBe(48);
    expect(train.at(19)).toEqual({
      index: 19,
      where: expect.stringContaining("messages.parquet, row 21"),
      prompt: [user("Question 20?")],
      chosen: [assistant("Good answer 20, näme 漢字.")],
      rejected: [assistant("Bad 20")],
      margin: 5,
    });
  });

  test.each<[string, Record<string, readonly object[] | string>, RegExp]>([
    ["no such folder", {}, /no such dataset/],
    ["no split", { "x/other.jsonl": rows("a", 1) }, /no train files/],
    ["no rows", { "x/train.jsonl": "\n" }, /no rows/],
    ["bad JSON", { "x/train.jsonl": '{"chosen": 1\n' }, /not JSON.*train\.jsonl, line 1/],
    [
      "a broken row far in",
      { "x/train.jsonl": [...rows("a", 900), { chosen: "x" }] },
      /no column "rejected".*train\.jsonl:901/,
    ],
    [
      "an empty answer",
      { "x/train.jsonl": [...rows("a", 9), { chosen: hh("Q", ""), rejected: hh("Q", "A") }] },
      /chosen has an empty answer.*train\.jsonl:10/,
    ],
    ["broken gzip", { "x/train.jsonl.gz": rows("a", 3) }, /not a whole gzip/],
  ])("%s: one line, before anything begins", async (name, files, message) => {
    using folder = dataset(files);
    if (name === "broken gzip") {
      const path = folder.file("x/train.jsonl.gz");
      writeFileSync(path, readFileSync(path).subarray(0, -9));
    }
    const error = await openPreferences(folder.file("x"), "train").then(
      () => undefined,
      (thrown: Error) => thrown,
    );
    expect(error).toBeInstanceOf(UsageError);
    expect(error!.message).toMatch(message);
    expect(error!.message).not.toContain("\n");
  });

  test("HH's own rows without a pair are passed over and counted; broken ones are errors there too", async () => {
    const odd = { chosen: hh("Q", ""), rejected: hh("Q", "A") };
    const same = { chosen: hh("Q", "A"), rejected: hh("Q", "A") };
    using folder = dataset({ "helpful-base/train.jsonl.gz": [...rows("a", 6), odd, odd, same] });
    const sampler = pairSampler(await openPreferences(folder.path, "train"), plain, 1000, 1);
    sampler.draw(0, 6);
    const { position } = sampler.draw(0, 12);
    expect(position).toBeGreaterThan(12);
    expect(sampler.skipped.unusable! % 2).toBe(0);
    expect(sampler.skipped.identical).toBe(sampler.skipped.unusable! / 2);
    using broken = dataset({ "helpful-base/train.jsonl.gz": [...rows("a", 6), { chosen: "x" }] });
    await expect(openPreferences(broken.path, "train")).rejects.toThrow(/no column "rejected"/);
  });
});

describe("drawing", () => {
  const sampler = (length: number, refuse: (i: number) => boolean, seed = 7) =>
    new EpochSampler<{ i: number }>(length, seed, (i) => (refuse(i) ? "too_long" : { i }));
  const items = ({ items: drawn }: { items: readonly { i: number }[] }) => drawn.map(({ i }) => i);

  test("every pass has every item once, in another order", () => {
    const one = sampler(10, () => false);
    const { items: drawn, position } = one.draw(0, 20);
    expect(position).toBe(20);
    const [first, second] = [drawn.slice(0, 10), drawn.slice(10)].map((pass) => pass.map(({ i }) => i));
    expect([...first!].sort((a, b) => a - b)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect([...second!].sort((a, b) => a - b)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect(first).not.toEqual(second!);
  });

  test("a position is all that a resumed run needs", () => {
    fc.assert(
      fc.property(
        fc.nat(40),
        fc.integer({ min: 1, max: 9 }),
        fc.integer({ min: 1, max: 30 }),
        (cut, size, length) => {
          const refuse = (i: number) => i % 3 === 1;
          let position = 0;
          const unbroken: number[] = [];
          const straight = sampler(length, refuse);
          for (let n = 0; n <= cut; n++) {
            const drawn = straight.draw(position, size);
            position = drawn.position;
            unbroken.push(...items(drawn));
          }
          const next = items(straight.draw(position, size));
          expect(items(sampler(length, refuse).draw(position, size))).toEqual(next);
          expect(unbroken.some((i) => refuse(i))).toBe(false);
        },
      ),
      { numRuns: 30 },
    );
  });

  test("with replacement: a function of seed and step alone", () => {
    const one = sampler(1000, (i) => i % 2 === 0);
    const draw = (step: number, seed = 7) =>
      sampler(1000, (i) => i % 2 === 0, seed)
        .withReplacement(step, 50)
        .map(({ i }) => i);
    expect(one.withReplacement(3, 50).map(({ i }) => i)).toEqual(draw(3));
    expect(draw(3)).not.toEqual(draw(4));
    expect(draw(3)).not.toEqual(draw(3, 8));
    expect(draw(3).every((i) => i % 2 === 1)).toBe(true);
    expect(sampler(2, () => false).withReplacement(0, 9).length).toBe(9);
  });

  test("nothing that fits is an error, not an endless search", () => {
    const none = sampler(5, () => true);
    expect(() => none.draw(0, 1)).toThrow(/no row can be used \(\d+ too_long\)/);
    expect(() => none.withReplacement(0, 1)).toThrow(UsageError);
  });

  test("rows are read when they are drawn", async () => {
    using folder = dataset({ "train.jsonl": rows("a", 500) });
    const source = await openPreferences(folder.path, "train");
    const read: number[] = [];
    const watched = {
      ...source,
      length: source.length,
      skipsUnusable: false,
      at: (i: number) => {
        read.push(i);
        return source.at(i);
      },
    };
    pairSampler(watched, plain, 1000, 1).draw(0, 8);
    expect(read.length).toBe(8);
  });
});

describe("prompts of both splits", () => {
  const sizes = { train: 15, test: 85, evaluation: 10 };
  const open = async (train: number, test: number) => {
    using folder = dataset({
      "train.jsonl": rows("a", train),
      "test.jsonl": [...rows("x", test), ...rows("x", 3)],
    });
    return [await openPreferences(folder.path, "train"), await openPreferences(folder.path, "test")] as const;
  };

  test("sizes, indices, and evaluation apart from training, by text", async () => {
    const [train, test] = await open(100, 97);
    const mix = mixedPrompts(train, test, plain, 1000, 5, sizes);
    expect(mix.training.length).toBe(100);
    expect(mix.evaluation.length).toBe(10);
    const pass = mix.training.draw(0, 400).items;
    const held = new Set(mix.evaluation.map(({ text }) => text));
    expect(held.size).toBe(10);
    expect(pass.some(({ text }) => held.has(text))).toBe(false);
    const distinct = new Map(pass.map((prompt) => [prompt.index, prompt.text]));
    expect([...distinct.keys()].filter((index) => index < 100).length).toBe(15);
    expect(distinct.size).toBeGreaterThan(90);
    expect(mix.evaluation.every(({ index }) => index >= 100 && index < 200)).toBe(true);
    for (const { index, text } of [...pass, ...mix.evaluation]) {
      const row = index < 100 ? train.at(index) : test.at(index - 100);
      expect(preferencePrompt(row, plain, 1000)!.text).toBe(text);
    }
  });

  test("the same seed, the same mix", async () => {
    const [train, test] = await open(50, 60);
    const texts = (seed: number) => {
      const mix = mixedPrompts(train, test, plain, 1000, seed, sizes);
      return [...mix.training.draw(0, 30).items, ...mix.evaluation].map(({ text }) => text);
    };
    expect(texts(1)).toEqual(texts(1));
    expect(texts(1)).not.toEqual(texts(2));
  });

  test("small splits give what they have", async () => {
    const [train, test] = await open(4, 5);
    const mix = mixedPrompts(train, test, plain, 1000, 1, { train: 1500, test: 8500, evaluation: 128 });
    // Half of the 8 rows of test; some of them have the same text.
    expect(mix.training.length).toBe(8);
    expect(new Set(mix.evaluation.map(({ text }) => text)).size).toBe(mix.evaluation.length);
    expect(mix.evaluation.length).toBeWithin(2, 5);
    expect(() => mixedPrompts(train, test, plain, 1000, 1, { train: 0, test: 0, evaluation: 2 })).toThrow(
      "no prompts to train on",
    );
  });
});
