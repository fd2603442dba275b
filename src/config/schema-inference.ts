import * as z from "zod";
import { field, fraction, int, nonNegative, orNone, positive, required, text } from "./fields.ts";
import { deviceShape, optimizerShape, samplingShape, seedShape } from "./schema-common.ts";
import { contextShape, pageShape } from "./schema-serve.ts";

/** Options of the commands that run a model without training it. Their flags come from these schemas. */

const modelFlag = () => required(text(), "model folder, checkpoint, or builtin:arithmetic");
const adapterFlag = () =>
  field(orNone(text()), null, "PEFT adapter folder of that model, or a folder of retain and forget adapters");
const scalesFlag = (aliases: readonly string[] = []) =>
  field(
    orNone(text()),
    null,
    "RETAIN,FORGET: what retain and forget adapters are multiplied with, such as 1,0; none = 1,1 as in training",
    { aliases },
  );
const maxNewTokens = (most: number) =>
  field(int(1), most, "longest completion in tokens", { aliases: ["max_completion_length"] });

/** At temperature 0 the likeliest token is taken. */
const decodingShape = {
  ...samplingShape,
  temperature: field(nonNegative(), 1, "divides the logits before sampling; 0 = the likeliest token"),
};

export const generateSchema = z.strictObject({
  model: modelFlag(),
  adapter: adapterFlag(),
  adapter_scales: scalesFlag(),
  in: required(text(), 'JSONL with {"prompt"}, {"messages"} or {"prompt_ids"} a line'),
  out: required(text(), "JSONL to write: each line with its completions"),
  n: field(int(1), 1, "completions a prompt"),
  max_new_tokens: maxNewTokens(512),
  stop: field(orNone(text()), null, "end a completion before this text"),
  ...decodingShape,
  ...seedShape,
  ...deviceShape,
});
export type GenerateOptions = Readonly<z.output<typeof generateSchema>>;

export const logprobSchema = z.strictObject({
  model: modelFlag(),
  adapter: adapterFlag(),
  adapter_scales: scalesFlag(),
  in: required(
    text(),
    'JSONL with {"prompt"} or {"prompt_ids"}, and {"completion"}, {"completion_ids"} or {"completions"} a line',
  ),
  out: required(text(), "JSONL to write: each line with its logprobs (natural logarithm)"),
  ...seedShape,
  ...deviceShape,
});
export type LogprobOptions = Readonly<z.output<typeof logprobSchema>>;

/** Some flags are for reward models, some for policies. */
export const quantizeSchema = z.strictObject({
  model: required(
    text(),
    "reward model or policy: a folder, a checkpoint, a name on the hub, or builtin:arithmetic",
    {
      aliases: ["checkpoint"],
    },
  ),
  quant_type: field(
    z.enum(["int8", "int4"]),
    "int8",
    "int8 (a scale a row) or int4 (NF4, double quantization)",
  ),
  output_dir: field(
    orNone(text()),
    null,
    "folder of the quantized model and evaluation_results.json; none = MODEL/quantized_TYPE of a reward model, MODEL_quantized_TYPE of a policy, both in ./quantized_models if the model is no folder here",
  ),
  skip_save: field(z.boolean(), false, "evaluate alone and write nothing"),
  dataset: field(
    text(),
    "Anthropic/hh-rlhf",
    "preference data, a file, a folder or a name on the hub: its test pairs or their prompts; for a policy also JSONL of prompts",
  ),
  eval_batch_size: field(int(1), 4, "reward model: pairs of a batch"),
  eval_num_batches: field(int(1), 500, "reward model: batches, drawn with replacement"),
  max_length: field(int(1), 2048, "reward model: longer answers are passed over"),
  num_prompts: field(int(1), 100, "policy: prompts, one completion each by the original model"),
  max_new_tokens: field(int(1), 512, "policy: longest completion in tokens", {
    aliases: ["max_completion_length"],
  }),
  temperature: field(positive(), 1, "policy: divides the logits before sampling and in the KL divergence"),
  prompt_max_length: field(int(1), 1536, "policy: longer prompts are passed over"),
  ...seedShape,
  ...deviceShape,
});
export type QuantizeOptions = Readonly<z.output<typeof quantizeSchema>>;

export const scoreSchema = z.strictObject({
  model: required(text(), "reward model folder or checkpoint"),
  adapter: field(orNone(text()), null, "PEFT adapter folder of that model; none = the model as it is"),
  in: required(text(), 'JSONL with {"prompt", "completion"}, {"messages"} or {"ids"} a line'),
  out: required(text(), "JSONL to write: each line with its reward"),
  end: field(
    z.boolean(),
    true,
    "end texts with EOS where they lack it, as the reward model was trained; ids are scored as they are",
  ),
  max_length: field(int(1), 2048, "longest sequence in tokens; a longer one is an error, never cut silently"),
  quant_type: field(
    z.enum(["none", "int8", "int4"]),
    "none",
    "quantize the weights as they are loaded: int8 (a scale a row) or int4 (NF4)",
  ),
  ...seedShape,
  ...deviceShape,
});
export type ScoreOptions = Readonly<z.output<typeof scoreSchema>>;

export const chatSchema = z.strictObject({
  model: field(
    text(),
    "builtin:arithmetic",
    "model folder, checkpoint, name on the hub, or builtin:arithmetic; several, separated by commas, side by side",
  ),
  adapter: field(
    orNone(text()),
    null,
    "PEFT adapter folder of that model; several, separated by commas, side by side",
  ),
  adapter_scales: scalesFlag(),
  system: field(orNone(text()), null, "system message"),
  thinking: field(
    z.enum(["auto", "on", "off"]),
    "auto",
    "for models that may think before they answer (enable_thinking of Qwen3's template); auto = as the model is made",
  ),
  max_new_tokens: maxNewTokens(512),
  ...contextShape,
  ...decodingShape,
  save: field(
    orNone(text()),
    null,
    "write the conversation to this new file after every reply: JSONL of messages, or text if it ends with .md",
  ),
  history: field(z.boolean(), true, "keep messages for the arrow keys of later chats, in the state folder"),
  web: field(z.boolean(), false, "chat on a page in the browser, which rlv serve has too"),
  autoload: field(
    z.boolean(),
    false,
    "with --web: open the models with the page, not with the first message",
  ),
  ...pageShape,
  ...seedShape,
  ...deviceShape,
});
export type ChatOptions = Readonly<z.output<typeof chatSchema>>;

export const mergeSchema = z.strictObject({
  model: modelFlag(),
  adapter: field(
    orNone(text()),
    null,
    "PEFT adapter folder, or one of retain and forget adapters; none: the model is one itself and names its base",
  ),
  adapter_scales: scalesFlag(["scales"]),
  split: field(
    z.boolean(),
    false,
    "write retain and forget adapters as two PEFT adapters, OUT/retain and OUT/forget, and no model",
  ),
  out: required(text(), "folder to write: a model in Hugging Face's format"),
  dtype: field(
    orNone(z.enum(["float32", "bfloat16"])),
    null,
    "type of the written weights; none = as the model's are stored, float16 as float32. Sums are float64",
  ),
});
export type MergeOptions = Readonly<z.output<typeof mergeSchema>>;

const shapeFlag = field(
  z.enum(["stories", "qwen3-0.6b"]),
  "stories",
  "model shape: SimpleStories-1.25M or Qwen3-0.6B, random weights made in memory",
);
const stepsFlag = field(int(1), 5, "timed repetitions after one warm-up; the median counts");
const benchShape = { ...deviceShape, ...seedShape };
const checkpointingFlag = field(z.boolean(), false, "keep block inputs only");
const microBatchFlag = (tokens: number) =>
  field(int(1), tokens, "most packed tokens of one forward and backward pass; bounds memory");
const betaFlag = field(nonNegative(), 0.02, "weight of the KL term; 0 = no reference");

/** Token counts of a GRPO step. */
const grpoShape = {
  prompt: field(int(1), 24, "tokens of a prompt"),
  completion: field(int(1), 128, "tokens of a completion; each runs to this length"),
  group: field(int(1), 16, "completions a prompt"),
  completions: field(int(1), 32, "completions a step"),
  beta: betaFlag,
  micro_batch_tokens: microBatchFlag(2048),
};

export const benchSchemas = {
  grpo: z.strictObject({
    shape: shapeFlag,
    ...grpoShape,
    optimizer_dtype: optimizerShape.optimizer_dtype,
    gradient_dtype: optimizerShape.gradient_dtype,
    reference_offload: field(z.boolean(), false, "read the reference's weights at every step"),
    lora_r: field(int(0), 0, "rank of adapters on every linear map, trained alone; 0 = train all parameters"),
    forget_lora_r: field(
      int(0),
      0,
      "rank of forget adapters; lora_r is that of the retain adapters then, and the step is routed. 0 = none",
    ),
    flagged: field(fraction(), 0.5, "share of completions that are flagged, where there are forget adapters"),
    share_prefix: field(z.boolean(), true, "encode a prompt once for its group"),
    checkpointing: checkpointingFlag,
    steps: stepsFlag,
    ...benchShape,
  }),
  decode: z.strictObject({
    shape: shapeFlag,
    batch: field(int(1), 32, "sequences decoded together"),
    prompt: field(int(1), 64, "tokens in the cache before the first step"),
    tokens: field(int(1), 64, "tokens decoded a sequence"),
    quant: field(
      z.enum(["none", "int8", "int4"]),
      "none",
      "weights as int8, or as int4 (nf4); embedding and head too",
    ),
    steps: stepsFlag,
    ...benchShape,
  }),
  prefill: z.strictObject({
    shape: shapeFlag,
    tokens: field(int(1), 2048, "prompt tokens, in one sequence as far as the context reaches"),
    steps: stepsFlag,
    ...benchShape,
  }),
  logprob: z.strictObject({
    shape: shapeFlag,
    prompt: field(int(1), 512, "tokens of the prompt"),
    continuations: field(int(1), 64, "continuations of the prompt"),
    continuation: field(int(1), 16, "tokens of a continuation"),
    separate_steps: field(int(1), 1, "timed repetitions of the same as a line for every continuation"),
    steps: stepsFlag,
    ...benchShape,
  }),
  train: z.strictObject({
    shape: shapeFlag,
    batch: field(int(1), 8, "sequences"),
    seq: field(int(2), 256, "tokens of a sequence"),
    checkpointing: checkpointingFlag,
    steps: stepsFlag,
    ...benchShape,
  }),
  rm: z.strictObject({
    shape: shapeFlag,
    pairs: field(int(1), 8, "pairs of two sequences"),
    seq: field(int(1), 220, "tokens of a sequence"),
    prompt: field(int(0), 0, "tokens that both sequences of a pair begin with"),
    micro_batch_tokens: microBatchFlag(8192),
    checkpointing: checkpointingFlag,
    steps: stepsFlag,
    ...benchShape,
  }),
  judge: z.strictObject({
    shape: shapeFlag,
    responses: field(int(1), 16, "responses judged together, all to one prompt"),
    criteria: field(int(1, 9), 3, "criteria of the rubric"),
    prompt: field(int(1), 64, "tokens of the prompt"),
    completion: field(int(1), 512, "tokens of a response"),
    preamble: field(int(1), 288, "tokens that the judge reads before any response"),
    shared: field(int(0), 16, "tokens behind a response that all criteria have in common"),
    own: field(int(1), 5, "tokens behind it that are a criterion's own"),
    answer: field(int(1), 3, "tokens of a text answer; each runs to this length"),
    frozen: field(
      z.boolean(),
      true,
      "the preamble is encoded once a run; false: once a step, as for a judge that learns",
    ),
    steps: stepsFlag,
    ...benchShape,
  }),
  ops: z.strictObject({ shape: shapeFlag, ...grpoShape, steps: stepsFlag, ...benchShape }),
  growth: z.strictObject({
    shape: shapeFlag,
    prompt: field(int(1), 128, "tokens of a prompt where another size grows"),
    completion: field(int(1), 64, "tokens of a completion where another size grows"),
    group: field(int(1), 8, "completions of the one prompt where another size grows"),
    beta: betaFlag,
    micro_batch_tokens: microBatchFlag(2048),
    steps: stepsFlag,
    ...benchShape,
  }),
  startup: z.strictObject({ shape: shapeFlag, steps: stepsFlag, ...benchShape }),
  "metal-model": z.strictObject({
    shape: shapeFlag,
    dtype: deviceShape.dtype,
    prompt: field(int(1), 128, "tokens of a prompt"),
    completion: field(int(2), 64, "tokens of a completion"),
    group: field(int(1), 8, "completions a prompt"),
    completions: field(int(1), 8, "completions a step"),
    chip: field(text(), "M4", "M1 to M5, also Pro, Max, Ultra: chip of the estimates by kernel"),
  }),
} as const;

export type BenchName = keyof typeof benchSchemas;
export type BenchOptions<Name extends BenchName> = Readonly<z.output<(typeof benchSchemas)[Name]>>;
export const BENCH_NAMES = Object.keys(benchSchemas) as BenchName[];
/** `rlv bench` without a name: what measures this machine within minutes. */
export const MEASURING = BENCH_NAMES.filter((name) => name !== "metal-model" && name !== "growth");
