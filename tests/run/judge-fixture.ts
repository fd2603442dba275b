/** A random judge with a chat template, and the plainest way to ask it: one whole sequence after another. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { writeSmallTokenizer } from "../../scripts/small-tokenizer.ts";
import type { Tokenizer } from "../../src/io/tokenizer.ts";
import * as F from "../../src/nn/functional.ts";
import type { Decoder } from "../../src/nn/transformer.ts";
import { NONE } from "../../src/ops/define.ts";
import { parseScore } from "../../src/reward/judge-answer.ts";
import { parseRubric, type Rubric } from "../../src/reward/rubric.ts";
import {
  type Conversation,
  Judge,
  type Judgement,
  type JudgeOptions,
  readingOf,
} from "../../src/run/judge.ts";
import { type JudgeFrame, judgeFrame } from "../../src/run/judge-prompt.ts";
import { Graph, type StepMemory } from "../../src/tape/tape.ts";
import { Tiny } from "./tiny.ts";

export const CHAT =
  "{% for m in messages %}<|end|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}" +
  "{% if add_generation_prompt %}assistant\n{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}";

export const RUBRIC = `
criteria:
  - name: depth
    title: depth of thought
    description: does it think
    weight: 2
    anchors: {1: not, 2: little, 3: some, 4: much, 5: all}
  - name: care
    description: does it care
    anchors: {1: not, 2: little, 3: some, 4: much, 5: all}
  - name: wit
    description: is it fun
    anchors: {1: no, 2: hardly, 3: so so, 4: yes, 5: very}
template:
  preamble: "Judge from {min} to {max}.\\n{criteria}\\n"
  criterion: "- {title}: {description} ({anchors})"
  conversation: "Q: {prompt}\\nA: {response}\\n"
  question: "Scores?"
  answer: "{title}: "
`;

export class TinyJudge implements Disposable {
  readonly tiny: Tiny;
  readonly folder = mkdtempSync(join(tmpdir(), "rlv-judge-"));
  readonly tokenizer: Tokenizer;
  readonly rubric: Rubric = parseRubric(RUBRIC, "rubric");
  held = 0;
  readonly #judges: Judge[] = [];
  constructor(options: ConstructorParameters<typeof Tiny>[1] = {}, threads = 2) {
    this.tiny = new Tiny("qwen3", { maxPositions: 512, ...options }, threads);
    this.tokenizer = writeSmallTokenizer(this.folder, ["Judge", "assistant", "user"], 512, {
      chat_template: CHAT,
    });
  }

  judge(options: Partial<JudgeOptions> = {}, frozen = true): Judge {
    const { model, memory } = this.tiny;
    const judge = new Judge(
      memory,
      {
        ...{ name: "tiny", frozen, shape: model },
        hold: (body) => {
          this.held++;
          return body(model);
        },
      },
      this.rubric,
      judgeFrame(this.rubric, this.tokenizer),
      { maxNewTokens: 4, maxPromptTokens: 60, maxResponseTokens: 60, budget: 400, ...options },
    );
    this.#judges.push(judge);
    return judge;
  }

  [Symbol.dispose](): void {
    for (const judge of this.#judges) judge.dispose();
    this.tiny[Symbol.dispose]();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** The same judgements by whole sequences, each encoded anew for every token. */
export function plainJudgements(
  memory: StepMemory,
  model: Decoder,
  tokenizer: Tokenizer,
  rubric: Rubric,
  { prompt, response }: Conversation,
  maxNewTokens: number,
): Record<string, Judgement> {
  const frame: JudgeFrame = judgeFrame(rubric, tokenizer);
  return Object.fromEntries(
    rubric.criteria.map(({ name }, c) => {
      const ids = [
        ...[...frame.preamble, ...frame.promptIds(prompt), ...frame.responseIds(response)],
        ...[...frame.shared, ...frame.own[c]!],
      ];
      const said: number[] = [];
      let reading: ReturnType<typeof readingOf> | null = null;
      for (;;) {
        const { logits, scores } = lastRow(memory, model, [...ids, ...said], frame.values.flat());
        reading ??= readingOf(
          frame.values.map((list) => list.map((id) => scores.get(id)!)),
          rubric.scale.min,
        );
        const next = logits.reduce((best, z, id) => (z > logits[best]! ? id : best), 0);
        if (tokenizer.eosIds.includes(next)) break;
        said.push(next);
        if (
          said.length === maxNewTokens ||
          /\S.*\n/s.test(tokenizer.decode(said, { skipSpecialTokens: true }))
        )
          break;
      }
      const text = tokenizer.decode(said, { skipSpecialTokens: true });
      return [name, { text: parseScore(text, rubric.scale), said: text, ...reading }];
    }),
  );
}

/** Logits behind a whole sequence, and log-probabilities of given tokens there by the head's own operation. */
function lastRow(memory: StepMemory, model: Decoder, ids: readonly number[], asked: readonly number[]) {
  const g = new Graph(memory, false);
  const n = ids.length;
  const upload = (values: readonly number[]) => g.upload(Uint32Array.from(values), "plain");
  const segments = upload([0, n, NONE, 0, NONE, 0, 0, 0]);
  const hidden = model.forward(g, {
    ids: upload(ids),
    positions: upload(ids.map((_, i) => i)),
    segments: { segments, count: 1, pairs: (n * (n + 1)) / 2, pages: null },
    cached: null,
  });
  const logits = model.logits(g, F.gather(g, hidden, upload([n - 1])));
  const { logprob } = model.score(g, hidden, upload(asked.map(() => n - 1)), upload(asked), 1);
  memory.finish();
  const scores = new Map(asked.map((id, i) => [id, logprob.float32()[i]!]));
  return { logits: logits.float32().slice(), scores };
}
