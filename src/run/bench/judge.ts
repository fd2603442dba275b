/** Judging responses by a rubric, beside encoding their prompt and the responses once. */
import type { BenchOptions } from "../../config/schema-inference.ts";
import { sum } from "../../core/lists.ts";
import { packSequences } from "../../rollout/pack.ts";
import { uploadTokens } from "../../rollout/score.ts";
import { Graph, StepMemory } from "../../tape/tape.ts";
import { Judge } from "../judge.ts";
import type { JudgeFrame } from "../judge-prompt.ts";
import { Bench, type Context, median, type Result, seconds } from "./context.ts";
import { promptIds } from "./shapes.ts";

export async function judge(options: BenchOptions<"judge">, context: Context): Promise<Result> {
  using bench = new Bench("judge", options, context.talk);
  const { shape, responses, criteria, prompt: P, completion: C, answer, frozen } = options;
  const limits = {
    maxNewTokens: answer,
    maxPromptTokens: P,
    maxResponseTokens: C,
    budget: P + responses * C,
  };
  const behind = options.shared + options.own + answer;
  const model = bench.model(shape, options.preamble + P + C + behind, { trainable: false });
  const vocab = model.config.vocabSize;
  const group = {
    prompt: promptIds(0, P, vocab),
    completions: Array.from({ length: responses }, (_, i) => promptIds(i + 1, C, vocab)),
  };
  const names = Array.from({ length: criteria }, (_, i) => `criterion_${i}`);
  const frame: JudgeFrame = {
    preamble: promptIds(100, options.preamble, vocab),
    shared: promptIds(101, options.shared, vocab),
    own: names.map((_, i) => promptIds(102 + i, options.own, vocab)),
    values: [16, 17, 18, 19, 20].map((id) => [id]),
    promptIds: () => group.prompt,
    responseIds: (index) => group.completions[Number(index)]!,
    eosIds: [],
    decode: () => "",
  };
  const rubric = {
    scale: { min: 1, max: 5 },
    criteria: names.map((name) => ({ name, title: name, description: "", weight: 1, anchors: [] })),
  };
  const memory = new StepMemory(bench.device);
  const judging = new Judge(
    memory,
    { name: shape, frozen, shape: model, hold: (body) => body(model) },
    rubric,
    frame,
    limits,
  );
  const asked = group.completions.map((_, i) => ({ prompt: "", response: String(i) }));
  const row = packSequences([group]);
  const encode = () => {
    const g = new Graph(memory, false);
    const input = uploadTokens(g, row);
    g.release(model.forward(g, input));
    input.release();
    memory.finish();
  };
  const times = { encode: [] as number[], judge: [] as number[] };
  // In turns: other work on the machine slows both alike.
  await bench.repeat(async (i) => {
    let begin = performance.now();
    encode();
    if (i > 0) times.encode.push(seconds(begin));
    begin = performance.now();
    await judging.judge(asked);
    if (i > 0) times.judge.push(seconds(begin));
  });
  const runs = options.steps + 1;
  const { counts } = judging;
  const per = {
    prompt: counts.prompts / runs,
    responses: counts.responses / runs,
    questions: counts.questions / runs,
    decoded: counts.decoded / runs,
    preamble: frozen ? 0 : counts.preamble / runs,
  };
  const judged = sum(Object.values(per));
  const encoded = row.ids.length;
  const costs = bench.costs(shape);
  const length = options.preamble + P + C + options.shared + options.own;
  const pairs = judged * options.preamble + row.pairs + responses * (behind + criteria * behind) * length;
  return bench.result(
    shape,
    {
      ...{ responses, criteria, prompt: P, completion: C, preamble: options.preamble, answer, frozen },
      ...{ encoded_tokens: encoded, judged_tokens: judged, head_rows: counts.headRows / runs },
      tokens: per,
      token_ratio: judged / encoded,
      encode_s: median(times.encode),
      judge_s: median(times.judge),
      time_ratio: median(times.judge.map((time, i) => time / times.encode[i]!)),
    },
    [
      {
        name: "encode",
        seconds: times.encode,
        work: [costs.prefill({ tokens: encoded, pairs: row.pairs, scored: 0 })],
      },
      {
        name: "judge",
        seconds: times.judge,
        work: [costs.prefill({ tokens: judged, pairs, scored: counts.headRows / runs })],
      },
    ],
  );
}
