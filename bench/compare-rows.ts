/** What bench/compare runs: rows of the table, and the peers' runs that give their figures. */

/** One Python process; several rows may take figures from it. */
export interface PeerRun {
  readonly title: string;
  readonly script: string;
  readonly args: readonly string[];
  readonly modules: readonly string[];
  /** What must lie in the work folder. */
  readonly files: readonly string[];
  /** Figures in what it printed. `peak_bytes` overrides the peak of the process. */
  readonly figures: (out: string) => Record<string, number>;
}

export interface Row {
  readonly name: string;
  readonly work: string;
  readonly unit: "s" | "tok/s";
  /** Of `rlv bench`. */
  readonly args: string;
  /** Fields of its result that are added up; milliseconds become seconds. */
  readonly fields: readonly string[];
  readonly peer: string;
  readonly figure: string;
}

const lastJson = (out: string) => JSON.parse(out.trim().split("\n").at(-1)!);
const median = (values: readonly number[]): number =>
  [...values].sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN;

/** The first of TRL's steps warms up. */
function trl(args: readonly string[], model: string): PeerRun {
  return {
    title: `TRL ${model === "story" ? "float32" : "bfloat16"}`,
    script: "trl_grpo.py",
    args: [model, ...args],
    modules: ["torch", "transformers", "trl", ...(args.includes("lora") ? ["peft"] : [])],
    files: [model, "prompts.json"],
    figures: (out) => ({ step_s: median(lastJson(out).steps.slice(1)) }),
  };
}

/** "prefill 512: 443 tok/s" and lines of "decode B8 …: 146 tok/s". */
function llama(file: string): PeerRun {
  return {
    title: `llama.cpp ${file.includes("q8") ? "q8_0" : "bfloat16"}`,
    script: "llama_decode.py",
    args: [file],
    modules: ["llama_cpp", "gguf", "torch"],
    files: [file],
    figures: (out) => {
      const figures: Record<string, number> = {};
      for (const line of out.split("\n")) {
        const speed = Number(/([\d.]+) tok\/s/.exec(line)?.[1]);
        const batch = /batch\D*(\d+)|\bB=?(\d+)/.exec(line);
        if (line.startsWith("prefill")) figures.prefill = speed;
        else if (batch) figures[`decode${batch[1] ?? batch[2]}`] = speed;
      }
      return figures;
    },
  };
}

export const peerRuns: Readonly<Record<string, PeerRun>> = {
  trl_stories: trl(["24", "128", "16", "32"], "story"),
  trl_stories_lora: trl(["24", "128", "16", "32", "lora"], "story"),
  trl_qwen: trl(["128", "64", "8", "8", "2"], "qwen06"),
  trl_qwen_lora: trl(["128", "64", "8", "8", "lora", "2"], "qwen06"),
  llama_bf16: llama("q06-bf16.gguf"),
  llama_q8: llama("q06-q8.gguf"),
  torch_train: {
    title: "torch bfloat16, gradient checkpointing",
    script: "torch_train.py",
    args: ["qwen06"],
    modules: ["torch", "transformers"],
    files: ["qwen06"],
    figures: (out) => {
      const matches = [...out.matchAll(/fwd ([\d.]+) tok\/s, fwd\+bwd ([\d.]+) tok\/s/g)].slice(1);
      return {
        forward: median(matches.map((m) => Number(m[1]))),
        both: median(matches.map((m) => Number(m[2]))),
      };
    },
  },
  torch_reward: {
    title: "torch bfloat16",
    script: "peer_reward_model.py",
    args: ["qwen06", "8", "220", "2"],
    modules: ["torch", "transformers"],
    files: ["qwen06"],
    figures: (out) => {
      const { step_s, peak_mb } = lastJson(out);
      return { step_s, peak_bytes: peak_mb * 2 ** 20 };
    },
  },
  torch_load: {
    title: "torch bfloat16",
    script: "peer_load.py",
    args: ["qwen06"],
    modules: ["torch", "transformers"],
    files: ["qwen06"],
    figures: (out) => ({ total_s: lastJson(out).total_s }),
  },
};

const STORIES = "--shape stories --prompt 24 --completion 128 --group 16 --completions 32 --beta 0.02";
const QWEN = "--shape qwen3-0.6b --dtype bfloat16";
const QWEN_STEP = `${QWEN} --prompt 128 --completion 64 --group 8 --completions 8 --beta 0.01 --steps 2`;
/** What TRL's bfloat16 moments and gradients are to it. */
const LEAN = "--optimizer_dtype 8bit --gradient_dtype bfloat16 --reference_offload true";

function row(name: string, work: string, args: string, field: string, peer: string, figure: string): Row {
  const fields = field.split("+");
  return { name, work, unit: field.endsWith("tokens_per_s") ? "tok/s" : "s", args, fields, peer, figure };
}

const decode = (batch: number, more = "") =>
  `decode ${QWEN} --batch ${batch} --prompt 128 --tokens 24 --steps 3${more}`;
const STORIES_WORK = "GRPO step, SimpleStories shape, 32 x 128, group 16";
const QWEN_WORK = "GRPO step, Qwen3-0.6B shape, 8 x 64, prompt 128";

export const rows: readonly Row[] = [
  row("grpo-stories", `${STORIES_WORK}, float32`, `grpo ${STORIES}`, "step_s", "trl_stories", "step_s"),
  row(
    "grpo-stories-bf16",
    `${STORIES_WORK}, bfloat16`,
    `grpo ${STORIES} --dtype bfloat16`,
    "step_s",
    "trl_stories",
    "step_s",
  ),
  row(
    "grpo-stories-lora",
    `${STORIES_WORK}, float32, LoRA r 8`,
    `grpo ${STORIES} --lora_r 8`,
    "step_s",
    "trl_stories_lora",
    "step_s",
  ),
  row(
    "grpo-stories-lora-bf16",
    `${STORIES_WORK}, bfloat16, LoRA r 8`,
    `grpo ${STORIES} --dtype bfloat16 --lora_r 8`,
    "step_s",
    "trl_stories_lora",
    "step_s",
  ),
  row("grpo-qwen", `${QWEN_WORK}, bfloat16`, `grpo ${QWEN_STEP} ${LEAN}`, "step_s", "trl_qwen", "step_s"),
  row(
    "grpo-qwen-lora",
    `${QWEN_WORK}, bfloat16, LoRA r 16 (TRL: r 8)`,
    `grpo ${QWEN_STEP} --lora_r 16`,
    "step_s",
    "trl_qwen_lora",
    "step_s",
  ),
  row(
    "prefill",
    "Qwen3-0.6B shape, prefill 512",
    `prefill ${QWEN} --tokens 512`,
    "tokens_per_s",
    "llama_bf16",
    "prefill",
  ),
  ...[1, 8, 16].map((batch) =>
    row(
      `decode-${batch}`,
      `decode, batch ${batch}, shared prompt 128`,
      decode(batch),
      "tokens_per_s",
      "llama_bf16",
      `decode${batch}`,
    ),
  ),
  ...["int8", "int4"].map((quant) =>
    row(
      `decode-1-${quant}`,
      `decode, batch 1, ${quant} weights`,
      decode(1, ` --quant ${quant}`),
      "tokens_per_s",
      "llama_q8",
      "decode1",
    ),
  ),
  row(
    "train-forward",
    "training forward pass, 4 x 256",
    `train ${QWEN} --batch 4 --seq 256 --steps 2`,
    "forward_tokens_per_s",
    "torch_train",
    "forward",
  ),
  row(
    "train",
    "training forward and backward pass, 4 x 256",
    `train ${QWEN} --batch 4 --seq 256 --steps 2`,
    "tokens_per_s",
    "torch_train",
    "both",
  ),
  row(
    "rm",
    "reward model step, 8 pairs of 2 x 220, AdamW",
    `rm ${QWEN} --pairs 8 --seq 220 --steps 2`,
    "step_s",
    "torch_reward",
    "step_s",
  ),
  row(
    "startup",
    "from the start of the program to usable weights",
    `startup ${QWEN} --steps 3`,
    "version_ms+load_ms",
    "torch_load",
    "total_s",
  ),
];
