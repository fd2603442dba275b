import { Bug } from "../core/errors.ts";
import type { Reporter, RunControl } from "../run/reporter.ts";
import type { ArithmeticSettings } from "./arithmetic.ts";
import type { GrpoJob } from "./grpo.ts";
import type { HhGrpoSettings } from "./hh-grpo.ts";
import type { HhRmSettings } from "./hh-rm.ts";
import type { SftSettings } from "./sft.ts";
import type { StoriesSettings } from "./stories.ts";
import type { ValuesSettings } from "./values.ts";

export type RecipeSettings =
  | ArithmeticSettings
  | SftSettings
  | HhRmSettings
  | HhGrpoSettings
  | StoriesSettings
  | ValuesSettings;

/** Settings of recipes that sample completions and reward them. */
type GrpoRecipe = ArithmeticSettings | HhGrpoSettings | StoriesSettings | ValuesSettings;

/** The GRPO job of a config, null of a recipe that is none. `resumeFrom`: the checkpoint that it goes on from. */
export async function grpoJob(settings: RecipeSettings, resumeFrom: string | null): Promise<GrpoJob | null> {
  switch (settings.recipe) {
    case "arithmetic":
      return (await import("./arithmetic.ts")).arithmeticJob(settings, resumeFrom);
    case "hh-grpo":
      return (await import("./hh-grpo.ts")).hhGrpoJob(settings, resumeFrom);
    case "stories":
      return (await import("./stories.ts")).storiesJob(settings, resumeFrom);
    case "values":
      return (await import("./values.ts")).valuesJob(settings, resumeFrom);
    default:
      return null;
  }
}

async function trainGrpo(settings: GrpoRecipe, reporter: Reporter, control: RunControl): Promise<void> {
  const { runGrpo } = await import("./grpo.ts");
  await runGrpo((await grpoJob(settings, control.resumeFrom))!, reporter, control);
}

/** Runs a job to its end; each recipe is loaded when it is asked for. */
export async function runTraining(
  settings: RecipeSettings,
  reporter: Reporter,
  control: RunControl,
): Promise<void> {
  switch (settings.recipe) {
    case "arithmetic":
    case "hh-grpo":
    case "stories":
    case "values":
      return trainGrpo(settings, reporter, control);
    case "sft":
      return (await import("./sft.ts")).trainSft(settings, reporter, control);
    case "hh-rm":
      return (await import("./hh-rm.ts")).trainHhRm(settings, reporter, control);
    default:
      throw new Bug(`no recipe ${(settings as { recipe: string }).recipe}`);
  }
}
