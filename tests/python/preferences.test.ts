/** Preference rows against TRL. Runs where RLV_PYTHON names a Python that has it. */
import { describe, expect, test } from "bun:test";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { preferenceRow } from "../../src/data/preference-row.ts";
import { preferencePair } from "../../src/data/preferences.ts";
import { Tokenizer } from "../../src/io/tokenizer.ts";
import { TemporaryFolder } from "../io/temporary.ts";

const python = process.env.RLV_PYTHON;
const TEXT = join(import.meta.dir, "../goldens/text");

const user = (content: string) => ({ role: "user", content });
const assistant = (content: string) => ({ role: "assistant", content });
const turns = [user("Hi there!"), assistant("Hello."), user("What is 2 + 2?\n\nSay it — in words.")];
/** A prompt ends where a word does: we tokenize it by itself, as a policy is given it, and TRL together with the answer. */
const ROWS: readonly object[] = [
  { prompt: turns, chosen: [assistant("Four.")], rejected: [assistant("Fünf, 漢字?")] },
  { chosen: [...turns, assistant("Four.")], rejected: [...turns, assistant("Five")] },
  { chosen: [user("a"), assistant("b")], rejected: [user("c"), assistant("d\n\nd")] },
  {
    chosen: [{ role: "system", content: "Be brief." }, user("a"), assistant("b")],
    rejected: [user("a"), assistant("b c")],
  },
  { chosen: [user("a"), assistant("b"), user("c"), assistant("d")], rejected: [user("a"), assistant("x")] },
  { prompt: "The sky is", chosen: " blue.", rejected: " green." },
  { prompt: "The sky is", chosen: " blue.<|im_end|>", rejected: " green." },
  { chosen: "One two three", rejected: "One two four" },
];

describe.skipIf(!python)(`TRL${python ? "" : " (skipped: RLV_PYTHON names no Python)"}`, () => {
  test("the same text and ids, up to what a template writes behind EOS", async () => {
    using folder = new TemporaryFolder();
    const own = JSON.parse(readFileSync(join(TEXT, "chat_own/case.json"), "utf8"));
    cpSync(join(TEXT, "bytelevel_bpe_qwen/tokenizer"), folder.path, { recursive: true });
    writeFileSync(folder.file("chat_template.jinja"), own.templates.own_chatml);
    writeFileSync(folder.file("rows.jsonl"), ROWS.map((row) => `${JSON.stringify(row)}\n`).join(""));
    const child = Bun.spawn(
      [python!, join(import.meta.dir, "check_preferences.py"), folder.path, folder.file("rows.jsonl")],
      { stderr: "inherit" },
    );
    const theirs = JSON.parse(await new Response(child.stdout).text()) as {
      texts: string[];
      ids: number[][];
    }[];
    expect(await child.exited).toBe(0);
    const tokenizer = Tokenizer.load(folder.path);
    const newline = [...tokenizer.encode("\n")];
    ROWS.forEach((row, i) => {
      const pair = preferencePair(preferenceRow(row as Record<string, unknown>, "rows", i), tokenizer, 1000)!;
      const { texts, ids } = theirs[i]!;
      const ends = texts.map((text) => (text.endsWith("\n") ? newline : []));
      const mine = [pair.chosen, pair.rejected];
      expect(mine.map((each, k) => [...each, ...ends[k]!])).toEqual(ids);
      expect(mine.map((each) => tokenizer.decode(each))).toEqual(texts.map((text) => text.trimEnd()));
    });
  }, 300_000);
});
