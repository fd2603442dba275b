/** GRPO on problems whose answer is an integer. */
import type { Tokenizer } from "../io/tokenizer.ts";
import { scoreRollouts } from "../reward/registry.ts";
import { ruleRegistry } from "../reward/rules.ts";
import { readPrompts } from "../run/data.ts";
import type { Reporter, RunControl } from "../run/reporter.ts";
import { resolveBuiltin } from "./builtin.ts";
import { runGrpo } from "./grpo.ts";
import type { GrpoSettings } from "./settings.ts";
import { folderSource } from "./setup.ts";

export interface ArithmeticSettings extends GrpoSettings {
  readonly recipe: "arithmetic";
  readonly model_name: string;
  readonly train_file: string;
  readonly eval_file: string;
  readonly kl_coeff: number;
  readonly gamma: number;
  readonly correct_reward: number;
  readonly wrong_reward: number;
}

export async function trainArithmetic(
  settings: ArithmeticSettings,
  reporter: Reporter,
  control: RunControl,
): Promise<void> {
  const { correct_reward, wrong_reward } = settings;
  const reward = ruleRegistry().bind("arithmetic", { correct_reward, wrong_reward });
  const read = (file: string) => (tokenizer: Tokenizer) =>
    readPrompts(resolveBuiltin(file), tokenizer, settings.max_prompt_length, ["answer"]);
  await runGrpo(
    {
      settings,
      beta: settings.kl_coeff,
      gamma: settings.gamma,
      source: folderSource(resolveBuiltin(settings.model_name), settings.model_name),
      sourceName: settings.model_name,
      prompts: read(settings.train_file),
      held: read(settings.eval_file),
      score: (rollouts, step) => scoreRollouts("arithmetic", reward, rollouts, { step }),
    },
    reporter,
    control,
  );
}
