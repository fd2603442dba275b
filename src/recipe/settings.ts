/** What recipes read of a resolved config. The schemas in src/config give objects of these shapes. */
import type { DeviceName } from "../core/env.ts";
import type { KlEstimator } from "../loss/kl.ts";
import type { LossType } from "../loss/options.ts";

export interface DeviceSettings {
  readonly device: DeviceName;
  readonly threads: number | null;
  readonly dtype: "float32" | "bfloat16";
}

export interface OptimizerSettings {
  readonly learning_rate: number;
  readonly lr_schedule: "constant" | "linear" | "cosine";
  readonly warmup_steps: number;
  readonly weight_decay: number;
  readonly adam_beta1: number;
  readonly adam_beta2: number;
  readonly adam_epsilon: number;
  readonly max_grad_norm: number;
  readonly optimizer_dtype: "float32" | "bfloat16" | "8bit";
  readonly gradient_dtype: "float32" | "bfloat16";
}

export interface ScheduleSettings {
  readonly eval_every: number;
  readonly save_every: number;
  readonly keep_checkpoints: number;
  readonly log_every: number;
  readonly log_dir?: string;
}

/** What the flags of adapters say where nobody gives them: those of the schemas. */
export const LORA_DEFAULTS = {
  lora_r: 16,
  lora_alpha: 32,
  lora_dropout: 0.05,
  lora_target_modules: "q_proj,k_proj,v_proj,o_proj",
  use_rslora: false,
} as const;

/** Retain and forget adapters of one rank, by name. */
export const LORA_CONFIGS = ["r1", "r2", "r4", "r8", "r16", "r32"] as const;

export interface LoraSettings {
  readonly lora: boolean;
  readonly adapter: string | null;
  readonly lora_r: number;
  readonly lora_alpha: number;
  readonly lora_dropout: number;
  readonly lora_target_modules: string;
  readonly use_rslora: boolean;
  readonly base_quant_type: "none" | "int8" | "int4";
}

export interface TrainSettings extends DeviceSettings, OptimizerSettings, ScheduleSettings, LoraSettings {
  readonly recipe: string;
  readonly seed: number;
  readonly micro_batch_tokens: number;
  readonly gradient_checkpointing: boolean;
  readonly reference_offload?: boolean;
}

/** What the recipes on preferences name otherwise than the others. */
export interface HhSettings extends DeviceSettings, LoraSettings, Omit<OptimizerSettings, "learning_rate"> {
  readonly model: string;
  readonly dataset: string;
  readonly log_dir: string;
  readonly seed: number;
  readonly epochs: number;
  readonly num_train_steps: number | null;
  readonly batch_size: number;
  readonly lr: number;
  readonly eval_steps: number;
  readonly save_steps: number;
  readonly keep_checkpoints: number;
  readonly log_every: number;
  readonly micro_batch_tokens: number;
  readonly gradient_checkpointing: boolean;
}

/** The same settings under the names that the training loop has for them. */
export function trainSettings<S extends HhSettings & { readonly recipe: string }>(
  settings: S,
): S & TrainSettings {
  return {
    ...settings,
    learning_rate: settings.lr,
    eval_every: settings.eval_steps,
    save_every: settings.save_steps,
  };
}

/** A part of a run's reward, as configs name it. */
export interface RewardSetting {
  /** Of a registered reward, or the path of a module. */
  readonly name: string;
  /** Under which metrics and components have it. */
  readonly as: string;
  readonly weight: number;
  readonly params: Readonly<Record<string, unknown>>;
  /** Of a module: of its file when the run began. */
  readonly sha256?: string | undefined;
}

/** A detector of reward hacks, as configs name it. */
export interface DetectorSetting {
  readonly name: string;
  readonly params: Readonly<Record<string, unknown>>;
}

export interface GrpoSettings extends TrainSettings {
  readonly batch_size: number;
  readonly group_size: number;
  readonly num_iterations: number;
  readonly steps_per_generation: number;
  readonly grad_accum_steps: number;
  readonly max_prompt_length: number;
  readonly max_completion_length: number;
  readonly temperature: number;
  readonly top_p: number;
  readonly top_k: number;
  readonly min_p: number;
  readonly loss_type: LossType;
  readonly importance_sampling_level: "token" | "sequence";
  readonly epsilon: number;
  readonly epsilon_high: number | null;
  readonly delta: number | null;
  readonly kl_estimator: KlEstimator | null;
  readonly scale_rewards: "group" | "batch" | "centered_batch" | "none";
  readonly mask_truncated_completions: boolean;
  readonly sapo_temperature_pos: number;
  readonly sapo_temperature_neg: number;
  readonly vespo_k_pos: number;
  readonly vespo_lambda_pos: number;
  readonly vespo_k_neg: number;
  readonly vespo_lambda_neg: number;
  readonly aggregation: "token" | "sequence";
  readonly entropy_coef: number;
  readonly top_entropy_quantile: number;
  readonly off_policy_mask_threshold: number | null;
  readonly compat: "none" | "trl";
  readonly eval_num_prompts: number;
  readonly save_rollouts: boolean;
}
