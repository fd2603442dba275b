/** generate and logprob as programs: the forms of a line, and what they refuse. */
import { describe, expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { TemporaryFolder } from "../io/temporary.ts";
import { rlv } from "../run/program.ts";

const QUESTION = "What is 2 + 3? Answer with an integer.";
const MODEL = ["--model", "builtin:arithmetic", "--device", "cpu", "--threads", "2"];
type Row = Record<string, unknown>;
interface Scored {
  readonly logprobs: readonly number[];
}

class Job extends TemporaryFolder {
  async run(command: string, lines: readonly (Row | string)[], ...flags: readonly string[]) {
    writeFileSync(
      this.file("in.jsonl"),
      lines.map((line) => `${typeof line === "string" ? line : JSON.stringify(line)}\n`).join(""),
    );
    const files = ["--in", this.file("in.jsonl"), "--out", this.file("out.jsonl")];
    const ended = await rlv([command, ...MODEL, ...files, ...flags, "--json"]);
    const there = existsSync(this.file("out.jsonl"));
    const rows = there
      ? readFileSync(this.file("out.jsonl"), "utf8")
          .trimEnd()
          .split("\n")
          .map((line) => JSON.parse(line) as Row)
      : [];
    return { ...ended, rows, summary: ended.out === "" ? null : (JSON.parse(ended.out) as Row) };
  }
}

describe("generate", () => {
  test("text, conversations and ids; what else a line has stays; many completions, stop texts", async () => {
    using job = new Job();
    const { rows, summary, code } = await job.run(
      "generate",
      [
        { id: "größe 🙂", prompt: QUESTION },
        { messages: [{ role: "user", content: QUESTION }] },
        { prompt_ids: [5, 6, 7] },
        { prompt: "日本語 🙂 \ud800?" },
      ],
      ...["--n", "40", "--max_new_tokens", "6", "--stop", "5"],
    );
    expect(code).toBe(0);
    expect(summary).toMatchObject({ prompts: 4, completions: 160 });
    expect(rows[0]!.id).toBe("größe 🙂");
    const all = rows.flatMap((row) => row.completions as { text: string; finish: string; ids: number[] }[]);
    expect(all.length).toBe(160);
    expect(all.some(({ finish }) => finish === "stop")).toBe(true);
    expect(all.every(({ text }) => !text.includes("5"))).toBe(true);
    expect(all.every(({ ids }) => ids.length >= 1 && ids.length <= 6)).toBe(true);
  });

  test("a file without lines, a prompt without tokens or too long, a broken line: code 2, the line, no output", async () => {
    using job = new Job();
    const refused: [lines: (Row | string)[], message: RegExp][] = [
      [[], /empty dataset.*in\.jsonl/],
      [[{ prompt: QUESTION }, { prompt: "" }], /no tokens: .*in\.jsonl:2/],
      [[{ prompt: "word ".repeat(200) }], /exceeds the context of 128: .*in\.jsonl:1/],
      [[{ prompt: QUESTION }, "{"], /not JSON.*line 2/],
      [[{ prompt: 7 }], /in\.jsonl:1/],
      [[{ prompt: QUESTION, messages: [] }], /exactly one of prompt, messages, prompt_ids/],
      [[{ prompt_ids: [1, 99999] }], /99999 is outside the vocabulary/],
      [[{ prompt_ids: [1.5] }], /non-negative integers/],
      [[{ messages: [{ role: "user" }] }], /role and a content/],
    ];
    for (const [lines, message] of refused) {
      const { code, err, rows } = await job.run("generate", lines, "--max_new_tokens", "8");
      expect([err, code]).toEqual([expect.stringMatching(message), 2]);
      expect(rows).toEqual([]);
    }
    const { code, err } = await job.run("generate", [{ prompt: QUESTION }], "--max_new_tokens", "128");
    expect([err, code]).toEqual([expect.stringMatching(/plus 128 new ones exceeds the context of 128/), 2]);
  });
});

describe("logprob", () => {
  test("every form of a line: the numbers of generation, whichever way they are asked for", async () => {
    using job = new Job();
    const made = await job.run("generate", [{ prompt: QUESTION }], "--n", "5", "--max_new_tokens", "6");
    const completions = made.rows[0]!.completions as (Scored & { ids: number[]; text: string })[];
    const again = await job.run("logprob", made.rows);
    expect((again.rows[0]!.completions as Scored[]).map(({ logprobs }) => logprobs)).toEqual(
      completions.map(({ logprobs }) => logprobs),
    );
    const { rows, summary } = await job.run("logprob", [
      { prompt: QUESTION, completion: "5", keep: [1] },
      { messages: [{ role: "user", content: QUESTION }], completions: [{ text: "5" }, { ids: [53, 351] }] },
      ...completions.map(({ ids }) => ({ prompt: QUESTION, completion_ids: ids })),
      { prompt_ids: [5], completion: "" },
    ]);
    expect(rows[0]).toMatchObject({ keep: [1], completion: "5", logprobs: [expect.any(Number)] });
    expect(rows[1]!.completions).toMatchObject([
      { text: "5", logprobs: [expect.any(Number)] },
      { ids: [53, 351] },
    ]);
    expect(rows.slice(2, 7).map(({ logprobs }) => logprobs)).toEqual(
      completions.map(({ logprobs }) => logprobs),
    );
    expect(rows[7]!.logprobs).toEqual([]);
    expect(summary).toMatchObject({ prompts: 8, completions: 9 });
  });

  test("what it refuses: code 2, the line, no output", async () => {
    using job = new Job();
    const refused: [Row, RegExp][] = [
      [{ prompt: QUESTION }, /exactly one of completion/],
      [{ prompt: QUESTION, completion: "5", completions: [{ text: "5" }] }, /exactly one of completion/],
      [{ prompt: QUESTION, completions: [] }, /something in it/],
      [{ prompt: QUESTION, completions: [{ txt: "5" }] }, /completions is none of/],
      [{ prompt: "", completion: "5" }, /no tokens/],
      [{ prompt: QUESTION, completion: "word ".repeat(200) }, /exceed the context of 128/],
      [{ prompt: QUESTION, completion_ids: [99999] }, /outside the vocabulary/],
    ];
    for (const [row, message] of refused) {
      const { code, err, rows } = await job.run("logprob", [{ prompt: QUESTION, completion: "5" }, row]);
      expect([err, code]).toEqual([expect.stringMatching(message), 2]);
      expect(err).toContain("in.jsonl:2");
      expect(rows).toEqual([]);
    }
  });
});
